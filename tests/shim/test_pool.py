"""What a pool is charged, on a driver that says what it is told: its own figure may fall before the memory is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shim.conftest import MIB, Build, Node, Tenant, card_uuid


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
