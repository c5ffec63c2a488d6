"""What docs/security.md says of containers, tried: each way out holds, or doesn't, as it is written there.

Every try is a script that a real container runs as its root, with the capabilities that podman and Docker leave it.
"""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.container import guest
from tests.container.conftest import Bundle, Runtime
from tests.container.guest import CAPABILITIES, WHOLE_MIB
from tests.node.conftest import read_line
from tests.support import need, wait_for

HELD = "8192\n"
LOOSE = f"{WHOLE_MIB}\n"
PRIVILEGED = (*CAPABILITIES, "CAP_SYS_ADMIN")
REFUSED = "refused\n" + HELD

LINKER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[platform.machine()]
# a folder with what a program needs, and with nothing of hamirt's
NEW_ROOT = (
    "mkdir -p /r/lib /r/run/hamirt && ln -s lib /r/lib64 && "
    f"cp -L {LINKER} /lib/*-linux-gnu/lib{{c,dl,m,pthread,rt}}.so.? /r/lib && "
    "cp -r /run/hamirt/sim /r/run/hamirt && cp /card_size /r"
)
NEW_RUN = "mkdir -p /run/hamirt && ln -s /old/hamirt/sim /old/hamirt/sim-state /run/hamirt"


@dataclass(frozen=True, slots=True)
class Try:
    """A way out. `says` is what the script prints."""

    name: str
    script: str
    says: str
    uid: int = 0
    capabilities: tuple[str, ...] = CAPABILITIES
    seen: str | None = None
    """How the daemon shows a tenant that takes more than its cap so."""


def refused(name: str, way: str, uid: int = 0) -> Try:
    """A way that an error ends, and after which the cap is what it was."""
    return Try(name, f"{{ {way}; }} 2>/dev/null || echo refused; /card_size", REFUSED, uid)


TRIES = (
    Try("nothing tried", "/card_size", HELD),
    # what holds: the environment, and who the program runs as
    Try("an empty environment", "env -i /card_size", HELD),
    Try("another preload and tenant", "LD_PRELOAD= HAMIRT_TENANT_DIR=/tmp HAMIRT_ROOT=/tmp /card_size", HELD),
    Try("HAMi's switch", "CUDA_DISABLE_CONTROL=true CUDA_DEVICE_MEMORY_LIMIT=0 /card_size", HELD),
    Try("a set-uid program", "/setuid", HELD, uid=1000),
    Try("no capabilities", "/card_size", HELD, uid=1000, capabilities=()),
    Try("the linker called by name", f"{LINKER} /card_size", HELD),
    # what holds: the limits page
    refused("write the limits", "echo > /run/hamirt/ro/limits"),
    refused("write the limits through /proc/1/root", "echo > /proc/1/root/run/hamirt/ro/limits"),
    refused("write the limits through a descriptor", "exec 3< /run/hamirt/ro/limits; echo > /proc/self/fd/3"),
    refused("chmod the limits", "chmod 666 /run/hamirt/ro/limits"),
    refused("remove the limits", "rm -f /run/hamirt/ro/limits"),
    refused("rename the limits' folder", "mv /run/hamirt/ro /run/hamirt/other"),
    refused("rename hamirt's folder", "mv /run/hamirt /run/other"),
    refused("remount the limits", "mount -o remount,bind,rw /run/hamirt/ro"),
    refused("unmount the limits", "umount /run/hamirt/ro"),
    refused("mount over the limits", "mount -t tmpfs none /run/hamirt/ro"),
    refused("a user namespace remounts the limits", "unshare -Urm mount -o remount,bind,rw /run/hamirt/ro"),
    refused("a user namespace unmounts the limits", "unshare -Urm umount /run/hamirt/ro"),
    # what holds: the library, and the list that names it
    refused("write the library", "echo > /run/hamirt/lib/libhamirt.so"),
    refused("write the preload", "echo > /etc/ld.so.preload"),
    refused("remove the preload", "rm -f /etc/ld.so.preload"),
    refused("rename the preload", "mv /etc/ld.so.preload /tmp/other"),
    refused("rename over the preload", "touch /etc/other && mv -f /etc/other /etc/ld.so.preload"),
    refused("unmount the preload", "umount /etc/ld.so.preload"),
    refused("mount over the preload", "touch /tmp/none && mount --bind /tmp/none /etc/ld.so.preload"),
    refused("a user namespace unmounts the preload", "unshare -Urm umount /etc/ld.so.preload"),
    # its own usage page is its own: spoiled, it is refused the card
    Try("truncate the usage page", "echo -n > /run/hamirt/rw/usage; /card_size 2>/dev/null", "CUDA error 802\n"),
    Try("remove the usage page", "rm /run/hamirt/rw/usage; /card_size 2>/dev/null", "CUDA error 802\n"),
    # what does not hold
    # the shim is in the process, so it registers
    Try("its own namespace of libraries (dlmopen)", "/card_size dlmopen", LOOSE, seen="over"),
    Try(
        "a static program",
        "for cat in 'busybox cat' cat; do $cat /proc/self/maps | grep -q libhamirt && echo in || echo out; done",
        "out\nin\n",
    ),
    Try(
        "a copy of the linker that reads another list",
        f"sed s,/etc/ld.so.preload,/etc/ld.so.nothing, {LINKER} > /tmp/ld && chmod +x /tmp/ld && "
        "/tmp/ld /card_size",
        LOOSE,
        uid=1000,
        capabilities=(),
        seen="unshimmed",
    ),
    # the simulated cards of a chroot are others than the daemon's, so it can't be seen here
    Try("chroot", f"{NEW_ROOT} && HAMIRT_SIM_STATE=/state chroot /r /card_size", LOOSE),
    Try("another /run", f"mv /run /old && {NEW_RUN} && /card_size 2>/dev/null", LOOSE, seen="unshimmed"),
    Try("another /etc", "mv /etc /old && mkdir /etc && /card_size", LOOSE, seen="unshimmed"),
    Try(
        "another /etc in a user namespace",
        "unshare -Urm sh -c 'mount -t tmpfs none /etc && /card_size'",
        LOOSE,
        uid=1000,
        capabilities=(),
        seen="unshimmed",
    ),
    Try(
        "privileged: unmount the preload",
        "umount /etc/ld.so.preload && /card_size",
        LOOSE,
        capabilities=PRIVILEGED,
        seen="unshimmed",
    ),
    Try(
        "privileged: remount the limits",
        "mount -o remount,bind,rw /run/hamirt/ro && : <> /run/hamirt/ro/limits && echo writable",
        "writable\n",
        capabilities=PRIVILEGED,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def card_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that tells the card's size."""
    for program in ("gcc", "busybox"):
        need(program, shutil.which(program) is not None)
    return guest.build_card_size(tmp_path_factory.mktemp("programs"))


def make_bundle(runc: Runtime, card_size: Path, attempt: Try, *env: str) -> Bundle:
    return runc.bundle(
        "/bin/bash", "-c", attempt.script,
        image=guest.make_root(runc.tmp / "rootfs", card_size),
        user={"uid": attempt.uid, "gid": attempt.uid},
        capabilities={kind: list(attempt.capabilities) for kind in ("bounding", "effective", "permitted")},
        env=["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HAMIRT_SIM_STATE=/run/hamirt/sim-state", *env],
    )  # fmt: skip


@pytest.mark.parametrize("attempt", TRIES, ids=lambda attempt: attempt.name)
def test_a_way_out_is_as_documented(attempt: Try, runc: Runtime, card_size: Path) -> None:
    ended = runc.run(make_bundle(runc, card_size, attempt))

    assert ended.stdout == attempt.says, ended.stderr


@pytest.mark.parametrize("attempt", [one for one in TRIES if one.seen is not None], ids=lambda one: one.name)
def test_who_got_out_is_seen_once_it_is_on_the_card(attempt: Try, runc: Runtime, card_size: Path) -> None:
    bundle = make_bundle(runc, card_size, attempt, "HOLD=9000")
    process = runc.start(bundle)
    assert [read_line(process), read_line(process)] == [str(WHOLE_MIB), "holds"]

    def seen() -> bool:
        cards = [card for tenant in runc.site.daemon.node.status()["tenants"] for card in tenant["cards"]]
        return [(card["over"], len(card["unshimmed"])) for card in cards] == [(True, attempt.seen == "unshimmed")]

    wait_for(seen, "the daemon to see it")
