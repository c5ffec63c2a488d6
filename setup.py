"""Lets setuptools carry what hamirt/_build.py builds; everything else is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))
from hamirt import _build


class BuildNative(build_ext):
    """Hands the work to hamirt/_build.py: into the tree for an editable install, else into the wheel's folder."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        if in_place and _build.target():
            raise SystemExit("hamirt: HAMIRT_TARGET is for wheels (make dist), not for what is built in place")
        if in_place and os.environ.get("HAMIRT_BUILD") == "later":
            return  # the Makefile's venv: `make build` builds next, and shows the compiler's output
        package = _build.TOP / "hamirt" if in_place else Path(self.build_lib).resolve() / "hamirt"
        try:
            _build.build(package)
        except _build.BuildError as error:
            raise SystemExit(f"hamirt: {error}") from None

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "hamirt"
        return [str(package / name) for name in _build.ARTEFACTS]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """Says for which machines and C libraries HAMIRT_TARGET made the wheel."""

    def finalize_options(self) -> None:
        if _build.target():
            self.plat_name = "_".join(["manylinux", *map(str, _build.TARGET_GLIBC), _build.target()])
        super().finalize_options()


setup(
    ext_modules=[Extension("hamirt._region", sources=[], py_limited_api=True)],
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildNative},
)
