"""Generate what the simulator's sources leave out, from NVIDIA's own headers.

Every entry point of cuda.h and nvml.h must exist. One that is not written by hand is

* a *forwarder*, when a written one is its plain form (``cuLaunchKernel_ptsz`` of
  ``cuLaunchKernel``) or another version with the same parameter types (``cuCtxDestroy`` of
  ``cuCtxDestroy_v2``), or
* a *stub*: counted, and answering NOT_SUPPORTED.

The same file gets the tables that only the headers know: the names of the error codes, and for
``cuGetProcAddress`` which version of a function came with which CUDA version.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CUDA = "#define __CUDA_API_VERSION_INTERNAL\n#include <cuda.h>\n"
_NVML = "#define NVML_NO_UNVERSIONED_FUNC_DEFS\n#include <nvml.h>\n"

_VERSION = re.compile(r"(?P<base>\w+?)(?:_v(?P<version>\d+))?(?P<thread>_ptsz|_ptds)?")
_TYPEDEF = re.compile(r"\bPFN_(cu\w+?)_v(\d{4,5})(_ptsz|_ptds)?\)")


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One function of a header: its name, and its parameters as (type, name)."""

    name: str
    parameters: tuple[tuple[str, str], ...]

    @property
    def base(self) -> str:
        """The name without version and stream mode."""
        return _split(self.name)[0]

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(kind for kind, _ in self.parameters)

    @property
    def declaration(self) -> str:
        inside = ", ".join(f"{kind} {name}" for kind, name in self.parameters)
        return f"{self.name}({inside or 'void'})"

    @property
    def arguments(self) -> str:
        return ", ".join(name for _, name in self.parameters)


def _split(name: str) -> tuple[str, int, str]:
    """Base, version (1 when there is none in the name) and stream mode of a symbol."""
    match = _VERSION.fullmatch(name)
    assert match is not None
    return match["base"], int(match["version"] or 1), match["thread"] or ""


def _preprocess(cc: str, header_dir: Path, source: str) -> str:
    command = [cc, "-E", "-P", f"-I{header_dir}", "-xc", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def _parameter(text: str, position: int) -> tuple[str, str]:
    """('const char *', 'name'), with a name made up when the header gives none."""
    match = re.fullmatch(r"(.*?[\s*])(\w+)((?:\[\w*\])?)", text.strip(), re.DOTALL)
    if match is None or match[2] in ("int", "char", "long", "short"):
        return text.strip(), f"argument{position}"
    kind = re.sub(r"\s+", " ", match[1]).strip()
    return (f"{kind} *" if match[3] else kind), match[2]


def _entry_points(text: str, prefix: str, returns: str) -> dict[str, EntryPoint]:
    """All functions declared in preprocessed text; the first declaration of a name counts."""
    pattern = re.compile(rf"\b{returns}\s+({prefix}[A-Z]\w*)\s*\(([^()]*)\)\s*;")
    found: dict[str, EntryPoint] = {}
    for name, inside in pattern.findall(re.sub(r"__attribute__\s*\(\(.*?\)\)", "", text)):
        parts = [part for part in inside.split(",") if part.strip() not in ("", "void")]
        parameters = tuple(_parameter(part, i) for i, part in enumerate(parts))
        found.setdefault(name, EntryPoint(name, parameters))
    return found


def _implemented(sources: Iterable[Path], prefix: str) -> set[str]:
    """Names defined in the sources: the return type is on a line of its own."""
    pattern = re.compile(rf"^({prefix}[A-Z]\w*)\(", re.MULTILINE)
    return {name for path in sources for name in pattern.findall(path.read_text())}


def _target(entry: EntryPoint, written: dict[str, EntryPoint]) -> EntryPoint | None:
    """The written function that `entry` can forward to, if any."""
    base, version, thread = _split(entry.name)
    if thread:
        plain = written.get(entry.name.removesuffix(thread))
        if plain is not None:
            return plain
    same = [other for other in written.values() if other.base == base and other.types == entry.types]
    same.sort(key=lambda other: abs(_split(other.name)[1] - version))
    return same[0] if same else None


def _forwarder(entry: EntryPoint, target: EntryPoint, returns: str) -> str:
    return (
        f"HM_EXPORT {returns}\n{entry.declaration}\n{{\n"
        f'    hm_twin_begin("{entry.name}");\n'
        f"    return {target.name}({entry.arguments});\n}}\n"
    )


def _stub(entry: EntryPoint, index: int, returns: str, answer: str) -> str:
    return f"HM_EXPORT {returns}\n{entry.declaration}\n{{\n    hm_stub_count({index});\n    return {answer};\n}}\n"


def _functions(entries: dict[str, EntryPoint], written_names: set[str], returns: str, answer: str, library: str) -> str:
    written = {name: entries[name] for name in sorted(written_names) if name in entries}
    parts: list[str] = []
    stubs: list[str] = []
    for name in sorted(entries.keys() - written_names):
        target = _target(entries[name], written)
        if target is not None:
            parts.append(_forwarder(entries[name], target, returns))
        else:
            parts.append(_stub(entries[name], len(stubs), returns, answer))
            stubs.append(name)
    names = "".join(f'    "{name}",\n' for name in stubs)
    parts.append(
        f"static const char *const stub_names[] = {{\n{names}    NULL,\n}};\n"
        f'_Static_assert({len(stubs)} <= HM_STUBS, "more stubs than counters");\n'
        "const struct hm_stub_table hm_stub_table = {\n"
        f"    .library = {library}, .count = {len(stubs)}, .names = stub_names,\n}};\n"
    )
    return "\n".join(parts)


def _error_table(text: str, prefix: str, name: str) -> str:
    codes = re.findall(rf"\b({prefix}_(?:SUCCESS|ERROR_\w+))\s*=", text)
    rows = "".join(f'    {{ {code}, "{code}" }},\n' for code in dict.fromkeys(codes))
    return f"const struct hm_error_name {name}[] = {{\n{rows}    {{ -1, NULL }},\n}};\n"


def _lookup_table(header_dir: Path, entries: dict[str, EntryPoint]) -> str:
    """Pair the versions in cudaTypedefs.h with the symbols, both in ascending order."""
    versions: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for base, version, thread in _TYPEDEF.findall((header_dir / "cudaTypedefs.h").read_text()):
        versions[base, thread].add(int(version))
    symbols: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(entries, key=lambda name: _split(name)[1]):
        base, _, thread = _split(name)
        symbols[base, thread].append(name)

    rows = []
    for (base, thread), names in sorted(symbols.items()):
        since = sorted(versions[base, thread])
        if len(since) != len(names):
            raise ValueError(f"{base}{thread}: versions {since} do not fit symbols {names}")
        for version, name in zip(since, names, strict=True):
            per_thread = "true" if thread else "false"
            rows.append(f'    {{ "{base}", {version}, {per_thread}, (void *){name} }},\n')
    return (
        "const struct hm_lookup hm_lookups[] = {\n" + "".join(rows) + "};\n"
        f"const size_t hm_lookup_count = {len(rows)};\n"
    )


def _preamble(*headers: str) -> str:
    includes = "".join(f'#include "{header}"\n' for header in headers)
    return (
        "/* Generated by simgpu/stubs.py: do not edit. */\n"
        '#pragma GCC diagnostic ignored "-Wunused-parameter"\n'
        '#pragma GCC diagnostic ignored "-Wdeprecated-declarations"\n\n' + includes + "\n"
    )


def generate(
    header_dir: Path,
    implemented_sources: Iterable[Path],
    out_cuda: Path,
    out_nvml: Path,
    cc: str = "cc",
) -> None:
    """Write the generated C file of either library.

    `header_dir` holds cuda.h, cudaTypedefs.h and nvml.h. Raises ValueError when the headers do not
    fit together and subprocess.CalledProcessError when `cc` can't read them.
    """
    sources = list(implemented_sources)

    text = _preprocess(cc, header_dir, _CUDA)
    entries = _entry_points(text, "cu", "CUresult")
    out_cuda.write_text(
        _preamble("cuda_driver.h", "cuda_lookup.h", "sim_stub.h")
        + _functions(
            entries,
            _implemented(sources, "cu"),
            "CUresult",
            "CUDA_ERROR_NOT_SUPPORTED",
            "HM_LIBRARY_CUDA",
        )
        + _error_table(text, "CUDA", "hm_error_names")
        + _lookup_table(header_dir, entries)
    )

    text = _preprocess(cc, header_dir, _NVML)
    out_nvml.write_text(
        _preamble("nvml_call.h", "sim_stub.h")
        + _functions(
            _entry_points(text, "nvml", "nvmlReturn_t"),
            _implemented(sources, "nvml"),
            "nvmlReturn_t",
            "NVML_ERROR_NOT_SUPPORTED",
            "HM_LIBRARY_NVML",
        )
        + _error_table(text, "NVML", "hm_error_names")
    )
