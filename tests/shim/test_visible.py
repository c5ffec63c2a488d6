"""CUDA_VISIBLE_DEVICES: what the driver shows of what was given, and the program's own value left as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.shim.conftest import PROGRAMS, Node, Tenant, card_uuid
from tests.shim.view import Shell

CARDS = 4
NO_DEVICE = 100
TWICE = -1  # whatever the driver says of a device that is named twice
VARIABLE = "CUDA_VISIBLE_DEVICES"

Open = Callable[..., Shell]


@pytest.fixture
def open_shell(node: Node) -> Open:
    """Start a shell in a tenant that was given some of four cards, with a value of the variable."""
    node.cards = CARDS

    def start(tenant: Tenant | None, value: str | None = None, **extra: str) -> Shell:
        if value is not None:
            extra[VARIABLE] = value
        return Shell(node.start([sys.executable, PROGRAMS / "view_shell.py"], tenant, extra=extra))

    return start


def uuids(*cards: int) -> list[str]:
    return [card_uuid(card) for card in cards]


# The value, and the cards of a tenant that was given 1 and 3 which CUDA shows, or the answer of cuInit.
WITHIN = [
    (None, [1, 3]),
    ("0", [1]),
    ("1", [3]),
    ("1,0", [3, 1]),
    ("0,1", [1, 3]),
    (" 1 ,0", [3, 1]),
    ("+1", [3]),
    ("01,0x", [3, 1]),
    ("0,2,1", [1]),
    ("0,,1", [1]),
    ("0,-1,1", [1]),
    ("2", NO_DEVICE),
    ("3", NO_DEVICE),
    (",0", NO_DEVICE),
    ("", NO_DEVICE),
    ("-1", NO_DEVICE),
    ("none", NO_DEVICE),
    ("0,0", TWICE),
    ("1,0,1", TWICE),
    (card_uuid(3), [3]),
    (f"{card_uuid(3)},{card_uuid(1)}", [3, 1]),
    (f"{card_uuid(3)},{card_uuid(0)},{card_uuid(1)}", [3]),
    (f"{card_uuid(3)},0", [3]),
    (f"0,{card_uuid(3)}", [1]),
    (f"{card_uuid(3)},{card_uuid(3)}", TWICE),
    ("GPU-" + card_uuid(3)[4:].upper(), [3]),
    (card_uuid(3) + " ", [3]),
    (card_uuid(0), NO_DEVICE),
    (card_uuid(1)[:-1], NO_DEVICE),  # of both
    ("GPU-", NO_DEVICE),
    ("GPU-0", NO_DEVICE),
    (card_uuid(3).lower(), NO_DEVICE),
    (" " + card_uuid(3), NO_DEVICE),
    ("MIG-" + card_uuid(3), NO_DEVICE),
]


@pytest.mark.parametrize(("value", "cards"), WITHIN)
def test_the_value_selects_within_what_was_given(
    node: Node, open_shell: Open, value: str | None, cards: list[int] | int
) -> None:
    with open_shell(None, "0,0") as shell:
        answers = {NO_DEVICE: NO_DEVICE, TWICE: shell("devices()")}
    with open_shell(node.tenant(devices=(1, 3)), value) as shell:
        shown = shell("devices()")
        left = shell(f"[env('{VARIABLE}'), child_env('{VARIABLE}')]")

    assert shown == (uuids(*cards) if isinstance(cards, list) else answers[cards])
    assert left == [value, "unset" if value is None else value]


def test_a_prefix_that_names_one_card_is_enough(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(devices=(3,))

    with open_shell(tenant, card_uuid(3)[:10]) as shell:
        assert shell("devices()") == uuids(3)


@pytest.mark.parametrize("value", [None, "2,0", "0,0", "", card_uuid(2), "9"])
def test_who_was_given_all_cards_sees_what_the_driver_shows(node: Node, open_shell: Open, value: str | None) -> None:
    with open_shell(None, value) as shell:
        native = shell("devices()")

    with open_shell(node.tenant(devices=range(CARDS)), value) as shell:
        assert shell("devices()") == native
        assert shell(f"env('{VARIABLE}')") == value


@pytest.mark.parametrize("value", [None, "1"])
def test_during_cuinit_the_environment_is_whole(node: Node, open_shell: Open, value: str | None) -> None:
    shell = open_shell(node.tenant(devices=(1, 3)), value, HAMIRT_SIM_FAULT="cuInit:delay=400000", OTHER="here")

    with shell:
        code, seen = shell(f"init_beside(lambda: [env('{VARIABLE}'), env('OTHER'), env('HAMIRT_SIM')])")

        assert code == 0
        assert seen == [",".join(uuids(1, 3) if value is None else uuids(3)), "here", str(CARDS)]
        assert shell(f"[env('{VARIABLE}'), env('OTHER')]") == [value, "here"]


@pytest.mark.parametrize("value", [None, "1"])
def test_what_another_thread_sets_during_cuinit_stays(node: Node, open_shell: Open, value: str | None) -> None:
    shell = open_shell(node.tenant(devices=(1, 3)), value, HAMIRT_SIM_FAULT="cuInit:delay=400000")
    more = "[libc.setenv(f'MORE_{i}'.encode(), b'x', 1) for i in range(100)]"

    with shell:
        shell(f"init_beside(lambda: {more})")

        assert shell("[env(f'MORE_{i}') for i in range(100)]") == ["x"] * 100
        assert shell(f"[env('{VARIABLE}'), child_env('{VARIABLE}')]") == [value, value or "unset"]


def test_a_value_set_during_cuinit_by_another_thread_stays(node: Node, open_shell: Open) -> None:
    shell = open_shell(node.tenant(devices=(1, 3)), "0", HAMIRT_SIM_FAULT="cuInit:delay=400000")

    with shell:
        shell(f"init_beside(lambda: libc.setenv(b'{VARIABLE}', b'1', 1))")

        assert shell(f"env('{VARIABLE}')") == "1"


@pytest.mark.parametrize("value", [None, "1"])
def test_many_threads_call_cuinit_at_once(node: Node, open_shell: Open, value: str | None) -> None:
    with open_shell(node.tenant(devices=(1, 3)), value) as shell:
        assert shell("init_together(16)") == [0]
        assert shell("devices()") == (uuids(1, 3) if value is None else uuids(3))
        assert shell(f"env('{VARIABLE}')") == value


def test_a_second_try_reads_the_variable_again(node: Node, open_shell: Open) -> None:
    with open_shell(node.tenant(devices=(1, 3)), None, HAMIRT_SIM_FAULT="cuInit:1=999") as shell:
        assert shell("[cuda.cuInit(0), env('" + VARIABLE + "')]") == [999, None]
        assert shell("devices()") == uuids(1, 3)
        assert shell("[cuda.cuInit(0) for _ in range(3)]") == [0, 0, 0]
        assert shell(f"env('{VARIABLE}')") is None
