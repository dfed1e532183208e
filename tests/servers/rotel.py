"""A collector that nobody here wrote: rotel receives spans over HTTP and gRPC and passes them on.

https://github.com/streamfold/rotel, in Rust, from PyPI. What it has understood of our spans arrives
at a receiver of ours (`otlp`), written anew by its own encoder.
"""

import subprocess
from importlib.util import find_spec
from pathlib import Path
from socket import create_connection
from typing import Self

from shared.embedded import free_port
from tests.servers.otlp import OtlpReceiver, Protocol
from tests.servers.process import ServerMissingError, kill_tree, spawn, wait_until_ready

_LOOPBACK = "127.0.0.1"
_BATCH_TIMEOUT = "50ms"


class Rotel:
    """A running collector; use it as a context manager.

    Args:
        folder: For its output.
        behind: Where it passes on what it receives.

    Raises:
        ServerMissingError: It is not installed.
    """

    def __init__(self, folder: Path, behind: OtlpReceiver) -> None:
        self._program = find_rotel()
        self._log = folder / "rotel.log"
        self._behind = behind
        self._ports: dict[Protocol, int] = {"http": free_port(), "grpc": free_port()}
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, protocol: Protocol) -> dict[str, str]:
        """Variables that make a process export to it."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{_LOOPBACK}:{self._ports[protocol]}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": {"http": "http/protobuf", "grpc": "grpc"}[protocol],
        }

    def __enter__(self) -> Self:
        self._process = spawn(
            [
                *(self._program, "start"),
                *("--otlp-http-endpoint", f"{_LOOPBACK}:{self._ports['http']}"),
                *("--otlp-grpc-endpoint", f"{_LOOPBACK}:{self._ports['grpc']}"),
                *("--batch-timeout", _BATCH_TIMEOUT),
                *("--exporter", "otlp"),
                *("--otlp-exporter-endpoint", self._behind.url),
                *("--otlp-exporter-protocol", self._behind.protocol),
                *("--otlp-exporter-compression", "none"),
            ],
            log=self._log,
        )
        wait_until_ready(self._process, self._listens, log=self._log)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        kill_tree(self._process)

    def _listens(self) -> bool:
        try:
            for port in self._ports.values():
                create_connection((_LOOPBACK, port), timeout=1).close()
        except OSError:
            return False
        return True


def find_rotel() -> Path:
    """The program that the package carries.

    Raises:
        ServerMissingError: There is none for this machine.
    """
    found = find_spec("rotel")
    if found is None or found.origin is None:
        raise ServerMissingError("no rotel: it has wheels for Linux and macOS only")
    return Path(found.origin).with_name("rotel-agent")
