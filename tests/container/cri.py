"""The kubelet's side of CRI, as far as the tests need it.

Messages are dicts by the field numbers of runtime.v1's api.proto, so that no code has to be generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

SERVICE = "/runtime.v1.RuntimeService/"
NODE = 2  # of NamespaceMode


def encode(message: Mapping[int, Any]) -> bytes:
    """Return a protobuf message; a value is a number, text, a message, or a list of these."""
    return b"".join(_field(number, one) for number, value in message.items() for one in _each(value))


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = encode(value) if isinstance(value, Mapping) else value.encode()
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + _varint(rest) if rest else bytes([head])


def decode(content: bytes) -> dict[int, Any]:
    """Return a message's numbers and bytes by field."""
    return dict(_fields(iter(content)))


def _fields(content: Iterator[int]) -> Iterator[tuple[int, Any]]:
    for first in content:
        key = _number(first, content)
        number = _number(next(content), content)
        yield key >> 3, bytes(next(content) for _ in range(number)) if key & 7 else number


def _number(first: int, rest: Iterator[int]) -> int:
    return first & 0x7F | (_number(next(rest), rest) << 7 if first & 0x80 else 0)


@dataclass
class Cri:
    """A runtime at a socket, and the pods made there."""

    socket: Path
    pods: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._channel = grpc.insecure_channel(f"unix:{self.socket}")

    def call(self, name: str, message: Mapping[int, Any]) -> dict[int, Any]:
        """Call a method of RuntimeService.

        Raises grpc.RpcError with what the runtime says.
        """
        method = self._channel.unary_unary(SERVICE + name, request_serializer=encode, response_deserializer=decode)
        answer: dict[int, Any] = method(message, timeout=60)
        return answer

    def run(
        self,
        name: str,
        image: str,
        containers: Sequence[str],
        annotations: Mapping[str, str] | None = None,
        *,
        device: str = "",
        handler: str = "",
    ) -> list[str]:
        """Start a pod in the node's network as the kubelet would; its containers wait. Return their ids."""
        namespaces = {1: NODE}
        pod = {
            1: {1: name, 2: f"uid-{name}", 3: "default"},
            7: [{1: key, 2: value} for key, value in (annotations or {}).items()],
            8: {1: f"/pod-{name}", 2: {1: namespaces}},
        }
        sandbox = self.call("RunPodSandbox", {1: pod, 2: handler})[1].decode()
        self.pods.append(sandbox)
        made = []
        for container in containers:
            wanted = {
                1: {1: container},
                2: {1: image},
                3: ["/bin/sleep", "1000"],
                7: {1: "/usr", 2: "/usr", 3: 1},
                15: {2: {3: namespaces}},
                17: [{1: device}] if device else [],
            }
            made.append(self.call("CreateContainer", {1: sandbox, 2: wanted, 3: pod})[1].decode())
            self.call("StartContainer", {1: made[-1]})
        return made

    def ask(self, container: str, *words: str) -> str:
        """Run a program in a container to its end, and return what it wrote."""
        answer = self.call("ExecSync", {1: container, 2: list(words), 3: 30})
        assert not answer.get(3), answer
        return str(answer.get(1, b"").decode())

    def end(self) -> None:
        """End and remove all pods."""
        while self.pods:
            self.call("StopPodSandbox", {1: self.pods[-1]})
            self.call("RemovePodSandbox", {1: self.pods.pop()})

    def close(self) -> None:
        self._channel.close()
