"""Images and volumes that make it hard to mount anything, or that try to have it mounted outside."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container.conftest import Runtime
from tests.container.test_runc import CAPPED

OURS = "/run/hamirt/lib/libhamirt.so\n"


def test_an_image_without_etc_and_run(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "views")
    for path in (bundle.rootfs / "etc" / "passwd", bundle.rootfs / "etc"):
        path.unlink() if path.is_file() else path.rmdir()

    assert runc.run(bundle).stdout.startswith(CAPPED)


def test_the_root_file_system_is_read_only_for_the_container(runc: Runtime) -> None:
    bundle = runc.bundle("/bin/sh", "-c", "touch /etc/other || /inmate views")
    bundle.config["root"]["readonly"] = True

    assert runc.run(bundle).stdout.startswith(CAPPED)


@pytest.mark.parametrize("lines", ["/usr/lib/one.so\n/usr/lib/two.so\n", "/usr/lib/one.so", "", OURS])
def test_the_preload_of_the_image_is_kept(runc: Runtime, lines: str) -> None:
    bundle = runc.bundle("/bin/sh", "-c", "cat /etc/ld.so.preload")
    preload = bundle.rootfs / "etc" / "ld.so.preload"
    preload.write_text(lines)

    assert runc.run(bundle).stdout == OURS + lines.replace(OURS, "")
    assert preload.read_text() == lines


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Mounts a folder read-only, as an image is whose file system can't be written."""
    mounted = []

    def mount(folder: Path) -> Path:
        target = tmp_path / "read-only"
        target.mkdir()
        subprocess.run(["mount", "--bind", "-o", "ro", str(folder), str(target)], check=True)
        mounted.append(target)
        return target

    yield mount
    for target in mounted:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ((), "have the engine mount a tmpfs on /run (podman and docker: --tmpfs /run)"),
        (("run/hamirt",), "add an empty file /etc/ld.so.preload to the image"),
        (("run/hamirt", "etc/ld.so.preload"), CAPPED),
    ],
)
def test_an_image_that_cannot_be_written(
    runc: Runtime, read_only: Callable[[Path], Path], tmp_path: Path, there: tuple[str, ...], wanted: str
) -> None:
    image = runc.site.image(tmp_path / "image")
    for path in there:
        (image / path).parent.mkdir(exist_ok=True)
        (image / path).mkdir() if path == "run/hamirt" else (image / path).touch()

    ended = runc.run(runc.bundle("/inmate", "views", image=read_only(image)))

    assert wanted in ended.stdout + ended.stderr
    assert ("cuda" in ended.stdout) == (wanted == CAPPED)


@pytest.mark.parametrize("place", ["etc", "run", "run/hamirt", "etc/ld.so.preload"])
@pytest.mark.parametrize("way", ["absolute", "upwards", "through proc"])
def test_a_link_of_the_image_leads_nowhere_outside(runc: Runtime, tmp_path: Path, place: str, way: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "ld.so.preload").write_text("untouched\n")
    bundle = runc.bundle("/inmate", "views")
    link = bundle.rootfs / place
    if link.is_dir():
        link.rename(bundle.rootfs / "moved")
    link.parent.mkdir(exist_ok=True)
    name = outside / "ld.so.preload" if place.endswith("preload") else outside
    link.symlink_to({"absolute": "", "upwards": "../" * 32, "through proc": "/proc/self/root/"}[way] + str(name))

    ended = runc.run(bundle)

    assert ended.stdout.startswith(CAPPED) or (ended.returncode != 0 and ended.stdout == "")
    assert [path.name for path in outside.iterdir()] == ["ld.so.preload"]
    assert (outside / "ld.so.preload").read_text() == "untouched\n"


def test_links_within_the_image_are_followed(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "views")
    for name in ("etc", "run"):
        real = bundle.rootfs / "real" / name
        real.parent.mkdir(exist_ok=True)
        (bundle.rootfs / name).rename(real) if name == "etc" else real.mkdir()
        (bundle.rootfs / name).symlink_to(f"/real/{name}")

    assert runc.run(bundle).stdout.startswith(CAPPED)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("etc/ld.so.preload", "dir"), ("run", "file"), ("etc/ld.so.preload", "fifo"), ("etc/ld.so.preload", "large")],
)
def test_what_is_no_place_for_a_mount_refuses_the_container(runc: Runtime, path: str, kind: str) -> None:
    bundle = runc.bundle("/inmate", "views")
    target = bundle.rootfs / path
    if kind == "fifo":
        subprocess.run(["mkfifo", str(target)], check=True)
    elif kind == "dir":
        target.mkdir()
    else:
        target.write_bytes(b"\n" * ((1 << 16) + 1))

    ended = runc.run(bundle)

    assert ended.returncode != 0
    assert f"/{path}" in ended.stderr
    assert "of the container's image" in ended.stderr


@pytest.fixture
def shared_volume(tmp_path: Path) -> Iterator[Path]:
    """A folder of the node whose mounts are shared, as those of most nodes are."""
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(["mount", "--bind", "--make-shared", str(folder), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", "--recursive", str(folder)], check=True)


@pytest.mark.parametrize(("propagation", "starts"), [("rprivate", True), ("rslave", True), ("rshared", False)])
def test_mounts_are_not_seen_on_the_node_through_a_volume(
    runc: Runtime, shared_volume: Path, propagation: str, starts: bool
) -> None:
    bundle = runc.bundle("/inmate", "views")
    bundle.config["linux"]["rootfsPropagation"] = "rshared" if propagation == "rshared" else "rprivate"
    bundle.config["mounts"].append(
        {"destination": "/run", "type": "bind", "source": str(shared_volume), "options": ["rbind", propagation]}
    )

    ended = runc.run(bundle)

    assert ended.stdout.startswith(CAPPED) == starts
    assert starts or "the container shares /run/hamirt with the node" in ended.stderr
    assert list((shared_volume / "hamirt").iterdir()) == []
