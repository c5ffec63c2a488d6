"""Annotations: read as they are meant, or a sentence that names the one which is wrong; no text makes anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt import annotations
from hamirt.annotations import Wish
from hamirt.errors import HamirtError
from hamirt.model import LatencyClass
from hamirt.placement import Filters, Policy, Wanted
from hamirt.units import parse_cap

FULL = {
    "hamirt.io/memory": " 8GiB ",
    "hamirt.io/sm": "30",
    "hamirt.io/weight": "7",
    "hamirt.io/class": "batch",
    "hamirt.io/name": "web",
    "hamirt.io/gpu": "0, GPU-5a1e",
    "hamirt.io/policy": "binpack",
    "nvidia.com/use-gputype": "H100,A100",
    "nvidia.com/nouse-gputype": "L4",
    "nvidia.com/use-gpuuuid": "GPU-5a1e,",
    "nvidia.com/nouse-gpuuuid": "GPU-9",
    "io.kubernetes.container.name": "main",
    "io.kubernetes.pod.name": "train-0",
    "io.kubernetes.pod.namespace": "ml",
    "org.other": "x",
}


def read(given: dict[str, str], settings: dict[str, str] | None = None) -> Wish | None:
    said = annotations.ours(given, settings or {})
    return annotations.read(said, given) if said else None


def test_all_there_is() -> None:
    assert read(FULL) == Wish(
        cards=Wanted(
            count=2,
            named=("0", "GPU-5a1e"),
            memory=parse_cap("8GiB"),
            filters=Filters(("H100", "A100"), ("L4",), ("GPU-5a1e",), ("GPU-9",)),
            policy=Policy.BINPACK,
        ),
        time_percent=30,
        weight=7,
        latency_class=LatencyClass.BATCH,
        name="web",
        pod="ml/train-0",
    )
    assert annotations.warnings(FULL) == ()


def test_one_of_ours_is_enough_and_the_rest_is_as_it_would_be() -> None:
    assert read({"hamirt.io/sm": "100"}) == Wish(Wanted(count=1, policy=Policy.SPREAD))
    assert read({}, {"hamirt.io/gpu": "count=1"}) == Wish(Wanted(count=1))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"org.other": "x", "nvidia.com/use-gputype": "H100"},
        {"hamirt.io/memroy": "8GiB"},
        {"hamirt.io/memory": "8GiB", "io.kubernetes.cri.container-type": "sandbox"},
        {"hamirt.io/memory": "8GiB", "io.kubernetes.cri-o.ContainerType": "sandbox"},
    ],
)  # fmt: skip
def test_who_asks_for_nothing(given: dict[str, str]) -> None:
    assert read(given) is None


def test_an_annotation_that_is_none_of_ours_is_warned_of() -> None:
    assert annotations.warnings({"hamirt.io/memroy": "8GiB", "hamirt.io/sm": "3", "x.hamirt.io/y": ""}) == (
        "there is no annotation 'hamirt.io/memroy', so it does nothing: there are hamirt.io/memory, hamirt.io/sm, "
        "hamirt.io/weight, hamirt.io/class, hamirt.io/name, hamirt.io/gpu, hamirt.io/policy",
    )


@pytest.mark.parametrize(
    ("text", "count", "named"),
    [
        ("0", 1, ("0",)),
        ("2", 1, ("2",)),  # an index: a number alone counts only as count=2
        ("count=2", 2, ()),
        ("count=16", 16, ()),
        ("1,0", 2, ("1", "0")),
        ("GPU-5a1e0000-0000-4000-8000-000000000001", 1, ("GPU-5a1e0000-0000-4000-8000-000000000001",)),
    ],
)
def test_which_gpus(text: str, count: int, named: tuple[str, ...]) -> None:
    assert read({"hamirt.io/gpu": text}) == Wish(Wanted(count, named))


def test_a_container_is_called_as_kubernetes_calls_it() -> None:
    cri_o = {"io.kubernetes.container.name": "main", "io.kubernetes.pod.name": "train-0"}
    containerd = {
        "io.kubernetes.cri.container-name": "main",
        "io.kubernetes.cri.sandbox-name": "train-0",
        "io.kubernetes.cri.sandbox-namespace": "ml",
    }
    cap = {"hamirt.io/memory": "8GiB"}

    places = [(wish.name, wish.pod) for given in (cri_o, containerd, {}) if (wish := read(cap | given))]
    assert places == [("main", "train-0"), ("main", "ml/train-0"), (None, None)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"hamirt.io/memory": "0"}, "hamirt.io/memory: a cap of '0' leaves no memory"),
        ({"hamirt.io/memory": "lots"}, "hamirt.io/memory: 'lots' is not a size"),
        ({"hamirt.io/memory": "101%"}, "hamirt.io/memory: '101%' is more than the card has"),
        ({"hamirt.io/memory": "0=8GiB"}, "hamirt.io/memory: '0=8GiB' is not a size: write one size for all GPUs"),
        ({"hamirt.io/memory": ""}, "hamirt.io/memory has to be printable text"),
        ({"hamirt.io/memory": "8GiB\n8"}, "hamirt.io/memory has to be printable text"),
        ({"hamirt.io/memory": "8" * 5000}, "hamirt.io/memory has to be printable text, 4096 characters at most"),
        ({"hamirt.io/sm": "0"}, "hamirt.io/sm: '0' is not a whole number from 1 to 100"),
        ({"hamirt.io/sm": "30%"}, "hamirt.io/sm: '30%' is not a whole number"),
        ({"hamirt.io/sm": "\u0663"}, "hamirt.io/sm: '\u0663' is not a whole number"),
        ({"hamirt.io/weight": "10001"}, "hamirt.io/weight: '10001' is not a whole number from 1 to 10000"),
        ({"hamirt.io/class": "fast"}, "hamirt.io/class: 'fast' is none of latency, normal, batch"),
        ({"hamirt.io/policy": "pack"}, "hamirt.io/policy: 'pack' is none of binpack, spread"),
        ({"hamirt.io/name": "a/b"}, "hamirt.io/name: 'a/b' can't name a tenant"),
        ({"hamirt.io/gpu": "two"}, "hamirt.io/gpu: 'two' is no GPU: write count=2"),
        ({"hamirt.io/gpu": "0,"}, "hamirt.io/gpu: '' is no GPU"),
        ({"hamirt.io/gpu": "0,0"}, "hamirt.io/gpu: '0,0' names a GPU twice"),
        ({"hamirt.io/gpu": "count=0"}, "hamirt.io/gpu: '0' is not a whole number from 1 to 16"),
        ({"hamirt.io/gpu": "count=17"}, "hamirt.io/gpu: '17' is not a whole number from 1 to 16"),
        ({"hamirt.io/gpu": "MIG-1"}, "hamirt.io/gpu: MIG-1 is a MIG instance"),
        ({"hamirt.io/gpu": ",".join(map(str, range(17)))}, "hamirt.io/gpu: a tenant can have 16 GPUs at most, not 17"),
        ({"hamirt.io/sm": "3", "nvidia.com/use-gputype": "A100,l4", "nvidia.com/nouse-gputype": "L4"},
         "nvidia.com/use-gputype and nvidia.com/nouse-gputype contradict each other: both have l4"),
        ({"hamirt.io/sm": "3", "nvidia.com/use-gpuuuid": "GPU-1", "nvidia.com/nouse-gpuuuid": "gpu-1"},
         "nvidia.com/use-gpuuuid and nvidia.com/nouse-gpuuuid contradict each other: both have gpu-1"),
        ({"hamirt.io/gpu": "GPU-1", "nvidia.com/nouse-gpuuuid": "gpu-1"},
         "hamirt.io/gpu contradicts what else is said: GPU-1 is in nvidia.com/nouse-gpuuuid"),
        ({"hamirt.io/gpu": "GPU-1", "nvidia.com/use-gpuuuid": "GPU-2"},
         "hamirt.io/gpu contradicts what else is said: GPU-1 is not in nvidia.com/use-gpuuuid"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(given: dict[str, str], says: str) -> None:
    with pytest.raises(HamirtError) as refusal:
        read(given)

    assert str(refusal.value).startswith(says)
    assert "--" not in str(refusal.value)  # nobody typed an option


def test_a_device_is_not_to_be_contradicted() -> None:
    device = {"hamirt.io/memory": "8GiB"}

    assert read({"hamirt.io/memory": "8GiB ", "hamirt.io/sm": "3"}, device) == Wish(
        Wanted(memory=parse_cap("8GiB")), time_percent=3
    )
    with pytest.raises(HamirtError, match=r"hamirt\.io/memory is '9GiB' by annotation and '8GiB' by the device"):
        read({"hamirt.io/memory": "9GiB"}, device)
    with pytest.raises(HamirtError, match=r"there is no setting 'hamirt\.io/memroy'"):
        read({}, {"hamirt.io/memroy": "8GiB"})


keys = st.sampled_from([*FULL, "hamirt.io/x"])
pieces = st.sampled_from(
    ["8GiB", "50%", "count=2", "0", "1", "GPU-1", "H100", "batch", "spread", ",", " ", "=", "-", "é"]
)
texts = st.one_of(st.text(max_size=12), st.lists(pieces, max_size=5).map("".join))


@given(st.dictionaries(keys, texts, max_size=6), st.dictionaries(keys, texts, max_size=2))
def test_any_annotations_are_a_wish_or_a_sentence(given: dict[str, str], settings: dict[str, str]) -> None:
    merged = {**settings, **given}
    try:
        wish = read(merged, settings)
    except HamirtError as error:
        assert any(key in str(error) for key in merged)
        return
    assert all(given.get(key, value).strip() == value.strip() for key, value in settings.items())
    ours = any(key.startswith("hamirt.io/") and key != "hamirt.io/x" for key in merged)
    assert (wish is not None) == ours
    if wish is None:
        return
    assert 1 <= wish.cards.count <= 16
    assert len(wish.cards.named) in (0, wish.cards.count)
    assert 1 <= wish.weight <= 10_000
    assert wish.time_percent is None or 1 <= wish.time_percent < 100
