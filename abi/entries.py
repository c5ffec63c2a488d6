"""Every entry point of the pinned CUDA and NVML headers, and what the shim does about each.

`cuda.txt` and `nvml.txt` beside this file list them. An entry whose name matches RELEVANT may create, import, map or
free device memory, launch work or report memory: it is either a hook in shim/hooks.def, or it is excused in
`passed.txt` with one of the six REASONS. A newer header that brings another such entry fails the test until somebody
has decided.

    python abi/entries.py         prints what is undecided, and where the lists differ from the headers
    python abi/entries.py write   rewrites cuda.txt and nvml.txt
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOOKS = HERE.parent / "shim" / "hooks.def"
PASSED = HERE / "passed.txt"
PREPROCESS_TIMEOUT_S = 60

REASONS = ("host", "owner", "work", "reserve", "query", "unsupported")

# What a name says about memory. Too wide rather than too narrow: an entry too many costs one line of passed.txt, an
# entry too few is a hole under the cap.
RELEVANT = {
    "cuda": (
        r"Mem|Cpy|Array|Pool|Alloc|Free|External|Ipc|Pointer|Address",  # memory, and handles to it
        r"Create|Destroy|Open|Close|Import|Export|[Mm]ap|[Bb]ind|Register|Unregister|Reserve",  # objects come and go
        r"Retain|Release|Reset|Attach|Detach|Clone|Checkpoint|PeerAccess|Init$",
        r"[Ll]oad|Link|Enumerate|^cu(Module|Library)Get|^cuKernel",  # code
        r"Launch|Upload|Instantiate|GraphAdd|GraphExec|SetParams|WriteValue|Limit",  # work, and what is set aside
    ),
    "nvml": (
        r"Mem|Framebuffer|Fb(Usage|Reservation)|BAR1|Heap|RuntimeState|FieldValues|GetAttributes",
        r"Process|Accounting|Utilization|Samples|MigMode|(Gpu|Compute)Instance",
    ),
}


@dataclass(frozen=True, slots=True)
class Library:
    """A library of the driver, and the header that declares its entry points."""

    name: str
    header: str
    wheel: str
    version_macro: str
    define: str  # makes the header declare every version of an entry under its own name

    @property
    def listing(self) -> Path:
        """The committed list of its entry points."""
        return HERE / f"{self.name}.txt"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry point as its header declares it."""

    name: str
    result: str
    parameters: tuple[str, ...]  # types and names as written


LIBRARIES = (
    Library("cuda", "cuda.h", "nvidia-cuda-runtime", "CUDA_VERSION", "__CUDA_API_VERSION_INTERNAL"),
    Library("nvml", "nvml.h", "nvidia-nvml-dev", "NVML_API_VERSION", "NVML_NO_UNVERSIONED_FUNC_DEFS"),
)


def header(library: Library) -> Path:
    """Return the header inside the installed wheel; raises importlib.metadata.PackageNotFoundError without it."""
    for file in importlib.metadata.files(library.wheel) or ():
        if file.name == library.header:
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(f"the wheel {library.wheel} has no {library.header}")


def preprocess(library: Library, path: Path, *flags: str) -> str:
    """Return what the compiler sees of the header."""
    command = ["cc", "-E", "-P", *flags, f"-D{library.define}", "-x", "c", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PREPROCESS_TIMEOUT_S).stdout


def version(library: Library, path: Path) -> int:
    """Return the header's own version number."""
    text = preprocess(library, path, "-dM")
    found = re.search(rf"^#define {library.version_macro}\s+(\d+)", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} does not define {library.version_macro}")
    return int(found[1])


def declared(library: Library, path: Path | None = None) -> dict[str, Entry]:
    """Return the entry points that the header declares, by name."""
    entries = {}
    for statement in _statements(preprocess(library, path or header(library))):
        found = re.fullmatch(
            r"(?:extern )?(CUresult|nvmlReturn_t|const char ?\*) ((?:cu|nvml)[A-Z]\w*) ?\((.*)\)", statement
        )
        if found is None:
            continue
        parameters = tuple(part.strip() for part in found[3].split(",") if part.strip() not in ("", "void"))
        entries[found[2]] = Entry(found[2], found[1], parameters)
    return entries


def _statements(text: str) -> list[str]:
    """Split preprocessed C at the semicolons outside of braces, each on one line."""
    flat = re.sub(r'extern "C" \{', "", text)
    while "{" in flat:
        flat, count = re.subn(r"\{[^{}]*\}", " ", flat)
        if count == 0:
            break
    return [re.sub(r"__attribute__ ?\(\(.*?\)\) ?", "", " ".join(part.split())) for part in flat.split(";")]


def render(library: Library) -> str:
    """Return what the library's list should hold for the installed header."""
    path = header(library)
    names = sorted(declared(library, path))
    wheel = f"{library.wheel} {importlib.metadata.version(library.wheel)}"
    title = f"# {library.header} {version(library, path)} ({wheel}): {len(names)} entry points"
    return "\n".join([title, *names]) + "\n"


def listed(library: Library) -> list[str]:
    """Return the committed list."""
    return [line for line in library.listing.read_text().splitlines() if not line.startswith("#")]


def relevant(library: Library, names: list[str]) -> set[str]:
    """Return the names that may have to do with device memory."""
    pattern = re.compile("|".join(RELEVANT[library.name]))
    return {name for name in names if pattern.search(name)}


def hooked(library: Library) -> list[str]:
    """Return the hooks of one library, in the order of shim/hooks.def."""
    return re.findall(rf"^{library.name.upper()}_HOOK\((\w+)\)", HOOKS.read_text(), re.MULTILINE)


def passed() -> dict[str, str]:
    """Return the reason by name, of passed.txt; raises ValueError on a line that is not `name reason`."""
    reasons: dict[str, str] = {}
    for number, line in enumerate(PASSED.read_text().splitlines(), 1):
        text = line.partition("#")[0].split()
        if not text:
            continue
        if len(text) != 2 or text[1] not in REASONS or text[0] in reasons:
            raise ValueError(f"{PASSED.name}:{number}: not a new name and one of {', '.join(REASONS)}: {line}")
        reasons[text[0]] = text[1]
    return reasons


def undecided(library: Library, names: list[str]) -> set[str]:
    """Return the entries that may have to do with memory and are neither hooked nor excused."""
    return relevant(library, names) - set(hooked(library)) - set(passed())


def family(name: str) -> str:
    """Return the name without its version and stream mode: the twins of an entry do the same."""
    return re.sub(r"(_v\d+)?(_pt[sd][sz])?$", "", name)


def main(arguments: list[str]) -> int:
    """Rewrite the lists, or say what a person has to decide."""
    status = 0
    for library in LIBRARIES:
        if arguments == ["write"]:
            library.listing.write_text(render(library))
        elif not library.listing.exists() or library.listing.read_text() != render(library):
            print(f"{library.listing.name} differs from the installed {library.header}: run with `write`")
            status = 1
        for name in sorted(undecided(library, sorted(declared(library)))):
            print(f"{name}: neither in shim/hooks.def nor in abi/passed.txt")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
