"""What a tenant's gates and waits say of its GPU time, and how far its cap on it holds. Decides, and touches nothing.

A gate has one writer. The supervisor's lies in the limits page; the one in the usage page is a leader's, a process of
the tenant's own that arbitrates for it where no supervisor does. What both charged is the tenant's GPU time.
"""

from collections.abc import Sequence

from hamirt.model import (
    DEFAULT_WEIGHT,
    DeviceUsage,
    Enforcement,
    Gate,
    GateState,
    LatencyClass,
    Level,
    Limit,
    Metering,
    Use,
)

ALONE = "GPU time is not arbitrated against other tenants: no daemon runs"
ALONE_WITH_WISHES = "weight and class have no effect, since no daemon runs: GPU time is not arbitrated between tenants"
NOBODY = "no daemon runs, and no process of the tenant has taken its place"

NOTHING = Gate()


def meter(limit: Limit, supervised: Gate, device: DeviceUsage, uses: Sequence[Use], now_ns: int) -> Metering:
    """Return what was seen of a tenant's GPU time on a card at CLOCK_MONOTONIC `now_ns`.

    `supervised` is the supervisor's gate, NOTHING where there never was one.
    """
    own, led = device.gate, is_led(supervised, now_ns)
    alone = GateState.FREE if limit.time_percent is None else own.state
    return Metering(
        gate=supervised.state if led else alone,
        supervised=led,
        charged_seconds=(supervised.charged_ns + own.charged_ns) / 1e9,
        supervised_seconds=supervised.charged_ns / 1e9,
        free_seconds=(supervised.free_ns + own.free_ns) / 1e9,
        slots=supervised.slots + own.slots,
        misses=supervised.misses + own.misses,
        unpreemptible=(supervised if led else own).unpreemptible,
        ganged=device.ganged,
        waiting=sum(use.waiting for use in uses),
        waits=device.waits,
    )


def enforcement(
    limit: Limit, supervised: Gate, device: DeviceUsage | None, uses: Sequence[Use], now_ns: int
) -> Enforcement | None:
    """Return how far the gates hold what was asked for of GPU time, None where nothing was.

    A gate that nobody answers for holds as long as nothing passes: an idle tenant's leader sleeps, and its lease ends.
    """
    wishes = limit.weight != DEFAULT_WEIGHT or limit.latency_class is not LatencyClass.NORMAL
    if limit.time_percent is None and not wishes:
        return None
    if is_led(supervised, now_ns):
        return Enforcement(Level.FULL, None)
    led = device is not None and is_led(device.gate, now_ns)
    if limit.time_percent is not None and not led and any(use.busy for use in uses):
        return Enforcement(Level.NONE, NOBODY)
    return Enforcement(Level.PARTIAL, ALONE_WITH_WISHES) if wishes else Enforcement(Level.FULL, ALONE)


def is_led(gate: Gate, now_ns: int) -> bool:
    """Return whether somebody answers for a gate."""
    return gate.lease_ns is not None and gate.lease_ns > now_ns


def wait_at_most(waits: Sequence[int], ratio: float) -> float | None:
    """Return in how many seconds at the most this part of the waits was over, None where there were none.

    They are counted as in DeviceUsage: the answer is the end of a bucket; of the last one, which has none, its begin.
    """
    left = ratio * sum(waits)
    if not left:
        return None
    for bucket, count in enumerate(waits[:-1]):
        left -= count
        if left <= 0:
            return bucket_end_seconds(bucket)
    return bucket_end_seconds(len(waits) - 2)


def bucket_end_seconds(bucket: int) -> float:
    """Return how long the waits in a bucket took at most."""
    return float(1 << bucket) / 1e6
