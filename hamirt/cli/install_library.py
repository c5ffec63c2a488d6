"""`hamirt install-library`: puts the library where the node's containers get it from, also over an older one in use."""

import hashlib
import os
from pathlib import Path

import click

from hamirt import config
from hamirt.errors import HamirtError


@click.command("install-library")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sim", is_flag=True, help="And the simulated driver, in FOLDER/sim.")
def command(folder: Path, sim: bool) -> None:
    """Put this hamirt's libhamirt.so into FOLDER, for a daemon that has HAMIRT_NATIVE=FOLDER.

    FOLDER/libhamirt.so is a link that changes in one step, to a file of its own for each build: containers that run
    keep the one they have, and the next ones get the new one.
    """
    built = config.native_dir({})
    libraries = [built / "libhamirt.so", *(sorted((built / "sim").glob("*.so.*")) if sim else [])]
    for library in libraries:
        target = folder.absolute() / library.relative_to(built)
        try:
            click.echo(f"{target} is {install(library, target)}")
        except OSError as error:
            raise HamirtError(
                f"{library.name} can't be put into {folder} ({error.strerror}): name a folder that is writable here, "
                "and mounted at the same place on the node"
            ) from None


def install(source: Path, target: Path) -> str:
    """Make `target` a link to a copy of `source` named by its content; return that name. Raises OSError."""
    content = source.read_bytes()
    name = f"{target.name}.{hashlib.sha256(content).hexdigest()[:12]}"
    copy, partial = target.with_name(name), target.with_name(f".{name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not copy.exists() or copy.read_bytes() != content:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.chmod(0o755)
            partial.rename(copy)
        partial.symlink_to(name)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return name
