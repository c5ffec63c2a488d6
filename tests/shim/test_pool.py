"""What a pool is charged, on a driver that says what it is told: its own figure may fall before the memory is free."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shim.conftest import MIB, TIMEOUT_S, Build, Node, Tenant, card_uuid


@pytest.fixture
def tenant(node: Node) -> Tenant:
    return node.tenant()


@pytest.fixture
def pool(node: Node, build: Build, tenant: Tenant, tmp_path: Path) -> Callable[[str, int], int]:
    """Have the program do something; return what the tenant is charged then, in MiB."""
    driver = build("pool_driver", "-Wl,-soname,libcuda.so.1", shared=True, driver=False)
    (tmp_path / "libcuda.so.1").symlink_to(driver)
    extra = {"LD_LIBRARY_PATH": str(tmp_path), "POOL_UUID": card_uuid(0)}
    process = node.start([build("pool_user", driver=False)], tenant, extra=extra)
    assert process.stdin is not None
    assert process.stdout is not None
    to, answers = process.stdin, process.stdout
    assert answers.readline() == "0\n"

    def tell(word: str, mib: int = 0) -> int:
        to.write(f"{word} {mib}\n")
        to.flush()
        assert answers.readline() == "0\n"
        return tenant.used_bytes() // MIB

    return tell


def test_a_pool_that_grows_is_charged_at_once(pool: Callable[..., int]) -> None:
    pool("reserved", 64)
    assert pool("alloc", 1) == 64

    pool("reserved", 96)
    assert pool("alloc", 1) == 96


@pytest.mark.parametrize("gives_back", ["wait", "trim"])
def test_a_pool_that_shrinks_is_believed_once_its_memory_is_back(pool: Callable[..., int], gives_back: str) -> None:
    pool("reserved", 96)
    pool("alloc", 1)

    pool("reserved", 32)
    assert pool("alloc", 1) == 96

    assert pool(gives_back) == 32
    assert pool("alloc", 1) == 32


def test_what_another_thread_may_be_giving_back_stays_charged(pool: Callable[..., int]) -> None:
    pool("reserved", 96)
    pool("alloc", 1)
    pool("hold")

    pool("reserved", 32)
    assert pool("wait") == 96

    assert pool("let") == 32


def test_a_synchronization_that_began_before_the_first_pool_counts(pool: Callable[..., int]) -> None:
    pool("hold")
    pool("reserved", 96)
    pool("alloc", 1)

    pool("reserved", 32)
    assert pool("wait") == 96

    assert pool("let") == 32


def test_what_grows_comes_on_top_of_what_is_being_given_back(pool: Callable[..., int]) -> None:
    pool("reserved", 96)
    pool("alloc", 1)
    pool("hold")

    pool("reserved", 64)
    pool("grows", 32)
    assert pool("alloc", 1) == 128

    assert pool("let") == 96


def test_a_wait_without_end_does_not_pile_up_charges(pool: Callable[..., int]) -> None:
    pool("hold")
    charged = []
    for _ in range(8):
        pool("grows", 32)
        charged.append(pool("alloc", 1))
        pool("reserved", 0)
        charged.append(pool("wait"))

    assert max(charged) <= 64
    assert pool("let") == 0


def test_a_wait_without_end_keeps_nothing_charged_for_long(pool: Callable[..., int]) -> None:
    pool("reserved", 96)
    pool("alloc", 1)
    pool("hold")

    pool("reserved", 32)
    assert pool("wait") == 96

    deadline = time.monotonic() + TIMEOUT_S
    while pool("wait") != 32:
        assert time.monotonic() < deadline


def test_a_pool_is_charged_until_it_is_destroyed_and_given_back(pool: Callable[..., int]) -> None:
    pool("reserved", 96)
    pool("alloc", 1)
    pool("hold")

    assert pool("destroy") == 96

    assert pool("let") == 0
