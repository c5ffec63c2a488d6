"""`hamirt-oci-hook`: called by OCI runtimes when they make and remove containers, and by engines before that.

    create      createRuntime: have the daemon make a tenant, and mount it into the container (mounts.py)
    remove      poststop: have the daemon remove the tenant
    precreate   podman's stage of that name: a container's configuration through, with the two hooks added (ocispec.py)
    runc        the same for engines without hooks or CDI: edit the bundle, then be the real runtime

The daemon decides; this asks and mounts, within two seconds. It must start quickly, since a container waits for it:
nothing is imported that costs a millisecond and is not needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from hamirt.errors import REFUSED, USAGE, HamirtError
from hamirt.hook_io import Deadline, RefusedError, ask, read_input, read_object, say

TYPE_CHECKING = False  # as in typing, which costs 3 ms
if TYPE_CHECKING:
    from typing import Any

ANNOTATION = "hamirt.io/"

# What the daemon has a use for. The rest may be as large as an administrator likes.
_TOLD = (ANNOTATION, "nvidia.com/", "io.kubernetes.container.", "io.kubernetes.pod.", "io.kubernetes.cri.")
# A pod's sandbox carries the pod's annotations and runs nothing. CRI-O's, containerd's.
_CONTAINER_TYPES = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri.container-type")
_ROOT, _ROOT_VARIABLE = "/run/hamirt", "HAMIRT_ROOT"  # as in config.py
_WORK_SECONDS, _UNDO_SECONDS = 1.5, 0.5
_ID = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-"
_MOST_ID = 255
_USAGE = """usage: hamirt-oci-hook create|remove [OPTIONS] <STATE   called by an OCI runtime
       hamirt-oci-hook precreate [OPTIONS] <CONFIG     called by podman
       hamirt-oci-hook runc [OPTIONS] -- ARGUMENTS     called by containerd or Docker in place of runc

  --root DIR             the folder that the daemon serves (default: HAMIRT_ROOT, or /run/hamirt)
  --on-error deny|allow  whether a container that can't be limited is refused (default) or starts without limits
  --set KEY=VALUE        an annotation that the container may not contradict; repeat it
  --devices FILE         for precreate and runc: the GPU's device nodes and libraries as `hamirt cdi generate` wrote
                         them (default: /etc/cdi/hamirt.json); they are added unless somebody else gives them
  --runtime PROGRAM      the real runtime, for runc (default: runc)
"""


class Options:
    """The command line. argparse would cost more than all else here."""

    def __init__(self, words: Sequence[str]) -> None:
        self.root = os.environ.get(_ROOT_VARIABLE) or _ROOT
        self.allow = False
        self.settings: dict[str, str] = {}
        self.devices = "/etc/cdi/hamirt.json"
        self.runtime = "runc"
        self.rest: list[str] = []
        self._read(list(words))

    def _read(self, words: list[str]) -> None:
        while words:
            name, equals, value = words.pop(0).partition("=")
            if name == "--":
                self.rest = words
                return
            if name not in ("--root", "--on-error", "--set", "--devices", "--runtime"):
                raise HamirtError(f"there is no option {name!r}\n{_USAGE}", USAGE)
            if not equals:
                if not words:
                    raise HamirtError(f"{name} takes a value", USAGE)
                value = words.pop(0)
            self._set(name, value)

    def _set(self, name: str, value: str) -> None:
        if name == "--root":
            self.root = os.path.abspath(value)
        elif name == "--devices":
            self.devices = value
        elif name == "--runtime":
            self.runtime = value
        elif name == "--on-error":
            if value not in ("deny", "allow"):
                raise HamirtError(f"--on-error {value!r}: it is deny or allow", USAGE)
            self.allow = value == "allow"
        else:
            key, equals, setting = value.partition("=")
            if not key or not equals or self.settings.get(key, setting) != setting:
                raise HamirtError(f"--set {value!r}: write KEY=VALUE, each key once", USAGE)
            self.settings[key] = setting


class State:
    """The state of a container as its runtime writes it to the standard input of a hook."""

    def __init__(self, content: bytes) -> None:
        """Raises HamirtError where it is none."""
        state = read_object(content, "the state on standard input")
        identity, annotations = state.get("id"), state.get("annotations") or {}
        if (
            not isinstance(identity, str)
            or not 0 < len(identity) <= _MOST_ID
            or identity.strip(_ID)
            or not identity[0].isalnum()
        ):
            raise HamirtError(f"the state on standard input has no container's id, but {str(identity)[:80]!r}")
        if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
            raise HamirtError("the annotations in the state on standard input are no texts by name")
        self.id = identity
        self.annotations: dict[str, str] = annotations
        self._state = state

    @property
    def pid(self) -> int:
        """The container's first process. Raises HamirtError where the state names none."""
        pid = self._state.get("pid")
        if not isinstance(pid, int) or pid <= 0:
            raise HamirtError("the state on standard input has no pid: call this as a createRuntime hook")
        return pid

    @property
    def bundle(self) -> str:
        """The folder of the container's configuration. Raises HamirtError where the state names none."""
        bundle = self._state.get("bundle")
        if not isinstance(bundle, str) or not os.path.isabs(bundle):
            raise HamirtError("the state on standard input names no bundle")
        return bundle


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words else ""
    try:
        if verb in ("-h", "--help"):
            sys.stdout.write(_USAGE)
            return 0
        if verb not in _VERBS:
            raise HamirtError(f"there is no verb {verb!r}\n{_USAGE}", USAGE)
        options = Options(words)
    except HamirtError as error:
        say(str(error))
        return error.exit_code or USAGE
    try:
        return _VERBS[verb](options)
    except (HamirtError, OSError) as error:
        say(str(error))
    except Exception as error:  # no traceback in an engine's message
        say(f"the hook failed, which is a mistake of hamirt's: {error!r}")
    if options.allow and verb != "runc":
        say("the container starts WITHOUT limits, as --on-error allow says")
        return 0
    return REFUSED


def create(options: Options) -> int:
    """Give the container of this state its tenant, if it asks for one."""
    deadline = Deadline(_WORK_SECONDS)
    state = State(read_input(deadline))
    if not asks(state.annotations, options.settings):
        return 0
    from hamirt import mounts  # late: ctypes, for nobody else

    rootfs = _rootfs(state)
    namespace = mounts.Namespace(state.pid)
    told = {key: value for key, value in state.annotations.items() if key.startswith(_TOLD)}
    wish = {"pid": state.pid, "annotations": {**options.settings, **told}, "settings": options.settings}
    path = f"/v1/containers/{state.id}"
    mounted: list[int] = []
    try:
        tenant = ask(deadline, options.root, "PUT", path, wish)
        for warning in tenant["warnings"]:
            say(warning)
        if tenant["id"] is None:
            return 0
        sim = tenant["sim"] or {}
        wanted = mounts.sources(tenant["folder"], tenant["library"], sim.get("libraries"), sim.get("state"))
        mounts.attach(namespace, rootfs, wanted, mounted)
    except RefusedError:
        raise
    except BaseException:
        mounts.detach(namespace, mounted)
        try:  # noqa: SIM105  # contextlib costs a millisecond
            ask(Deadline(_UNDO_SECONDS), options.root, "DELETE", f"{path}?pid={state.pid}")
        except HamirtError:  # the daemon sweeps it when the container's process has ended
            pass
        raise
    return 0


def remove(options: Options) -> int:
    """Tell the daemon that a container has ended. It finds out by itself too, later."""
    deadline = Deadline(_WORK_SECONDS)
    state = State(read_input(deadline))
    ask(deadline, options.root, "DELETE", f"/v1/containers/{state.id}")
    return 0


def precreate(options: Options) -> int:
    """Read a container's configuration, and write it with what hamirt needs in it."""
    content = read_input()
    try:
        edited = _edit(content, options)
    except (HamirtError, OSError) as error:
        if not options.allow:
            raise
        say(f"{error}; the container starts WITHOUT limits, as --on-error allow says")
        edited = content
    sys.stdout.buffer.write(edited)
    return 0


def runc(options: Options) -> int:
    """Be the real runtime, after editing the bundle where that is to make a container of it."""
    from hamirt import ocispec

    bundle = ocispec.bundle_of(options.rest)
    try:
        if bundle is not None:
            _edit_bundle(f"{bundle}/config.json", options)
    except (HamirtError, OSError) as error:
        if not options.allow:
            _log(ocispec.log_of(options.rest), str(error))
            raise
        say(f"{error}; the container starts WITHOUT limits, as --on-error allow says")
    try:
        os.execvp(options.runtime, [options.runtime, *options.rest])
    except OSError as error:
        raise HamirtError(
            f"{options.runtime} can't be started ({error.strerror}): name a runtime with --runtime"
        ) from None


def asks(annotations: Mapping[str, str], settings: Mapping[str, str]) -> bool:
    """Return whether a container wants anything of hamirt. Where not, no daemon is needed."""
    if any(annotations.get(key) == "sandbox" for key in _CONTAINER_TYPES):
        return False
    return bool(settings) or any(key.startswith(ANNOTATION) for key in annotations)


_VERBS: dict[str, Callable[[Options], int]] = {
    "create": create,
    "remove": remove,
    "precreate": precreate,
    "runc": runc,
}


def _rootfs(state: State) -> str:
    path = f"{state.bundle}/config.json"
    with open(path, "rb") as file:
        root = read_object(file.read(), path).get("root")
    if not isinstance(root, dict) or not isinstance(root.get("path"), str):
        raise HamirtError(f"{path} names no root file system")
    return os.path.join(state.bundle, root["path"])


def _edit_bundle(path: str, options: Options) -> None:
    """Replace a bundle's configuration as a whole."""
    with open(path, "rb") as file:
        content = file.read()
        mode = os.fstat(file.fileno()).st_mode & 0o777
    edited = _edit(content, options)
    if edited == content:
        return
    partial = f"{path}.hamirt"
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(edited)
    os.replace(partial, path)


def _edit(content: bytes, options: Options) -> bytes:
    """Return a container's configuration with what hamirt needs in it: as it was, if the container wants nothing."""
    import json

    from hamirt import ocispec

    configuration = read_object(content, "the container's configuration")
    annotations = configuration.get("annotations") or {}
    if not isinstance(annotations, dict) or not asks(annotations, options.settings):
        return content
    edits: dict[str, Any] = {}
    try:
        with open(options.devices, "rb") as file:
            edits = read_object(file.read(), options.devices)
    except FileNotFoundError:
        pass  # the engine, or NVIDIA's toolkit, gives containers their GPU
    words = ["--root", options.root, "--on-error", "allow" if options.allow else "deny"]
    words += [f"--set={key}={value}" for key, value in options.settings.items()]
    try:
        with_gpu = ocispec.add_gpu(configuration, edits, os.stat)
        return json.dumps(ocispec.add_hooks(with_gpu, _own_path(), words)).encode()
    except (AttributeError, KeyError, TypeError):
        raise HamirtError(
            f"the container's configuration or {options.devices} is malformed: run hamirt cdi generate again"
        ) from None


def _own_path() -> str:
    """Return the program to name in a hook: hamirt-oci-hook beside the program that runs, or that program."""
    own = os.path.abspath(sys.argv[0])
    beside = os.path.join(os.path.dirname(own), "hamirt-oci-hook")
    path = beside if os.path.exists(beside) else own
    if not os.access(path, os.X_OK):
        raise HamirtError(f"{path} can't be called by a runtime: install hamirt-oci-hook")
    return path


def _log(path: str | None, message: str) -> None:
    """Write to the log that an engine looks into for what its runtime says."""
    import json
    from contextlib import suppress

    if path is not None:
        with suppress(OSError), open(path, "a") as log:
            log.write(json.dumps({"level": "error", "msg": f"hamirt: {message}"}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
