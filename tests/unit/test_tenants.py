"""Folders of tenants: their names, and that a failure leaves nothing behind."""

import errno
import os
from pathlib import Path

import pytest

from hamirt import pages, tenants
from hamirt.errors import HamirtError
from hamirt.model import Limit, Limits, TenantRecord
from hamirt.units import GIB

LIMITS = Limits("", False, 1, (Limit("GPU-aa", 8 * GIB, 80 * GIB, None),))
NOTES = tenants.Notes(simulated=False, unenforced=None)


def create(root: Path, name: str | None = None, command: str = "/usr/bin/train") -> tenants.OwnTenant:
    return tenants.create(root, name, (command,), LIMITS, NOTES)


def test_a_tenant_is_made_read_and_removed(tmp_path: Path) -> None:
    tenant = create(tmp_path)

    (pages,) = tenants.list_pages(tmp_path)
    record = TenantRecord(
        tenant.id, "train-1", os.getpid(), ("/usr/bin/train",), simulated=False, unenforced=None, uid=os.geteuid()
    )
    assert (pages.id, pages.folder, pages.record, pages.problem) == (tenant.id, tenant.folder, record, None)
    assert (tenant.name, tenant.folder) == ("train-1", tmp_path / "tenants" / tenant.id)
    assert pages.limits == Limits("train-1", False, 1, LIMITS.devices)
    tenants.remove(tenant)
    assert tenants.list_pages(tmp_path) == ()
    os.close(tenant.alive_fd)


def test_a_folder_is_swept_once_nothing_holds_it(tmp_path: Path) -> None:
    tenant = create(tmp_path, "t")
    assert [pages.id for pages in tenants.list_pages(tmp_path)] == [tenant.id]

    os.close(tenant.alive_fd)

    assert tenants.list_pages(tmp_path) == ()
    assert list((tmp_path / "tenants").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python", "python-1"),
        ("./my prog.sh", "my-prog.sh-1"),
        ("/opt/x/é", "tenant-1"),
        ("." * 3, "tenant-1"),
        ("x" * 300, "x" * 40 + "-1"),
    ],
)
def test_a_name_comes_from_the_command(tmp_path: Path, command: str, name: str) -> None:
    tenant = create(tmp_path, command=command)

    tenants.check_name(tenant.name)
    assert tenant.name == name
    os.close(tenant.alive_fd)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "-x", "é", "a\n", "x" * 64])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(HamirtError, match="can't name a tenant"):
        tenants.check_name(name)


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "has no room"), (errno.EDQUOT, "has no room"), (errno.EIO, "can't be set up")]
)
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def fail(path: Path) -> None:
        path.touch()
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pages, "create_usage", fail)

    with pytest.raises(HamirtError, match=says):
        create(tmp_path)
    assert list((tmp_path / "tenants").iterdir()) == []


def test_tenants_of_others_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(HamirtError, match=r"can't be read \(Permission denied\): ask as their user"):
        tenants.list_pages(tmp_path)
