"""From `--gpu` and `--mem` to limits: what is given, and the sentence for what can't be."""

import pytest

from hamirt import contexts
from hamirt.errors import HamirtError
from hamirt.model import Card, Driver, LatencyClass, Limit, Limits
from hamirt.plan import plan_limits
from hamirt.units import GIB, MIB

TOTAL = 81559 * MIB


def card(index: int, *, mig: bool = False) -> Card:
    return Card(index, f"GPU-{index:08x}-AB", "NVIDIA H100 80GB HBM3", TOTAL, 0, None, mig, ())


NODE = Driver("580.159.04", (card(0), card(1), card(2)), simulated=False)


def plan(
    gpus: tuple[str, ...] = (), mem: str | None = None, driver: Driver = NODE, measured: dict[str, int] | None = None
) -> Limits:
    return plan_limits(
        driver,
        gpus,
        mem,
        allow_on_error=False,
        measured=measured or {},
        predicted_context_bytes=640 * MIB,
        reserve_bytes=64 * MIB,
    )


def test_without_options_all_cards_are_whole() -> None:
    assert plan() == Limits("", False, 3, tuple(Limit(f"GPU-{index:08x}-AB", None, TOTAL, None) for index in range(3)))


def test_cards_come_in_nvidia_smi_order_however_they_are_named() -> None:
    limits = plan(("GPU-00000002-ab", "0"), "50%")

    assert limits == Limits(
        "",
        False,
        3,
        (Limit("GPU-00000000-AB", TOTAL // 2, TOTAL, None), Limit("GPU-00000002-AB", TOTAL // 2, TOTAL, None)),
    )


def test_each_card_may_have_its_own_size() -> None:
    limits = plan(("0", "1"), "1=16GiB, GPU-00000000-AB=8GiB")

    assert [limit.memory_bytes for limit in limits.devices] == [8 * GIB, 16 * GIB]


def test_a_measured_context_is_handed_on_and_lowers_the_least_cap() -> None:
    measured = {contexts.key(NODE, card(0)): 520 * MIB}

    limits = plan(("0",), "600MiB", measured=measured)

    assert limits.devices == (Limit("GPU-00000000-AB", 600 * MIB, TOTAL, 520 * MIB),)


def test_what_holds_for_gpu_time_holds_on_every_card() -> None:
    limits = plan_limits(
        NODE, ("0", "2"), None, allow_on_error=False, measured={}, predicted_context_bytes=0, reserve_bytes=0,
        time_percent=30, weight=7, latency_class=LatencyClass.BATCH,
    )  # fmt: skip

    assert limits.devices == tuple(
        Limit(f"GPU-{index:08x}-AB", None, TOTAL, None, 30, 7, LatencyClass.BATCH) for index in (0, 2)
    )


def test_all_of_the_time_is_no_cap() -> None:
    limits = plan_limits(
        NODE, ("0",), None, allow_on_error=False, measured={}, predicted_context_bytes=0, reserve_bytes=0,
        time_percent=100,
    )  # fmt: skip

    assert limits.devices[0].time_percent is None


@pytest.mark.parametrize(
    ("gpus", "mem", "says"),
    [
        (("3",), None, "no GPU '3' on this node: there is 0 "),
        (("-1",), None, "no GPU '-1'"),
        (("GPU-ffff",), None, "no GPU 'GPU-ffff'"),
        (("0", "0"), None, "named twice"),
        (("1", "GPU-00000001-AB"), None, "named twice"),
        (("MIG-00000001",), None, "MIG instance"),
        ((), "0", "leaves no memory"),
        ((), "90GiB", r"more than GPU 0 has \(81559MiB\)"),
        ((), "704MiB", "leaves no memory on GPU 0: .*640MiB.*64MiB.* give more than 704MiB"),
        ((), "0=8GiB", "names no size for GPU 1"),
        (("0",), "0=8GiB,1=8GiB", "names GPU '1', which this tenant doesn't get: it gets 0"),
        (("0",), "0=8GiB,0=9GiB", "names GPU 0 twice"),
        ((), "0=8GiB,16GiB", "mixes two forms"),
        (("0",), "0=", "is not a size"),
    ],
)
def test_what_cannot_be_given(gpus: tuple[str, ...], mem: str | None, says: str) -> None:
    with pytest.raises(HamirtError, match=says):
        plan(gpus, mem)


def test_a_card_in_mig_mode_is_refused_only_where_it_is_given() -> None:
    driver = Driver("580", (card(0), card(1, mig=True)), simulated=False)

    assert len(plan(("0",), driver=driver).devices) == 1
    with pytest.raises(HamirtError, match="GPU 1 is in MIG mode"):
        plan(driver=driver)


def test_a_driver_without_cards() -> None:
    with pytest.raises(HamirtError, match="shows no GPU"):
        plan(driver=Driver("580", (), simulated=False))
