"""Which cards are chosen: on real machines' topologies as `nvidia-smi topo -m` shows them, and by brute force."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt.placement import Candidate, Filters, NoPlaceError, Policy, Wanted, choose
from hamirt.topology import Link, Topology
from hamirt.units import GIB, parse_cap

TOTAL = 80 * GIB
LINKS = {
    "NV": Link.NVLINK, "PIX": Link.SWITCH, "PXB": Link.SWITCH, "PHB": Link.BRIDGE, "NODE": Link.NODE,
    "SYS": Link.ACROSS,
}  # fmt: skip

HGX_H100 = "\n".join(" ".join("X" if row == at else "NV18" for at in range(8)) for row in range(8))
DGX_1_V100 = """
    X   NV1 NV1 NV2 NV2 SYS SYS SYS
    NV1 X   NV2 NV1 SYS NV2 SYS SYS
    NV1 NV2 X   NV2 SYS SYS NV1 SYS
    NV2 NV1 NV2 X   SYS SYS SYS NV1
    NV2 SYS SYS SYS X   NV1 NV1 NV2
    SYS NV2 SYS SYS NV1 X   NV2 NV1
    SYS SYS NV1 SYS NV1 NV2 X   NV2
    SYS SYS SYS NV1 NV2 NV1 NV2 X
"""
FOUR_PCIE = """
    X    PHB  PIX  PHB
    PHB  X    PHB  PIX
    PIX  PHB  X    PHB
    PHB  PIX  PHB  X
"""
TWO_SOCKETS = """
    X    NODE PXB  SYS  SYS  SYS
    NODE X    NODE SYS  SYS  SYS
    PXB  NODE X    SYS  SYS  SYS
    SYS  SYS  SYS  X    NODE NODE
    SYS  SYS  SYS  NODE X    NODE
    SYS  SYS  SYS  NODE NODE X
"""


def topology(matrix: str) -> Topology:
    """Read the matrix of `nvidia-smi topo -m`."""
    rows = [line.split() for line in matrix.strip().splitlines()]
    return Topology(
        links={
            frozenset((f"GPU-{one}", f"GPU-{other}")): LINKS[rows[one][other].rstrip("0123456789")]
            for one, other in combinations(range(len(rows)), 2)
        }
    )


def cards(*free_gib: int) -> list[Candidate]:
    return [
        Candidate(index, f"GPU-{index}", "NVIDIA H100 80GB HBM3", TOTAL, free * GIB, GIB // 2)
        for index, free in enumerate(free_gib)
    ]


def indexes(wanted: Wanted, there: list[Candidate], places: Topology) -> list[int]:
    return [int(uuid.removeprefix("GPU-")) for uuid in choose(wanted, there, places)]


MEMORY = parse_cap("8GiB")
SPREAD, BINPACK = Policy.SPREAD, Policy.BINPACK
EIGHT = (80,) * 8


@pytest.mark.parametrize(
    ("matrix", "free", "count", "policy", "chosen"),
    [
        # everybody as close: the policy decides, and then the index
        (HGX_H100, EIGHT, 1, SPREAD, [0]),
        (HGX_H100, (80, 40, 80, 8, 80, 80, 4, 80), 1, SPREAD, [0]),
        (HGX_H100, (80, 40, 80, 8, 80, 80, 4, 80), 1, BINPACK, [3]),  # 6 is fuller, and has no room
        (HGX_H100, (80, 40, 80, 8, 80, 80, 4, 80), 3, BINPACK, [0, 1, 3]),
        (HGX_H100, (10, 40, 80, 8, 20, 80, 4, 80), 4, SPREAD, [1, 2, 5, 7]),
        (HGX_H100, EIGHT, 8, SPREAD, [0, 1, 2, 3, 4, 5, 6, 7]),
        # four that have NVLink to each other, whatever room there is
        (DGX_1_V100, EIGHT, 4, SPREAD, [0, 1, 2, 3]),
        (DGX_1_V100, (80, 4, 80, 80, 8, 8, 8, 8), 4, SPREAD, [4, 5, 6, 7]),
        (DGX_1_V100, (8, 80, 80, 80, 80, 80, 80, 80), 2, BINPACK, [0, 1]),
        (DGX_1_V100, (80, 4, 4, 4, 80, 80, 80, 80), 2, SPREAD, [0, 4]),
        (DGX_1_V100, (8, 4, 4, 4, 80, 4, 4, 80), 2, SPREAD, [4, 7]),
        (DGX_1_V100, (80, 4, 4, 4, 4, 80, 80, 4), 3, SPREAD, [0, 5, 6]),  # no three are close: the closest sum
        # pairs behind one PCIe switch
        (FOUR_PCIE, (80, 80, 80, 80), 2, SPREAD, [0, 2]),
        (FOUR_PCIE, (80, 80, 79, 80), 2, SPREAD, [1, 3]),
        (FOUR_PCIE, (80, 80, 79, 80), 2, BINPACK, [0, 2]),
        (FOUR_PCIE, (4, 80, 80, 79), 2, SPREAD, [1, 3]),  # closer, though 2 has more room
        (FOUR_PCIE, (4, 80, 80, 4), 2, SPREAD, [1, 2]),
        # within a socket before across
        (TWO_SOCKETS, (80,) * 6, 2, SPREAD, [0, 2]),
        (TWO_SOCKETS, (8, 80, 8, 80, 80, 80), 2, SPREAD, [0, 2]),
        (TWO_SOCKETS, (4, 80, 8, 80, 80, 80), 2, SPREAD, [3, 4]),
        (TWO_SOCKETS, (4, 80, 80, 80, 80, 80), 3, SPREAD, [3, 4, 5]),
        (TWO_SOCKETS, (80, 80, 80, 4, 80, 80), 4, SPREAD, [0, 1, 2, 4]),
    ],
)  # fmt: skip
def test_real_machines(matrix: str, free: tuple[int, ...], count: int, policy: Policy, chosen: list[int]) -> None:
    assert indexes(Wanted(count, memory=MEMORY, policy=policy), cards(*free), topology(matrix)) == chosen


def test_where_nobody_says_how_cards_are_linked_their_numa_nodes_do() -> None:
    places = Topology(nodes={"GPU-0": 0, "GPU-1": 1, "GPU-2": 0})

    assert indexes(Wanted(2), cards(80, 80, 80), places) == [0, 2]
    assert [places.link("GPU-0", f"GPU-{other}") for other in (1, 2, 3)] == [Link.ACROSS, Link.NODE, Link.UNKNOWN]
    assert indexes(Wanted(2), cards(80, 80, 80), Topology()) == [0, 1]


def test_of_cards_that_are_as_full_that_with_fewer_tenants() -> None:
    there = [replace(card, tenants=2 - card.index % 2) for card in cards(40, 40, 40)]

    assert indexes(Wanted(memory=MEMORY), there, Topology()) == [1]
    assert indexes(Wanted(memory=MEMORY, policy=BINPACK), there, Topology()) == [0]


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        (Filters(use_types=("a100", "l4")), [1, 2]),
        (Filters(no_types=("A100",)), [0, 2]),
        (Filters(use_types=("NVIDIA",), no_types=("L40S",)), [0, 1]),
        (Filters(use_uuids=("gpu-2", "GPU-0", "GPU-77")), [0, 2]),
        (Filters(no_uuids=("GPU-0",)), [1, 2]),
        (Filters(use_uuids=("GPU",)), []),  # a UUID is meant as a whole, a type is not
    ],
)
def test_filters(filters: Filters, chosen: list[int]) -> None:
    models = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA L40S")
    there = [replace(card, model=model) for card, model in zip(cards(80, 80, 80), models, strict=True)]

    if not chosen:
        with pytest.raises(NoPlaceError) as refusal:
            indexes(Wanted(filters=filters), there, Topology())
        assert refusal.value.lasting
        return
    assert indexes(Wanted(len(chosen), filters=filters), there, Topology()) == chosen


def test_named_cards_are_taken_as_they_are_named() -> None:
    assert indexes(Wanted(2, ("gpu-3", "1")), cards(80, 80, 80, 80), topology(FOUR_PCIE)) == [1, 3]


@pytest.mark.parametrize(
    ("wanted", "lasting", "says"),
    [
        (Wanted(memory=parse_cap("20GiB")), False,
         "no place for a GPU with hamirt.io/memory 20GiB: GPU 0 (NVIDIA H100 80GB HBM3) has 10GiB left of 80GiB; "
         "GPU 1 (NVIDIA H100 80GB HBM3) has 8GiB left of 80GiB: ask for less, or end or shrink another tenant"),
        (Wanted(2, memory=parse_cap("9GiB")), False,
         "no place for 2 GPUs with hamirt.io/memory 9GiB: GPU 0 (NVIDIA H100 80GB HBM3) would do; "
         "GPU 1 (NVIDIA H100 80GB HBM3) has 8GiB left of 80GiB: ask for less, or end or shrink another tenant"),
        (Wanted(), False, "no place for a GPU with all of its memory, since there is no hamirt.io/memory: GPU 0 "),
        (Wanted(memory=parse_cap("90GiB")), True, "GPU 0 (NVIDIA H100 80GB HBM3) has 80GiB in all; GPU 1"),
        (Wanted(memory=parse_cap("512MiB")), True, "needs a cap of more than 512MiB for a CUDA context; GPU 1"),
        (Wanted(3, memory=parse_cap("1GiB")), True, "no place for 3 GPUs with hamirt.io/memory 1GiB: GPU 0"),
        (Wanted(1, ("1",), parse_cap("9GiB")), False,
         "no place for hamirt.io/gpu 1 with hamirt.io/memory 9GiB: GPU 1 (NVIDIA H100 80GB HBM3) has 8GiB left"),
        (Wanted(1, ("GPU-9",)), True,
         "hamirt.io/gpu: there is no GPU 'GPU-9' on this node: there is 0 (GPU-0), 1 (GPU-1)"),
        (Wanted(2, ("GPU-1", "1")), True, "hamirt.io/gpu names GPU 1 (GPU-1) twice"),
        (Wanted(memory=MEMORY, filters=Filters(use_types=("A100", "V100"))), True,
         "GPU 1 (NVIDIA H100 80GB HBM3) is none of nvidia.com/use-gputype A100,V100: ask for what this node has"),
        (Wanted(1, ("0",), MEMORY, Filters(no_types=("h100",))), True, "is one of nvidia.com/nouse-gputype h100"),
        (Wanted(memory=MEMORY, filters=Filters(use_uuids=("GPU-9",))), True, "is not in nvidia.com/use-gpuuuid"),
        # one is filtered out for good, the other may become free
        (Wanted(memory=parse_cap("9GiB"), filters=Filters(no_uuids=("GPU-0",))), False,
         "GPU 0 (NVIDIA H100 80GB HBM3) is in nvidia.com/nouse-gpuuuid; GPU 1"),
    ],
)  # fmt: skip
def test_the_sentence_says_of_each_card_why_not(wanted: Wanted, lasting: bool, says: str) -> None:
    with pytest.raises(NoPlaceError) as refusal:
        choose(wanted, cards(10, 8), Topology())

    assert says in str(refusal.value)
    assert refusal.value.lasting is lasting


def test_no_card_and_one_in_mig_mode() -> None:
    mig = [replace(card, mig=True) for card in cards(80)]

    with pytest.raises(NoPlaceError, match="there is no GPU on this node"):
        choose(Wanted(), [], Topology())
    with pytest.raises(NoPlaceError, match="is in MIG mode"):
        choose(Wanted(), mig, Topology())


node = st.lists(st.integers(0, 80), min_size=1, max_size=6)
link = st.sampled_from(Link)


@given(node, st.data(), st.integers(1, 6), st.sampled_from(Policy))
def test_what_is_chosen_fits_and_nothing_closer_does(
    free: list[int], data: st.DataObject, count: int, policy: Policy
) -> None:
    there = cards(*free)
    pairs = list(combinations((card.uuid for card in there), 2))
    places = Topology(links={frozenset(pair): data.draw(link) for pair in pairs})
    fitting = [card.uuid for card in there if card.free_bytes >= 8 * GIB]

    try:
        chosen = choose(Wanted(count, memory=MEMORY, policy=policy), data.draw(st.permutations(there)), places)
    except NoPlaceError as refusal:
        assert len(fitting) < count
        assert refusal.lasting == (len(there) < count)
        return

    def distance(some: tuple[str, ...]) -> tuple[int, int]:
        links = [places.link(*pair) for pair in combinations(some, 2)]
        return max(links, default=0), sum(links)

    assert {*chosen} <= {*fitting}
    assert list(chosen) == sorted({*chosen})
    assert len(chosen) == count
    assert distance(chosen) == min(map(distance, combinations(fitting, count)))
    assert chosen == choose(Wanted(count, memory=MEMORY, policy=policy), there, places)


def test_the_worst_link_counts_before_all_others() -> None:
    chain = {("GPU-0", "GPU-1"): Link.NVLINK, ("GPU-1", "GPU-2"): Link.NVLINK, ("GPU-0", "GPU-2"): Link.ACROSS}
    ring = dict.fromkeys(combinations(("GPU-3", "GPU-4", "GPU-5"), 2), Link.BRIDGE)
    places = Topology(links={frozenset(pair): one for pair, one in (chain | ring).items()})

    assert indexes(Wanted(3), cards(*(80,) * 6), places) == [3, 4, 5]
