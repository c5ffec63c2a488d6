"""Folders of tenants: their names, and that a failure leaves nothing behind."""

import errno
import fcntl
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


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[]",
        "{",
        "null",
        '{"id": "t-000001"}',
        "[" * 100_000,
        '{"id": {}, "name": [], "pid": "x"}',
        "\x00",
        "9" * 5000,
    ],
)
def test_a_damaged_note_is_no_record(tmp_path: Path, note: str) -> None:
    tenant = create(tmp_path, "t")
    (tenant.folder / "tenant.json").write_text(note)

    assert tenants.read_record(tenant.folder) is None
    os.close(tenant.alive_fd)


@pytest.mark.parametrize("changed", [{"id": "other-000001"}, {"name": "a/b"}, {"pid": None}, {"command": 3}])
def test_a_note_that_is_wrong_in_one_field_is_no_record(tmp_path: Path, changed: dict[str, object]) -> None:
    tenant = create(tmp_path, "t")
    note = tenants.read_note(tenant.folder)
    assert tenants.record_of(note, tenant.id) is not None

    assert tenants.record_of(note | changed, tenant.id) is None
    os.close(tenant.alive_fd)


def test_a_note_is_not_reached_through_a_link_or_a_fifo(tmp_path: Path) -> None:
    tenant = create(tmp_path, "t")
    note = tenant.folder / "tenant.json"
    note.rename(tenant.folder / "there")
    note.symlink_to("there")
    linked = tenants.read_note(tenant.folder)
    note.unlink()
    os.mkfifo(note)

    assert (linked, tenants.read_note(tenant.folder)) == ({}, {})
    os.close(tenant.alive_fd)


def test_a_served_root_is_swept_by_its_daemon_alone(tmp_path: Path) -> None:
    tenant = create(tmp_path, "t")
    os.close(tenant.alive_fd)
    with open(tmp_path / tenants.DAEMON_LOCK, "w") as daemon:
        fcntl.flock(daemon, fcntl.LOCK_EX)
        served = [pages.id for pages in tenants.list_pages(tmp_path)]

    assert (served, tenants.list_pages(tmp_path)) == ([tenant.id], ())


@pytest.mark.parametrize(
    "identity", ["web", "web-12345", "web-1234567", "web-00000G", "-000001", "a/b-000001", "\n-000001"]
)
def test_what_is_no_id(identity: str) -> None:
    with pytest.raises(HamirtError):
        tenants.name_in(identity)


def test_an_id_is_made_of_a_name() -> None:
    assert tenants.name_in(tenants.make_identity("a-b.c")) == "a-b.c"
