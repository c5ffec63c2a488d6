"""Valid requests to the daemon, and what becomes of them on the way. Everything follows from a seed."""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from hamirt.units import GIB, MIB
from tests.fuzz.values import NUMBERS, TEXTS, spoil

JSON = ("Content-Type", "application/json")
_FORM = "/v1/tenants/"
_BOMB = zlib.compress(b" " * (8 << 20))


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request before it is written out. `target` is the tenant that it means; spoiled it may mean none."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """What goes through a connection, in `packets`; `is_whole` if by HTTP each of `answers` requests is complete."""

    request: Request
    packets: tuple[bytes, ...]
    is_whole: bool
    answers: int = 1
    kind: str = "valid"

    @property
    def key(self) -> str:
        """The last part of the path as it arrives, which a tenant may be called; empty for what is no request."""
        line = b"".join(self.packets).lstrip().partition(b"\n")[0].decode("latin-1").split()
        try:
            return unquote(urlsplit(line[1]).path.rpartition("/")[2])
        except (IndexError, ValueError):
            return ""


def creation(rng: random.Random, uuids: tuple[str, ...]) -> Request:
    """Return a request for a tenant of a name that nobody has."""
    name = f"t{rng.getrandbits(48):x}"
    devices = [device(rng, uuid) for uuid in rng.choice((uuids[:1], uuids[1:], uuids))]
    wish: dict[str, Any] = {"devices": devices, "simulated": True, "command": ["python", "train.py"]}
    if rng.random() < 0.7:
        wish["name"] = rng.choice((name, None))
    if rng.random() < 0.3:
        wish |= {"allow_on_error": rng.random() < 0.5, "unenforced": rng.choice((None, "for a test"))}
    if rng.random() < 0.2:
        wish |= {"container": "web", "pod": "default/web", "cgroup": "/fuzz/that/is/none"}
    target = f"{name}-{rng.getrandbits(24):06x}"
    return Request("PUT", f"{_FORM}{target}", json.dumps(wish).encode(), (JSON,), target)


def device(rng: random.Random, uuid: str) -> dict[str, Any]:
    """Return a card as a tenant's request names it."""
    return {"uuid": uuid, **limit(rng)}


def limit(rng: random.Random) -> dict[str, Any]:
    """Return some of the fields that can be changed."""
    fields: dict[str, Any] = {
        "memory_bytes": rng.choice((None, 1 * GIB, 2 * GIB + 1, 3 * GIB, 100 * MIB, 79 * GIB, 200 * GIB)),
        "time_percent": rng.choice((None, 1, 50, 100)),
        "weight": rng.choice((1, 100, 10_000)),
        "latency_class": rng.choice(("latency", "normal", "batch")),
    }
    if rng.random() < 0.7:
        fields["memory_bytes"] = rng.choice((1, 2)) * GIB
    return {name: fields[name] for name in fields if name == "memory_bytes" or rng.random() < 0.5}


def change(rng: random.Random, target: str, uuids: tuple[str, ...]) -> Request:
    """Return a request for other limits."""
    body = {"devices": {rng.choice(uuids): limit(rng)}}
    return Request("PATCH", f"{_FORM}{quote(target)}", json.dumps(body).encode(), (JSON,), target)


def removal(rng: random.Random, target: str) -> Request:
    """Return a request to take a tenant away."""
    query = rng.choice(("", "", "?force=0", "?force=1", "?force="))
    return Request("DELETE", f"{_FORM}{quote(target)}{query}", target=target)


def question(rng: random.Random) -> Request:
    """Return a request that changes nothing."""
    return Request("GET", rng.choice(("/v1/node", "/v1/health", "/v1/health")))


def whole(request: Request) -> Sending:
    """Return the request as it is meant."""
    return Sending(request, (written(request),), True)


_WEIGHTS = {"valid": 15, "json": 37, "body": 10, "path": 10, "method": 4, "headers": 14, "wire": 10}
_WEIGHTS_WITHOUT_BODY = {"valid": 30, "path": 40, "method": 10, "headers": 10, "wire": 10}


def mutated(rng: random.Random, request: Request, uuids: tuple[str, ...]) -> Sending:
    """Return the request after something went wrong with it, on one of HTTP's levels or in several."""
    weights = _WEIGHTS if request.body else _WEIGHTS_WITHOUT_BODY
    (kind,) = rng.choices(tuple(weights), tuple(weights.values()))
    if kind == "json":
        request = replace(request, body=_spoiled_json(rng, request.body, uuids))
    elif kind == "body":
        body = rng.choice((spoil(rng, request.body), *_bodies(rng, request.body)))
        request = replace(request, body=body)
    elif kind == "path":
        request = replace(request, path=_spoiled_path(rng, request))
    elif kind == "method":
        request = replace(request, method=rng.choice(_METHODS))
    elif kind == "headers":
        return _spoiled_headers(rng, request)
    elif kind == "wire":
        return _spoiled_wire(rng, request)
    content = written(request)
    return Sending(request, _in_packets(rng, content), True, kind=kind)


def written(request: Request, **more: str) -> bytes:
    """Return the request as it goes over the wire; `more` headers replace those that it would have."""
    headers = {"Host": "hamirt", "Connection": "close", **dict(request.headers)}
    if request.body:
        headers["Content-Length"] = str(len(request.body))
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + request.body


def _in_packets(rng: random.Random, content: bytes) -> tuple[bytes, ...]:
    if rng.random() < 0.85 or len(content) < 2:
        return (content,)
    if len(content) < 400 and rng.random() < 0.1:
        return tuple(content[at : at + 1] for at in range(len(content)))
    cuts = sorted(rng.randrange(1, len(content)) for _ in range(rng.choice((1, 2, 5))))
    return tuple(content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True))


def _spoiled_json(rng: random.Random, body: bytes, uuids: tuple[str, ...]) -> bytes:
    value = json.loads(body)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _spoiled_value(rng, value, uuids)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    number = rng.choice(("1e999", "-0", "1" * 4000, "1" * 5000, "0x10", "01", "1.0", "1e2", "Infinity", "-NaN", "+1"))
    if rng.random() < 0.1:
        text = text.replace("100", number)
    if rng.random() < 0.05:
        text = text.replace("{", '{"simulated": true, ', 1)  # a field twice
    return text.encode("utf-8", "surrogatepass")


def _spoiled_value(rng: random.Random, value: Any, uuids: tuple[str, ...]) -> Any:
    """Return the value with one place in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.12:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.24:
            name = rng.choice((*TEXTS, *_FIELDS, "constructor", "__proto__"))
            return {**value, name: _nasty(rng, uuids)}
        return {**value, key: _spoiled_value(rng, value[key], uuids)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.1:
            return value * rng.choice((2, 17, 300))
        if kind < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _spoiled_value(rng, value[at], uuids), *value[at + 1 :]]
    return _nasty(rng, uuids)


_FIELDS = (
    "name", "command", "simulated", "allow_on_error", "unenforced", "cgroup", "container", "pod", "devices", "uuid",
    "memory_bytes", "time_percent", "weight", "latency_class",
)  # fmt: skip


def _nasty(rng: random.Random, uuids: tuple[str, ...]) -> Any:
    deep: Any = 1
    for _ in range(rng.choice((3, 30, 900))):
        deep = rng.choice(([deep], {"a": deep}))
    return rng.choice((
        rng.choice(NUMBERS), -rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(TEXTS),
        rng.choice(uuids), rng.choice(uuids).lower(), float("nan"), float("-inf"), 1.5, 1e300, None, True, False,
        [], {}, [None], {"uuid": rng.choice(uuids)}, {rng.choice(TEXTS): 1}, deep, 10**30, "x" * 4097, "latency",
    ))  # fmt: skip


def _bodies(rng: random.Random, body: bytes) -> tuple[bytes, ...]:
    return (
        b"null", b"[]", b"\"text\"", b"{}", b"{", b"\xef\xbb\xbf" + body,
        body.decode("utf-8", "replace").encode("utf-16"), body + body,
        body.replace(b"\"", b"'"), b"[" * 60_000, b'{"devices":' * 5_000, b" " * 70_000 + body,
        body + b" " * (65_536 - len(body)), body + b" " * (65_537 - len(body)), rng.randbytes(64),
    )  # fmt: skip


_METHODS = ("POST", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GET", "put", "DELETE", "PATCH", "PUT", "QUX")


def _spoiled_path(rng: random.Random, request: Request) -> str:
    key = (request.target or "t-000000").encode()
    text = quote(rng.choice(TEXTS).encode("utf-8", "surrogatepass"), safe=rng.choice(("", "/")))
    spoiled = quote(spoil(rng, key), safe="")
    return rng.choice((
        f"{_FORM}{text}", f"{_FORM}{text}-00ab12", f"{_FORM}{spoiled}", f"{_FORM}{spoiled}", _FORM, "/v1/tenants",
        f"{_FORM}..%2f..%2f{text}-00ab12", f"{_FORM}x/{spoiled}", f"/{request.path}", f"{request.path}/",
        f"{request.path}%00", f"{request.path}%", f"{request.path}%zz", f"{_FORM}%ff%fe-00ab12",
        f"{_FORM}{'a' * 300}-00ab12", f"{_FORM}{'a' * 57}-00ab12", f"{_FORM}{'a' * 7000}", f"{_FORM}{'a' * 9000}",
        f"{_FORM}{spoiled}?force=yes", f"{_FORM}{spoiled}?force=1&force=0", f"{_FORM}{spoiled}?x=1",
        f"{_FORM}{spoiled}?%66orce=1", f"{_FORM}{spoiled}?{text}", "/", "/v2/node", "/v1/node?x", "/v1/node/x",
        "/v1/./health", "/v1/../metrics", "/metrics", "http://hamirt/v1/health", "*", f"/{text}", "//", "/%2f%2f",
    ))  # fmt: skip


def _spoiled_headers(rng: random.Random, request: Request) -> Sending:
    """Return a request whose headers are strange, or are not true."""
    body = request.body or b"x"
    size = len(body)
    request = replace(request, body=body)
    right_chunks = replace(request, body=_chunk(body) + _LAST_CHUNK)
    wrong_chunks = replace(request, body=_wrong_chunks(rng, body))
    zipped = replace(request, body=rng.choice((gzip.compress(body, mtime=0), zlib.compress(body), _BOMB, body)))
    lengths = (0, 1, size - 1, size + 1, 1 << 20, 1 << 63, 10**30, -1, "x", "", "+5", "0x5", "1, 1", "5;")
    encodings = ("gzip", "deflate", "deflate", "br", "zstd", "identity", "x")
    how: Callable[[], tuple[bytes, bool]] = rng.choice((
        lambda: (written(request, Content_Length=str(rng.choice(lengths))), False),
        lambda: (written(request, Content_Length=str(rng.choice(lengths))), False),
        lambda: (written(request).replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n", 1), False),
        lambda: (_in_chunks(right_chunks), True),
        lambda: (_in_chunks(wrong_chunks), False),
        lambda: (written(wrong_chunks, Transfer_Encoding=rng.choice(("chunked", "gzip, chunked", "x"))), False),
        lambda: (written(zipped, Content_Encoding=rng.choice(encodings)), True),
        lambda: (written(zipped, Content_Encoding=rng.choice(encodings)), True),
        lambda: (written(request, Expect=rng.choice(("100-continue", "nonsense", ""))), True),
        lambda: (written(request, Content_Type=rng.choice(("text/html", "x", "a/b; charset=utf-7"))), True),
        lambda: (written(request, Host=rng.choice(("", "a b", "\u00e9", "x" * 300))), False),
        lambda: (written(request, X_Long="a" * rng.choice((8000, 9000, 100_000))), False),
        lambda: (written(request, **{f"X_{at}": "y" for at in range(500)}), False),
        lambda: (written(request, Connection="upgrade", Upgrade="websocket"), False),
        lambda: (written(request, X_Odd=rng.choice(("a\0b", "\x7f", "a\rb", "\u00ff", " ", "\t"))), False),
    ))  # fmt: skip
    content, is_whole = how()
    return Sending(request, _in_packets(rng, content), is_whole, kind="headers")


_LAST_CHUNK = b"0\r\n\r\n"


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def _wrong_chunks(rng: random.Random, body: bytes) -> bytes:
    """Return chunks that are not quite right."""
    size = len(body)
    return rng.choice((
        _chunk(body), b"%x;%s\r\n%s\r\n" % (size, b"e" * 500, body) + _LAST_CHUNK, b"zz\r\n" + body, b"-1\r\n" + body,
        b"ffffffffffffffff\r\n" + body, b"5\r\n" + body + b"\r\n0\r\n\r\n", _chunk(body) + b"0\r\nX: y\r\n\r\n",
        b"0\r\n\r\n", b"", spoil(rng, _chunk(body) + _LAST_CHUNK), b"1\r\n{\r\n" * 2000,
    ))  # fmt: skip


def _in_chunks(request: Request) -> bytes:
    """Return a request, whose body is in chunks already, without a length."""
    head, _, body = written(request, Transfer_Encoding="chunked").partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _spoiled_wire(rng: random.Random, request: Request) -> Sending:
    """Return bytes that may be no HTTP at all, two requests in one, or half a request."""
    content = written(request)
    kind = rng.random()
    if kind < 0.25:  # two at once
        both = written(request, Connection="keep-alive") + written(Request("GET", "/v1/health"))
        return Sending(request, _in_packets(rng, both), True, answers=2, kind="wire")
    if kind < 0.65:
        line, _, rest = content.partition(b"\r\n")
        content = rng.choice((
            spoil(rng, content), spoil(rng, line) + b"\r\n" + rest, content.replace(b"\r\n", b"\n"),
            content.replace(b"HTTP/1.1", rng.choice((b"HTTP/1.0", b"HTTP/9.9", b"HTTP/2", b"", b"http/1.1"))),
            b"\r\n\r\n" + content, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", rng.randbytes(200),
            line.replace(b" ", b"  ") + b"\r\n" + rest, line + b"\r\n \r\n" + rest, b"\0" * 1000, b"A" * 20_000,
        ))  # fmt: skip
    else:
        content = content[: rng.randrange(len(content))]
    return Sending(request, _in_packets(rng, content or b"\r\n"), False, kind="wire")
