"""The hook refuses a container with a sentence, or lets it start without limits where the node says so."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hamirt import ocispec
from tests.container.conftest import MEMORY, Runtime, Site, runtime_on
from tests.container.test_runc import CAPPED
from tests.node.conftest import TIMEOUT_SECONDS

STATE: dict[str, Any] = {"ociVersion": "1.0.2", "id": "one", "status": "creating", "pid": 1, "bundle": "/"}


def call(site: Site, verb: str, content: str | bytes, *options: str) -> "subprocess.CompletedProcess[bytes]":
    """Call the hook without a runtime."""
    given = content.encode() if isinstance(content, str) else content
    command = [str(site.hook), *site.words(verb, *options)[1:]]
    return subprocess.run(command, input=given, capture_output=True, timeout=TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        b"\xff\xfe",
        "[" * 100_000,
        "{}",
        json.dumps({**STATE, "id": 7}),
        json.dumps({**STATE, "id": ""}),
        json.dumps({**STATE, "id": "../../etc"}),
        json.dumps({**STATE, "id": ".hidden"}),
        json.dumps({**STATE, "id": "a" * 256}),
        json.dumps({**STATE, "id": "ä"}),
        json.dumps({**STATE, "annotations": ["hamirt.io/memory"]}),
        json.dumps({**STATE, "annotations": {MEMORY: 8}}),
        *(json.dumps({**STATE, "annotations": {MEMORY: "8GiB"}} | wrong) for wrong in (
            {"pid": "1"}, {"pid": 0}, {"pid": -1}, {"pid": None}, {"bundle": None}, {"bundle": "here"},
            {"bundle": "/nowhere"}, {"pid": 1 << 30}, {"pid": 1 << 70},
        )),
    ],
)  # fmt: skip
def test_a_malformed_state_is_refused(site: Site, content: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"root": {"path": "/"}}')
    if isinstance(content, str) and '"bundle": "/"' in content:
        content = content.replace('"bundle": "/"', f'"bundle": "{tmp_path}"')

    ended = call(site, "create", content)

    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.startswith(b"hamirt: ")
    assert b"Traceback" not in ended.stderr
    assert b"mistake of hamirt's" not in ended.stderr


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"root": {}}', '{"root": {"path": 7}}'])
def test_a_malformed_bundle_is_refused(site: Site, config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)

    ended = call(site, "create", json.dumps({**STATE, "bundle": str(tmp_path), "annotations": {MEMORY: "8GiB"}}))

    assert ended.returncode == 1
    assert f"{tmp_path}/config.json" in ended.stderr.decode()


def test_the_nodes_own_mount_namespace_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    (tmp_path / "rootfs").mkdir()
    state = {**STATE, "pid": os.getpid(), "bundle": str(tmp_path), "annotations": {MEMORY: "8GiB"}}

    ended = call(site, "create", json.dumps(state))

    assert ended.returncode == 1
    assert b"has no mount namespace of its own: give the container one" in ended.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "there is no verb ''"),
        (("start",), "there is no verb 'start'"),
        (("create", "--nothing"), "there is no option '--nothing'"),
        (("create", "--on-error", "perhaps"), "it is deny or allow"),
        (("create", "--set", "memory"), "write KEY=VALUE"),
        (("create", "--set", "a=1", "--set=a=2"), "each key once"),
        (("create", "--root"), "--root takes a value"),
    ],
)
def test_a_wrong_command_line_is_an_error_of_usage(site: Site, words: tuple[str, ...], says: str) -> None:
    ended = subprocess.run([str(site.hook), *words], capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    assert ended.returncode == 2
    assert says in ended.stderr


REFUSALS: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "a contradiction": ({MEMORY: "8GiB"}, ("--set", f"{MEMORY}=4GiB"), MEMORY),
    "no memory": ({MEMORY: "0"}, (), MEMORY),
    "no size": ({MEMORY: "much"}, (), MEMORY),
    "more memory than any card": ({MEMORY: "1TiB"}, (), "81559"),
    "a GPU that is gone": ({"hamirt.io/gpu": "GPU-5a1e0000-0000-4000-8000-000000000009"}, (), "000000000009"),
    "more GPUs than there are": ({"hamirt.io/gpu": "count=3"}, (), "ask for what this node has"),
    "more time than there is": ({"hamirt.io/sm": "101"}, (), "hamirt.io/sm"),
    "a type and not": (
        {"hamirt.io/gpu": "0", "nvidia.com/use-gputype": "H100", "nvidia.com/nouse-gputype": "H100"}, (), "gputype",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_can_not_be_refuses_the_container(runc: Runtime, case: str) -> None:
    annotations, options, says = REFUSALS[case]

    ended = runc.run(runc.bundle("/inmate", "views", annotations=annotations, options=options))

    assert (ended.returncode != 0, ended.stdout) == (True, "")
    assert says in ended.stderr


def test_the_same_by_annotation_and_by_setting_is_no_contradiction(runc: Runtime) -> None:
    assert runc.run(runc.bundle("/inmate", "views", options=("--set", f"{MEMORY}=8GiB"))).stdout.startswith(CAPPED)


def test_a_setting_is_enough(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "views", annotations={}, options=("--set", f"{MEMORY}=8GiB"))

    assert runc.run(bundle).stdout.startswith(CAPPED)


def test_an_unknown_annotation_warns(runc: Runtime, tmp_path: Path) -> None:
    said = tmp_path / "said"
    bundle = runc.bundle("/inmate", "views", annotations={MEMORY: "8GiB", "hamirt.io/memroy": "8GiB"})
    hook = bundle.config["hooks"]["createRuntime"][0]
    # a runtime keeps to itself what a hook says that does well
    command = f'exec "$0" "$@" 2> {said}'
    hook["args"] = ["sh", "-c", command, hook["path"], *hook["args"][1:]]
    hook["path"] = "/bin/sh"

    assert runc.run(bundle).stdout.startswith(CAPPED)
    assert "hamirt.io/memroy" in said.read_text()


def test_annotations_of_others_may_be_large(runc: Runtime) -> None:
    annotations = {MEMORY: "8GiB", "kubectl.kubernetes.io/last-applied-configuration": "x" * (1 << 18)}

    assert runc.run(runc.bundle("/inmate", "views", annotations=annotations)).stdout.startswith(CAPPED)


def test_two_hooks_of_one_container_mount_once(runc: Runtime) -> None:
    bundle = runc.bundle("/bin/sh", "-c", "/inmate views; grep -c hamirt /proc/self/mountinfo")
    bundle.config["hooks"]["createRuntime"] *= 2

    once = runc.run(bundle).stdout.splitlines()[-1]

    assert int(once) == 7  # the folder, two pages, the library, the two of the simulator, the preload


def test_two_hooks_that_want_different_things_refuse_the_container(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "views", annotations={}, options=("--set", f"{MEMORY}=8GiB"))
    words = [*runc.site.words("create")[1:], "--set", f"{MEMORY}=4GiB"]
    bundle.config["hooks"]["createRuntime"].append(
        {"path": str(runc.site.hook), "args": ["hamirt-oci-hook", *words], "env": list(ocispec.HOOK_ENV)}
    )

    ended = runc.run(bundle)

    assert (ended.returncode != 0, ended.stdout) == (True, "")
    assert MEMORY in ended.stderr


@pytest.fixture
def own_runc(own_site: Site, tmp_path: Path) -> Iterator[Runtime]:
    """runc on a site whose daemon the test may end."""
    yield from runtime_on(own_site, "runc", tmp_path)


@pytest.mark.parametrize(
    ("number", "says"), [(signal.SIGKILL, "no daemon answers at"), (signal.SIGSTOP, "does not answer: see whether")]
)
def test_without_a_daemon_a_container_is_refused_in_two_seconds_or_let_go(
    own_runc: Runtime, number: int, says: str
) -> None:
    denied, allowed = (
        own_runc.bundle("/bin/echo", "ran"),
        own_runc.bundle("/bin/echo", "ran", options=["--on-error=allow"]),
    )
    for bundle in (denied, allowed):
        bundle.config["hooks"].pop("poststop")
    own_runc.site.daemon.send(number)
    if number == signal.SIGKILL:
        own_runc.site.daemon.process.wait(TIMEOUT_SECONDS)  # type: ignore[union-attr]

    start = time.monotonic()
    refused = own_runc.run(denied)
    seconds = time.monotonic() - start
    let_go = own_runc.run(allowed)

    assert (refused.returncode != 0, refused.stdout) == (True, "")
    assert says in refused.stderr
    assert seconds < 3.5  # the hook's two, and what the runtime and a busy machine take
    assert let_go.stdout == "ran\n"
    if number == signal.SIGSTOP:
        own_runc.site.daemon.send(signal.SIGCONT)


def test_a_container_ends_without_a_daemon(own_runc: Runtime) -> None:
    bundle = own_runc.bundle("/inmate", "views")
    bundle.config["process"]["args"] = ["/bin/true"]
    assert (
        own_runc("create", "--bundle", str(bundle.write()), bundle.id, stdout=None, capture_output=False).returncode
        == 0
    )
    own_runc.site.daemon.end(signal.SIGKILL)

    assert own_runc("start", bundle.id).returncode == 0
    assert own_runc("delete", "--force", bundle.id).returncode == 0


def test_a_hook_that_is_given_no_state_does_not_wait_for_it(site: Site) -> None:
    reading, writing = os.pipe()
    try:
        start = time.monotonic()
        ended = subprocess.run(
            [str(site.hook), "create"], stdin=reading, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
        assert time.monotonic() - start < 3.5
    finally:
        os.close(reading)
        os.close(writing)

    assert ended.returncode == 1
    assert "standard input does not end" in ended.stderr


def test_where_the_node_allows_it_a_refused_container_starts_and_is_said_to_be_unlimited(runc: Runtime) -> None:
    bundle = runc.bundle("/bin/ls", "/run/hamirt", annotations={MEMORY: "1TiB"}, options=["--on-error=allow"])

    ended = runc.run(bundle)

    assert "No such file" in ended.stderr
    said = call(runc.site, "create", "{", "--on-error", "allow")
    assert said.returncode == 0
    assert b"starts WITHOUT limits" in said.stderr
