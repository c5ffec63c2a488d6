"""Where state and libraries lie, and that nobody else's folder is used."""

import os
from pathlib import Path

import pytest

from hamirt import config, contexts
from hamirt.errors import HamirtError
from hamirt.units import MIB


def test_a_given_root_wins(tmp_path: Path) -> None:
    assert config.root_path({"HAMIRT_ROOT": str(tmp_path), "XDG_RUNTIME_DIR": "/x"}) == tmp_path


def test_root_uses_the_system_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    assert config.root_path({}) == Path("/run/hamirt")


def test_others_use_their_runtime_folder_or_tmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)

    assert config.root_path({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "hamirt"
    assert config.root_path({"XDG_RUNTIME_DIR": str(tmp_path / "gone")}) == Path("/tmp/hamirt-1234")
    assert config.root_path({}) == Path("/tmp/hamirt-1234")


def test_a_root_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    config.make_root(tmp_path / "a" / "root")

    assert (tmp_path / "a" / "root").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_root_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)

    with pytest.raises(HamirtError, match="other users can write"):
        config.make_root(tmp_path)


def test_a_root_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()

    with pytest.raises(HamirtError, match="is not a folder"):
        config.make_root(tmp_path / "link")
    with pytest.raises(HamirtError, match="can't be made"):
        config.make_root(tmp_path / "file")


def test_a_root_of_another_user_is_refused(tmp_path: Path, root_user: None) -> None:
    os.chown(tmp_path, 1234, 1234)

    with pytest.raises(HamirtError, match="belongs to user 1234, not to you"):
        config.make_root(tmp_path)


def test_the_tenant_is_named_by_the_environment() -> None:
    assert config.tenant_dir({}) is None
    assert config.tenant_dir({"HAMIRT_TENANT_DIR": "/x"}) == Path("/x")


def test_measured_contexts_are_kept_and_the_incredible_is_not(tmp_path: Path) -> None:
    contexts.note(tmp_path, {"580 H100": 520 * MIB, "580 A100": 1})
    contexts.note(tmp_path, {"580 L4": 200 * MIB, "580 H100": 530 * MIB})

    assert contexts.read(tmp_path) == {"580 H100": 530 * MIB, "580 L4": 200 * MIB}
    assert [path.name for path in tmp_path.iterdir()] == ["contexts.json"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"context_bytes": 3}', '{"context_bytes": {"a": "b", "c": -1}}', "\xff"]
)
def test_a_damaged_file_of_contexts_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "contexts.json").write_bytes(content.encode("latin-1"))

    assert contexts.read(tmp_path) == {}


def test_contexts_that_cannot_be_written_do_no_harm(tmp_path: Path) -> None:
    contexts.note(tmp_path / "missing", {"580 H100": 520 * MIB})
