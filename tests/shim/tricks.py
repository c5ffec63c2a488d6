"""What somebody may have put in the place of a page, or of a folder, that we are about to use."""

import os
from pathlib import Path


def link(path: Path) -> None:
    path.symlink_to("/tmp")


def hard_link(path: Path) -> None:
    (path.parent.parent.parent / "victim").write_text("precious")
    os.link(path.parent.parent.parent / "victim", path)


def open_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
