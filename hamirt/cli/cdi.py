"""`hamirt cdi`: the node's cards as devices that podman, containerd and Docker give to containers by name."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click

from hamirt import annotations, cdi, config, nvml
from hamirt.errors import HamirtError
from hamirt.model import Driver, LatencyClass

_FOLDER = Path("/etc/cdi")
_HOOK = "hamirt-oci-hook"
_GPUS = Path("/proc/driver/nvidia/gpus")
_COMMON_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
_OPTIONAL_NODES = frozenset({"/dev/nvidia-uvm-tools"})
_LDCONFIG_SECONDS = 10


@click.group("cdi")
def command() -> None:
    """Devices for `podman run --device hamirt.io/vgpu=NAME` and all that reads CDI."""


_output = click.option(
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=_FOLDER,
    show_default=True,
    help=f"The folder of {cdi.FILE_NAME}.",
)


@command.command("generate")
@_output
@click.option("--stdout", "to_stdout", is_flag=True, help="Print it, and write nothing.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME=KEY:VALUE,…",
    help="A size under a name: small=mem:8GiB,sm:30; repeat it. Keys: " + ", ".join(cdi.KEYS),
)
@click.option("--mem", metavar="SIZE|PERCENT%", help="Cap on memory of what names none. Default: the whole card.")
@click.option("--sm", metavar="PERCENT", help="Cap on GPU time of what names none.")
@click.option("--weight", metavar="N", help="Share of contended GPU time of what names none.")
@click.option(
    "--class", "latency_class", metavar="|".join(one.value for one in LatencyClass), help="Whose work is first."
)
@click.option("--name", metavar="NAME", help="What status calls the tenants. Default: the container's own name.")
@click.option(
    "--on-error",
    type=click.Choice(["deny", "allow"]),
    default="deny",
    show_default=True,
    help="Where a cap can't be set up: refuse the container, or start it without one.",
)
@click.option("--no-driver", is_flag=True, help="Leave the driver's nodes and libraries to NVIDIA's toolkit.")
@click.option("--sim", is_flag=True, help="Give simulated GPUs.")
def generate(
    folder: Path,
    to_stdout: bool,
    profiles: tuple[str, ...],
    mem: str | None,
    sm: str | None,
    weight: str | None,
    latency_class: str | None,
    name: str | None,
    on_error: str,
    no_driver: bool,
    sim: bool,
) -> None:
    """Write the devices of this node: "all" is any card, "0" or its UUID that card, and each profile on these.

    Run it again when cards, the driver or profiles change.
    """
    given = {"mem": mem, "sm": sm, "weight": weight, "class": latency_class, "name": name}
    defaults = cdi.parse_settings({key: value for key, value in given.items() if value is not None})
    root = config.root_path()
    hook = cdi.Hook(_find_hook(), root, on_error)
    node = _look(root, no_driver=no_driver, sim=sim)
    spec = cdi.specification(node, hook, defaults, [cdi.parse_profile(text) for text in profiles])
    text = json.dumps(spec, indent=2) + "\n"
    if to_stdout:
        click.echo(text, nl=False)
        return
    path = folder / cdi.FILE_NAME
    _write(path, text)
    click.echo(f"{path}: {len(spec['devices'])} devices, such as --device {cdi.KIND}={cdi.WHOLE}")


@command.command("list")
@_output
def list_devices(folder: Path) -> None:
    """Print the devices that were generated, and what each sets."""
    path = folder / cdi.FILE_NAME
    try:
        devices = cdi.describe(json.loads(path.read_text()))
    except FileNotFoundError:
        raise HamirtError(f"there is no {path}: run hamirt cdi generate") from None
    except (OSError, ValueError) as error:
        raise HamirtError(f"{path} can't be read ({error}): run hamirt cdi generate again") from None
    except HamirtError as error:
        raise HamirtError(f"{path}: {error}") from None
    width = max(len(name) for name, _ in devices)
    for name, settings in devices:
        shown = " ".join(f"{key.removeprefix(annotations.OURS)}={value}" for key, value in settings.items())
        click.echo(f"{name:<{width}}  {shown}")


def _find_hook() -> Path:
    """Return the hook's program: the one beside our own, or else one in PATH."""
    beside = Path(sys.argv[0]).absolute().parent
    found = shutil.which(_HOOK, path=os.pathsep.join([str(beside), sys.prefix + "/bin", os.environ.get("PATH", "")]))
    if found is None:
        raise HamirtError(f"{_HOOK} is not beside {beside / 'hamirt'} nor in PATH: install hamirt again")
    return Path(found).absolute()


def _look(root: Path, *, no_driver: bool, sim: bool) -> cdi.Node:
    if sim and config.SIM_STATE_VARIABLE not in os.environ:
        config.make_root(root)
        os.environ[config.SIM_STATE_VARIABLE] = str(config.sim_state_path(root))
    driver = nvml.read_driver(config.sim_dir() if sim else None)
    for card in driver.cards:
        if card.mig:
            click.echo(f"hamirt: GPU {card.index} is left out: it is in MIG mode, which hamirt can't divide", err=True)
    cards = tuple(card for card in driver.cards if not card.mig)
    if not cards:
        raise HamirtError("there is no GPU to give to containers: see what nvidia-smi -L says")
    if sim or no_driver:
        return cdi.Node(cards, {}, (), (), simulated=sim)
    nodes = _card_nodes(driver)
    common = tuple(path for path in _COMMON_NODES if path not in _OPTIONAL_NODES or os.path.exists(path))
    for path in (*(nodes[card.uuid] for card in cards), *common):
        if not os.path.exists(path):
            raise HamirtError(f"{path} is missing: run nvidia-modprobe -c 0 -u, or give --no-driver")
    return cdi.Node(cards, nodes, common, _driver_files(), simulated=False)


def _card_nodes(driver: Driver) -> Mapping[str, str]:
    # where the kernel module says nothing, as in a container, the minors are as nvidia-smi counts
    nodes = {card.uuid: f"/dev/nvidia{card.index}" for card in driver.cards}
    for path in _GPUS.glob("*/information"):
        with suppress(OSError):
            nodes.update([found] if (found := cdi.card_node(path.read_text())) is not None else [])
    return nodes


def _driver_files() -> tuple[str, ...]:
    """Return the driver's libraries and nvidia-smi, as ldconfig or, without it, our own NVML found them."""
    try:
        words = [shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin") or "ldconfig", "-p"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=_LDCONFIG_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    libraries = cdi.find_libraries(said, platform.machine())
    for folder in _loaded_folders():
        for library in cdi.DRIVER_LIBRARIES:
            if (folder / library).exists():
                libraries.setdefault(library, str(folder / library))
    missing = sorted(cdi.NEEDED_LIBRARIES - libraries.keys())
    if missing:
        raise HamirtError(
            f"{missing[0]} was not found: run ldconfig, or give --no-driver where NVIDIA's toolkit is used"
        )
    smi = shutil.which("nvidia-smi")
    return (*sorted(libraries.values()), *([smi] if smi is not None else []))


def _loaded_folders() -> set[Path]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(maxsplit=5)[-1]) for line in lines if "/libnvidia-ml.so." in line}
    return {path.parent for path in paths}


def _write(path: Path, text: str) -> None:
    """Replace the file as a whole: a runtime that reads it meets the old or the new one, also after a crash."""
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")  # no .json: nobody reads it
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w") as file:
                os.fchmod(fd, 0o644)  # whatever the umask
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise HamirtError(f"{path} can't be written ({error.strerror}): it is as it was; see --output") from None
