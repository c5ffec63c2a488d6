"""From the command line to a tenant's limits: which cards, and how much of each. Decides, and touches nothing."""

from collections.abc import Mapping, Sequence

from hamirt import contexts
from hamirt.errors import HamirtError
from hamirt.model import DEFAULT_WEIGHT, Card, Driver, LatencyClass, Limit, Limits
from hamirt.units import Cap, format_size, parse_cap


def plan_limits(
    driver: Driver,
    gpus: Sequence[str],
    mem: str | None,
    *,
    allow_on_error: bool,
    measured: Mapping[str, int],
    predicted_context_bytes: int,
    reserve_bytes: int,
    time_percent: int | None = None,
    weight: int = DEFAULT_WEIGHT,
    latency_class: LatencyClass = LatencyClass.NORMAL,
) -> Limits:
    """Return the limits page for `--gpu` and `--mem` as they were typed, and what holds for each of the cards.

    `measured` holds context sizes by contexts.key; where a card's is missing, `predicted_context_bytes` is assumed.
    Raises HamirtError for what is not there, doesn't fit, or can't be kept.
    """
    cards = choose_cards(driver, gpus)
    caps = resolve_caps(mem, cards)
    limits = []
    for card in cards:
        context_bytes = measured.get(contexts.key(driver, card))
        cap = caps.get(card.uuid)
        if cap is not None:
            check_cap(cap, card, context_bytes, predicted_context_bytes, reserve_bytes)
        cap_bytes = None if cap is None else cap.resolve(card.total_bytes)
        percent = time_cap(time_percent)
        limits.append(Limit(card.uuid, cap_bytes, card.total_bytes, context_bytes, percent, weight, latency_class))
    return Limits("", allow_on_error, len(driver.cards), tuple(limits))


def choose_cards(driver: Driver, gpus: Sequence[str]) -> tuple[Card, ...]:
    """Return the cards named by index or UUID, in nvidia-smi's order; all of them if none is named."""
    if not driver.cards:
        raise HamirtError("the driver shows no GPU: see what nvidia-smi -L says")
    chosen: dict[str, Card] = {}
    for name in gpus:
        card = find_card(driver, name)
        if card.uuid in chosen:
            raise HamirtError(f"GPU {card.index} ({card.uuid}) is named twice: name each GPU once")
        chosen[card.uuid] = card
    cards = tuple(card for card in driver.cards if not gpus or card.uuid in chosen)
    for card in cards:
        if card.mig:
            raise HamirtError(
                f"GPU {card.index} is in MIG mode, which hamirt can't divide further for now: "
                "choose other cards with --gpu, or turn MIG off with nvidia-smi -mig 0"
            )
    return cards


def find_card(driver: Driver, name: str) -> Card:
    """Return the card with this index or UUID. Raises HamirtError where there is none."""
    if name.upper().startswith("MIG-"):
        raise HamirtError(f"{name} is a MIG instance, which hamirt can't divide further for now: name a whole GPU")
    for card in driver.cards:
        if name.lower() in (str(card.index), card.uuid.lower()):
            return card
    there = ", ".join(f"{card.index} ({card.uuid})" for card in driver.cards)
    raise HamirtError(f"there is no GPU {name!r} on this node: there is {there}")


def resolve_caps(mem: str | None, cards: Sequence[Card]) -> dict[str, Cap]:
    """Return the caps by UUID for `8GiB`, `50%` or `0=8GiB,1=16GiB`; nothing without `--mem`.

    Raises HamirtError unless each of the cards gets one size.
    """
    if mem is None:
        return {}
    if "=" not in mem:
        cap = parse_cap(mem)
        return {card.uuid: cap for card in cards}
    caps: dict[str, Cap] = {}
    for part in mem.split(","):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise HamirtError(f"--mem {mem!r} mixes two forms: write one size for all GPUs, or INDEX=SIZE for each")
        card = next((card for card in cards if name.lower() in (str(card.index), card.uuid.lower())), None)
        if card is None:
            given = ", ".join(str(card.index) for card in cards)
            raise HamirtError(f"--mem names GPU {name!r}, which this tenant doesn't get: it gets {given}")
        if card.uuid in caps:
            raise HamirtError(f"--mem names GPU {card.index} twice: give each GPU one size")
        caps[card.uuid] = parse_cap(size)
    for card in cards:
        if card.uuid not in caps:
            raise HamirtError(
                f"--mem names no size for GPU {card.index}, which this tenant gets too: "
                f"add {card.index}=SIZE, or choose the cards with --gpu"
            )
    return caps


def time_cap(percent: int | None) -> int | None:
    """Return the cap on GPU time that this is: all of it is no cap."""
    return None if percent == 100 else percent


def check_cap(cap: Cap, card: Card, context_bytes: int | None, predicted_bytes: int, reserve_bytes: int) -> None:
    """Raise HamirtError for a cap that is more than the card, or leaves no room beside a context.

    `context_bytes` is a context's measured size; without one `predicted_bytes` is assumed.
    """
    cap_bytes = cap.resolve(card.total_bytes)
    if cap_bytes > card.total_bytes:
        raise HamirtError(
            f"--mem {cap.text} is more than GPU {card.index} has ({format_size(card.total_bytes)}): "
            "give less, or leave --mem out for the whole card"
        )
    least = (context_bytes or predicted_bytes) + reserve_bytes
    if cap_bytes <= least:
        source = "takes on this card" if context_bytes else "may take on a card that none was measured on yet"
        raise HamirtError(
            f"--mem {cap.text} leaves no memory on GPU {card.index}: a CUDA context {source} "
            f"{format_size(context_bytes or predicted_bytes)}, and {format_size(reserve_bytes)} are kept for modules; "
            f"give more than {format_size(least)}"
        )
