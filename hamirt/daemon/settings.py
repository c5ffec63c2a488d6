"""What an operator can decide, read from TOML. A file is taken as a whole or refused as a whole."""

import dataclasses
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hamirt.errors import HamirtError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_MOST_FILE_BYTES = 1 << 16
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:\s]+)):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's settings; deploy/hamirt.toml has the same defaults, with comments for operators."""

    sample_seconds: float = 1.0
    """How often NVML and the usage pages are read."""
    overcommit_ratio: float = 1.0
    """How much of a card's memory may be promised to tenants: 1.0 is what the card has, less what others hold."""
    policy: str = "report"
    """What is done about a violation: `report` it, or `kill` the tenant's processes that are at fault."""
    grace_seconds: float = 1.0
    """How long a violation has to go on before `kill` ends a process."""
    kill_after_seconds: float = 2.0
    """How long after SIGTERM comes SIGKILL."""
    admin_group: str | None = None
    """Its members may change every tenant, as root may."""
    tenants_per_user: int = 256
    """How many tenants a user who is no administrator may have at a time."""
    metrics_address: str = "127.0.0.1:9395"
    """Where Prometheus finds /metrics; empty: nowhere."""
    metrics_tls_cert: str | None = None
    metrics_tls_key: str | None = None
    """Files in PEM; with both, /metrics is served with TLS."""
    compat_hami: bool = False
    """Whether /metrics has HAMi's names too."""
    log_format: str = "json"
    """`json`: an object a line; `text`: for people."""


def load(path: Path) -> Settings:
    """Read settings from a TOML file.

    Raises HamirtError, with the line, for a file that is not entirely right.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise HamirtError(f"the settings {path} can't be read: {error.strerror}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise HamirtError(f"the settings {path} are longer than {_MOST_FILE_BYTES} bytes: is it the right file?")
    try:
        return parse(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise HamirtError(f"{path}, line {line}: it is not UTF-8") from None
    except HamirtError as error:
        raise HamirtError(f"{path}, {error}") from None


def parse(text: str) -> Settings:
    """Return the settings in a TOML text.

    Raises HamirtError that begins with the line.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = place.group(1) if place and place.group(1) else len(text.splitlines())
        what = str(error)[: place.start()] if place else str(error)
        raise HamirtError(f"line {line}: {what}") from None
    for name, value in values.items():
        check = _CHECKS.get(name)
        if check is None:
            known = ", ".join(_CHECKS)
            raise HamirtError(f"line {_line_of(text, name)}: there is no setting {name!r}; there are: {known}")
        wants = check(value)
        if wants is not None:
            raise HamirtError(f"line {_line_of(text, name)}: {name} has to be {wants}, not {value!r}")
        if isinstance(value, int) and isinstance(getattr(Settings(), name), float):
            values[name] = float(value)
    settings = Settings(**values)
    if (settings.metrics_tls_cert is None) != (settings.metrics_tls_key is None):
        name = "metrics_tls_key" if settings.metrics_tls_cert is None else "metrics_tls_cert"
        raise HamirtError(f"line {_line_of(text, name)}: metrics_tls_cert and metrics_tls_key go together: name both")
    return settings


def host_and_port(address: str) -> tuple[str, int]:
    """Split `127.0.0.1:9395`, `[::1]:9395` or `localhost:9395`.

    Raises ValueError for anything else.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match.group(3)) > 65535:
        raise ValueError(address)
    return match.group(1) or match.group(2), int(match.group(3))


def _line_of(text: str, name: str) -> int:
    """Return the line, from 1, that gives this setting a value."""
    found = re.search(rf"""^[ \t]*(?:\[+[ \t]*)?["']?{re.escape(name)}["']?[ \t]*[=.\]]""", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


_Check = Callable[[Any], str | None]


def _number(least: float, most: float) -> _Check:
    def check(value: Any) -> str | None:
        right = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        return None if right else f"a number from {least:g} to {most:g}"

    return check


def _whole(least: int, most: int) -> _Check:
    def check(value: Any) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if right else f"a whole number from {least} to {most}"

    return check


def _one_of(*choices: str) -> _Check:
    return lambda value: None if value in choices else " or ".join(map(repr, choices))


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _address(value: Any) -> str | None:
    try:
        if value != "":
            host_and_port(value)
    except (ValueError, TypeError):
        return "HOST:PORT such as '127.0.0.1:9395', or '' for no metrics"
    return None


_CHECKS: dict[str, _Check] = {
    "sample_seconds": _number(0.1, 3600),
    "overcommit_ratio": _number(1, 100),
    "policy": _one_of("report", "kill"),
    "grace_seconds": _number(0, 3600),
    "kill_after_seconds": _number(0, 3600),
    "admin_group": _text,
    "tenants_per_user": _whole(1, 100_000),
    "metrics_address": _address,
    "metrics_tls_cert": _text,
    "metrics_tls_key": _text,
    "compat_hami": _flag,
    "log_format": _one_of("json", "text"),
}
assert set(_CHECKS) == {field.name for field in dataclasses.fields(Settings)}
