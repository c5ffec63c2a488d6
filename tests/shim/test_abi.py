"""The committed lists of entry points against the headers, and every entry that may touch memory hooked or excused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from abi import entries
from abi.entries import LIBRARIES, Library

both = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)


@both
def test_the_list_is_what_the_pinned_header_declares(library: Library) -> None:
    assert library.listing.read_text() == entries.render(library), "run python abi/entries.py write"


@both
def test_the_header_is_the_pinned_one(library: Library) -> None:
    pins = (entries.HERE.parent / "pyproject.toml").read_text()

    pinned = set(re.findall(rf'"{library.wheel}==([^"]+)"', pins))

    assert {f"{library.wheel} {pin}" for pin in pinned} == set(
        re.findall(r"\((.*)\)", library.listing.read_text().splitlines()[0])
    )


@both
def test_what_may_touch_memory_is_hooked_or_excused(library: Library) -> None:
    names = entries.listed(library)

    excused = {name for name in entries.passed() if name.startswith(library.name[:2])}

    assert entries.undecided(library, names) == set(), "hook them, or excuse them in abi/passed.txt"
    assert excused & set(entries.hooked(library)) == set(), "hooked now: take them out of abi/passed.txt"
    assert excused - entries.relevant(library, names) == set(), "unknown, or nothing to do with memory"


@both
def test_hooks_are_entry_points_of_the_header(library: Library) -> None:
    hooked = entries.hooked(library)

    assert len(hooked) > 20
    assert len(hooked) == len(set(hooked))
    assert set(hooked) - set(entries.listed(library)) == set()


@both
def test_the_twins_of_a_hook_are_hooked(library: Library) -> None:
    hooked = set(entries.hooked(library))
    families = {entries.family(name) for name in hooked}

    missing = {name for name in entries.listed(library) if entries.family(name) in families} - hooked

    assert missing == set(), "another version or stream mode of a hook"


def test_every_reason_is_used_and_explained() -> None:
    text = entries.PASSED.read_text()

    explained = re.findall(r"^# (\w+) {2,}[A-Z]", text, re.MULTILINE)

    assert explained == list(entries.REASONS)
    assert set(entries.passed().values()) == set(entries.REASONS)


def test_an_entry_of_a_newer_header_has_to_be_decided() -> None:
    cuda, nvml = LIBRARIES
    newer = ["cuMemAllocAsync_v7", "cuTensorHeapCreate", "cuGreenPoolTrim", "cuFuncGetColour"]

    assert entries.undecided(cuda, newer) == set(newer[:3])
    assert entries.undecided(nvml, ["nvmlDeviceGetMemoryInfo_v9", "nvmlDeviceGetColour"]) == {
        "nvmlDeviceGetMemoryInfo_v9"
    }


def test_a_reason_out_of_the_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "passed.txt"
    monkeypatch.setattr(entries, "PASSED", bad)

    for line in ("cuMemFreeHost nice", "cuMemFreeHost", "cuMemFreeHost host\ncuMemFreeHost host"):
        bad.write_text(line + "\n")
        with pytest.raises(ValueError, match=r"passed.txt:\d: not a new name and one of"):
            entries.passed()
