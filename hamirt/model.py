"""What hamirt knows about a node: cards, the limits and the usage of tenants, and what a person is shown of them.

Frozen values, handed from the modules that read the world (region, nvml, tenants) to those that decide and print.
Bytes and ratios; what is not known is None, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Standing(Enum):
    """What a process on a card is to the tenants of the node."""

    REGISTERED = "registered"
    """It maps its tenant's usage page: the shim is in it."""
    UNSHIMMED = "unshimmed"
    """It belongs to a tenant by its cgroup or its parents, and the shim is not in it: no cap holds for it."""
    FOREIGN = "foreign"
    """It belongs to no tenant: counted against the card's room, never touched."""


@dataclass(frozen=True, slots=True)
class CardProcess:
    """A process as NVML lists it on a card. `standing` is None where nobody judged it; `tenant` is a tenant's id."""

    pid: int
    used_bytes: int | None
    standing: Standing | None = None
    tenant: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A physical GPU, by NVML."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    busy_ratio: float | None
    mig: bool
    processes: tuple[CardProcess, ...]


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver and its cards, in nvidia-smi's order."""

    version: str
    cards: tuple[Card, ...]
    simulated: bool


class LatencyClass(Enum):
    """Whose work on a card comes first."""

    LATENCY = "latency"
    NORMAL = "normal"
    BATCH = "batch"


DEFAULT_WEIGHT = 100


@dataclass(frozen=True, slots=True)
class Limit:
    """What a tenant may use of one card. `time_percent` caps its GPU time; None is no cap."""

    uuid: str
    memory_bytes: int | None
    card_bytes: int
    context_bytes: int | None
    time_percent: int | None = None
    weight: int = DEFAULT_WEIGHT
    latency_class: LatencyClass = LatencyClass.NORMAL


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits page of a tenant."""

    tenant: str
    allow_on_error: bool
    node_devices: int
    devices: tuple[Limit, ...]
    epoch: int = 1
    lease_ns: int | None = None


@dataclass(frozen=True, slots=True)
class KindBytes:
    """What a process's allocations are, in the order of region.h's enum hm_kind."""

    linear: int
    managed: int
    pool: int
    virtual: int
    array: int
    graph: int
    external: int

    @property
    def pools(self) -> int:
        """Bytes that allocators of the driver hold reserved for reuse: stream-ordered pools and graph memory."""
        return self.pool + self.graph


@dataclass(frozen=True, slots=True)
class Use:
    """One process's use of one device of its tenant. Charged are granted and overhead."""

    granted_bytes: int
    used_bytes: int
    overhead_bytes: int
    kinds: KindBytes
    denials: int
    contexts: int
    throttled_ns: int = 0
    ahead_bytes: int = 0
    """Part of the overhead that is reserved and was not yet seen on the card."""
    bus_bytes: int = 0
    """Copied over the bus, both ways."""
    busy: bool = False
    """Work of it that is metered is outstanding, or ended a moment ago."""
    waiting: int = 0
    """Threads that wait for the gate to open."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A living process of a tenant that uses CUDA; `pid` is as the process sees itself, in namespace `pid_ns`."""

    index: int
    pid: int
    pid_ns: int
    command: str
    uses: tuple[Use, ...]


class GateState(Enum):
    """What a tenant's launches on a card meet."""

    CLOSED = "closed"
    """They wait."""
    WINDOWED = "windowed"
    """They pass, metered, with little work ahead of the card."""
    FREE = "free"
    """They pass, unmetered: nobody else wants the card, and there is no cap on GPU time."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What its arbiter writes of a tenant's gate to one card; times and counts are ever. Nothing, to begin with."""

    state: GateState = GateState.CLOSED
    charged_ns: int = 0
    """GPU time that the tenant had, as far as it was metered."""
    free_ns: int = 0
    """Time with the gate free; the present stretch is added when it ends."""
    slots: int = 0
    misses: int = 0
    """Slots whose work did not end in time."""
    unpreemptible: bool = False
    lease_ns: int | None = None
    """CLOCK_MONOTONIC until which the arbiter answers for it; None: nobody does."""


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What the usage page says of a device for the whole tenant."""

    estimated: bool
    context_bytes: int | None
    gate: Gate = Gate()
    """That of a process of the tenant's own, which arbitrates where no supervisor does."""
    waits: tuple[int, ...] = ()
    """Waits for the gate by length, ever: the first are under 1 us, the next under 2, 4, ..., the last are longer."""
    ganged: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage page of a tenant: its living processes."""

    devices: tuple[DeviceUsage, ...]
    slots: tuple[Slot, ...]


class Level(Enum):
    """How far a cap holds."""

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Enforcement:
    """How far a tenant's cap holds, and why not further, or what else there is to say of it."""

    level: Level
    reason: str | None


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """What is noted beside the pages. Its processes descend from `pid`, or are in `cgroup`; `uid` owns the tenant.

    `pid` is its `hamirt run`; with a `start`, clock ticks since boot, it is the init process of a container.
    """

    id: str
    name: str
    pid: int
    command: tuple[str, ...]
    simulated: bool
    unenforced: str | None
    uid: int = 0
    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None
    start: int | None = None


@dataclass(frozen=True, slots=True)
class TenantPages:
    """A tenant's folder as it was read: each part, or None where it could not be read, and then why."""

    id: str
    folder: Path
    record: TenantRecord | None
    limits: Limits | None
    usage: Usage | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A process of a tenant on a card. `pid` is None where it is not known in this PID namespace."""

    pid: int | None
    pid_inside: int
    command: str
    charged_bytes: int
    card_bytes: int | None


class ShareSource(Enum):
    """How it is known which share of GPU time a tenant had."""

    METERED = "metered"
    """By its gate."""
    SAMPLED = "sampled"
    """At least in part by the card's utilization, of a tenant that had it to itself."""


@dataclass(frozen=True, slots=True)
class Metering:
    """What was seen of a tenant's GPU time on a card. Sums and counts are ever."""

    gate: GateState
    supervised: bool = False
    """A supervisor answers for the gate."""
    charged_seconds: float = 0.0
    """GPU time that it had, as far as it was metered."""
    supervised_seconds: float = 0.0
    """What of it the supervisor charged; the rest is the word of the tenant's own processes."""
    free_seconds: float = 0.0
    """Time with its gate free; the present stretch is added when it ends."""
    slots: int = 0
    misses: int = 0
    """Slots whose work did not end in time."""
    unpreemptible: bool = False
    """So many of them of late that its neighbours suffer."""
    ganged: bool = False
    """Its processes wait for each other on the card, so that it gets all its cards together."""
    waiting: int = 0
    """Threads that wait for the gate to open now."""
    waits: tuple[int, ...] = ()
    """Waits for the gate by length, as in DeviceUsage."""
    wait_p50_seconds: float | None = None
    wait_p99_seconds: float | None = None
    """So long did 50, 99 of 100 waits take at most, of the last minute or, if nobody looked a minute ago, of all."""


@dataclass(frozen=True, slots=True)
class TenantCard:
    """A tenant on one of its cards. `index` is None where NVML does not show the card."""

    index: int | None
    uuid: str
    cap_bytes: int | None
    card_bytes: int
    allocation_bytes: int
    pool_bytes: int
    overhead_bytes: int
    footprint_bytes: int | None
    denials: int
    over: bool
    enforcement: Enforcement
    processes: tuple[ProcessView, ...]
    time_percent: int | None = None
    weight: int = DEFAULT_WEIGHT
    latency_class: LatencyClass = LatencyClass.NORMAL
    busy_ratio: float | None = None
    """Share of GPU time between the last two looks; None where it is not known."""
    busy_source: ShareSource | None = None
    throttled_seconds: float = 0.0
    """How long its processes' launches were held back."""
    bus_bytes: int = 0
    """Copied over the bus by its processes, both ways."""
    unshimmed: tuple[CardProcess, ...] = ()
    """Its processes on the card that the shim is not in."""
    ahead_bytes: int = 0
    """Part of the overhead that is reserved and was not yet seen on the card."""
    time_enforcement: Enforcement | None = None
    """How far what was asked for of GPU time holds: a cap, a weight or a class; None where nothing was."""
    metering: Metering | None = None
    """None where its pages can't be read."""

    @property
    def used_bytes(self) -> int:
        """What is held against the cap: allocations, pools and overhead."""
        return self.allocation_bytes + self.pool_bytes + self.overhead_bytes

    @property
    def drift_bytes(self) -> int | None:
        """What NVML shows beyond what the ledger takes to be on the card; None where NVML does not show all of it."""
        if self.footprint_bytes is None:
            return None
        return self.footprint_bytes - (self.used_bytes - self.ahead_bytes)

    @property
    def over_bytes(self) -> int:
        """How much more than its cap it holds, by the ledger or by NVML, whichever says more."""
        if self.cap_bytes is None:
            return 0
        return max(0, max(self.used_bytes, self.footprint_bytes or 0) - self.cap_bytes)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as `hamirt status` shows it."""

    id: str
    name: str
    simulated: bool
    problem: str | None
    cards: tuple[TenantCard, ...]
    container: str | None = None
    pod: str | None = None


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The daemon that a node's state came from. `open_cards`: by UUID, those whose tenants take no turns at present."""

    version: str
    pid: int
    uptime_seconds: float
    policy: str
    """`report` or `kill`: what it does about a violation."""
    open_cards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """How the supervisor itself does, for its metrics. Counts and sums are since it started."""

    started_unix_seconds: float
    nvml_answers: bool
    samples: int
    sample_failures: int
    sample_seconds: float
    last_sample_unix_seconds: float | None
    requests: Mapping[str, int]
    """API requests answered, by HTTP status."""
    events: Mapping[str, int]
    """What happened, by kind: tenant_created, tenant_changed, tenant_removed, violation, killed."""
    handover_seconds: Mapping[str, float]
    """GPU time that went to changes from one tenant to the next while another waited, by the card's UUID."""


@dataclass(frozen=True, slots=True)
class Node:
    """All that `hamirt status` shows. `driver` is None where there is none, and `problem` says why.

    `supervisor` is None where the pages and NVML were read directly.
    """

    driver: Driver | None
    tenants: tuple[Tenant, ...]
    inside: bool
    problem: str | None
    supervisor: Supervisor | None = None
