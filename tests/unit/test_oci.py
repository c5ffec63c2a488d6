"""What the hook decides by itself, and that it starts quickly."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt import hook_io, oci
from hamirt.errors import HamirtError
from tests.support import TOP

MEMORY = "hamirt.io/memory"
Precreate = Callable[..., tuple[int, bytes]]
# what the interpreter does without, and costs a millisecond or more
SLOW = {
    "argparse", "click", "contextlib", "dataclasses", "enum", "functools", "http.client", "json", "pathlib", "re",
    "signal", "socket", "subprocess", "typing",
}  # fmt: skip


def test_the_hook_imports_nothing_slow() -> None:
    script = f"import sys; sys.path.insert(0, {str(TOP)!r}); import hamirt.oci, hamirt.mounts; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60
    ).stdout

    assert "hamirt.mounts" in loaded.split()
    assert SLOW & set(loaded.split()) == set()
    assert {name for name in loaded.split() if name.startswith("hamirt")} == {
        "hamirt", "hamirt.errors", "hamirt.hook_io", "hamirt.mounts", "hamirt.oci",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("annotations", "settings", "asks"),
    [
        ({}, {}, False),
        ({MEMORY: "8GiB"}, {}, True),
        ({"hamirt.io/memroy": "8GiB"}, {}, True),  # the daemon warns
        ({}, {MEMORY: "8GiB"}, True),
        ({"nvidia.com/use-gputype": "H100"}, {}, False),
        ({MEMORY: "8GiB", "io.kubernetes.cri.container-type": "sandbox"}, {}, False),
        ({MEMORY: "8GiB", "io.kubernetes.cri-o.ContainerType": "sandbox"}, {MEMORY: "8GiB"}, False),
        ({MEMORY: "8GiB", "io.kubernetes.cri.container-type": "container"}, {}, True),
    ],
)
def test_a_container_asks(annotations: dict[str, str], settings: dict[str, str], asks: bool) -> None:
    assert oci.asks(annotations, settings) is asks


TEXTS = st.dictionaries(st.text(), st.text() | st.integers())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), TEXTS | st.text() | st.integers()))
def test_what_the_hook_writes_is_json(value: dict[str, Any]) -> None:
    assert json.loads(hook_io._json(value)) == value


@given(st.dictionaries(st.text(), VALUES), st.sampled_from(["", " ", "\n\t"]))
def test_what_is_json_the_hook_reads(value: dict[str, Any], around: str) -> None:
    for ascii_only in (True, False):
        content = json.dumps(value, ensure_ascii=ascii_only)
        assert hook_io.read_object(f"{around}{content}{around}".encode(errors="surrogatepass"), "it") == value


@given(st.binary() | st.sampled_from([b"{} {}", b"{}x", b"", b"[]", b"1", b'{"a":}', b"{'a': 1}", b"[" * 100_000]))
def test_what_is_no_object_the_hook_refuses(content: bytes) -> None:
    try:
        expected = json.loads(content.decode())
    except (ValueError, RecursionError):
        expected = None
    if isinstance(expected, dict):
        return

    with pytest.raises(HamirtError, match="it is no JSON object"):
        hook_io.read_object(content, "it")


@pytest.fixture
def precreate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Precreate:
    """Calls the hook of that name; returns its exit status and its output."""
    program = tmp_path / "hamirt-oci-hook"
    program.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])

    def call(content: bytes, *words: str) -> tuple[int, bytes]:
        output = io.BytesIO()
        monkeypatch.setattr(oci, "read_input", lambda: content)
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=output))
        status = oci.main(["precreate", *words])
        return status, output.getvalue()

    return call


def test_a_configuration_that_asks_for_nothing_goes_through_as_it_is(precreate: Precreate) -> None:
    for content in (b'{"ociVersion":  "1.0.2"}\n', b'{"annotations": {"a": "b"}}', b'{"annotations": null}'):
        assert precreate(content) == (0, content)


def test_a_configuration_that_asks_gets_hooks_that_say_what_we_were_told(precreate: Precreate) -> None:
    status, content = precreate(
        b'{"annotations": {"hamirt.io/memory": "8GiB"}}',
        "--root", "/r", "--on-error=allow", "--set", "hamirt.io/gpu=0", "--devices", "/nowhere",
    )  # fmt: skip

    hooks: dict[str, Any] = json.loads(content)["hooks"]
    words = ["--root", "/r", "--on-error", "allow", "--set=hamirt.io/gpu=0"]
    assert status == 0
    assert {stage: hook["args"][1:] for stage, (hook,) in hooks.items()} == {
        "createRuntime": ["create", *words],
        "poststop": ["remove", *words],
    }
    assert [hook["path"] for (hook,) in hooks.values()] == [sys.argv[0]] * 2


def test_a_configuration_that_can_not_be_read_is_refused_or_let_go(
    precreate: Precreate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precreate(b"[]") == (1, b"")
    assert precreate(b"[]", "--on-error=allow") == (0, b"[]")

    assert capsys.readouterr().err == (
        "hamirt: the container's configuration is no JSON object\n"
        "hamirt: the container's configuration is no JSON object; "
        "the container starts WITHOUT limits, as --on-error allow says\n"
    )


def test_a_list_of_devices_that_is_damaged_refuses_the_container(precreate: Precreate, tmp_path: Path) -> None:
    devices = tmp_path / "devices.json"
    for text in ("", "[]", '{"devices": [{"containerEdits": 7, "name": "all"}]}'):
        devices.write_text(text)

        content = b'{"annotations": {"hamirt.io/memory": "8GiB"}}'
        assert precreate(content, "--devices", str(devices)) == (1, b"")
        assert precreate(content, "--devices", str(devices), "--on-error", "allow") == (0, content)
