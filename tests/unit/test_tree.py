"""Rules for the tree: imports go one way, special modules have one user, pins agree, files are short."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import TOP

PACKAGE = TOP / "hamirt"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400

# Layers from the bottom; a module imports only from layers below its own, or from beside it in a layer with several.
LAYERS = (
    {"__init__", "errors", "_build"},
    {"units", "model", "config", "topology"},
    {"region", "nvml", "members", "contexts", "program", "child", "client", "hook_io", "mounts", "ocispec"},
    {"pages", "tenants", "plan", "placement", "annotations", "metering", "survey", "wire", "metrics", "hami",
     "exporter", "cdi", "oci"},
    {"daemon"},
    {"cli", "__main__"},
)  # fmt: skip
ONLY_USER = {"_region": {"region"}, "pynvml": {"nvml"}, "cffi": {"_build"}, "click": {"cli"}, "rich": {"cli"},
    "prometheus_client": {"exporter"}, "aiohttp": {"daemon"},
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Yield every imported module, those of hamirt as hamirt.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "hamirt":
                yield from (f"hamirt.{alias.name}" for alias in node.names)
            else:
                yield node.module


def part(path: Path) -> str:
    """Return the module, or the folder it is in, directly below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    own = layer(part(path))
    for module in imports(path):
        if module.startswith("hamirt."):
            name = module.split(".")[1]
            if name in ("_region", "__version__"):
                continue
            assert layer(name) < own or (layer(name) == own and own > 0), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_special_modules_have_one_user(path: Path) -> None:
    for module in imports(path):
        name = module.removeprefix("hamirt.").split(".")[0]
        assert part(path) in ONLY_USER.get(name, {part(path)}), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", [*SOURCES, *sorted((TOP / "tests").rglob("*.py"))], ids=str)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES


def test_the_pins_of_the_build_are_those_of_the_developers_venv() -> None:
    text = (TOP / "pyproject.toml").read_text()
    build = re.findall(r'"([^"]+==[^"]+)"', text.split("[project]")[0])
    dev = text.split("\ndev = [")[1].split("]\n")[0]

    assert build
    assert [pin for pin in build if f'"{pin}"' not in dev] == []
