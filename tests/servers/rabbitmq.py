"""A RabbitMQ of our own, from the system's package, beside any that already runs."""

import base64
import http.client
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from signal import SIGTERM
from typing import Self
from urllib.parse import quote

from shared.embedded import free_port
from tests.servers import process
from tests.servers.process import ServerMissingError

_AUTHORIZATION = "Basic " + base64.b64encode(b"guest:guest").decode()


def find_rabbitmq() -> Path | None:
    """The server's own start script.

    Debian's /usr/sbin/rabbitmq-server changes the user and the folders, so it will not do.
    """
    scripts = sorted(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmq-server"))
    if scripts:
        return scripts[-1]
    on_path = shutil.which("rabbitmq-server")
    return Path(on_path) if on_path else None


class RabbitServer:
    """A RabbitMQ node with its own name, folders, cookie, ports and port mapper (epmd).

    The management plugin is on: a virtual host per test takes one HTTP request, while
    `rabbitmqctl` would take seconds.
    """

    def __init__(self) -> None:
        """Prepare the folders.

        Raises:
            ServerMissingError: There is no RabbitMQ, or no epmd.
        """
        script, epmd = find_rabbitmq(), shutil.which("epmd")
        if script is None or epmd is None:
            raise ServerMissingError("no RabbitMQ: install rabbitmq-server")
        self._script = script
        self._epmd_program = epmd
        self._folder = Path(tempfile.mkdtemp(prefix="saga-rabbitmq-"))
        self._log = self._folder / "rabbitmq.log"
        self.port, self._http_port, self._dist_port, self._epmd_port = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        (self._folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self._http_port}\n"
            "disk_free_limit.absolute = 50MB\n"
        )

    @property
    def url(self) -> str:
        """AMQP URL of the default virtual host."""
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """AMQP URL of that virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    @property
    def running(self) -> bool:
        """Whether the node's process is alive."""
        return self._process is not None and self._process.poll() is None

    def pids(self) -> set[int]:
        """Ids of our direct children: the node and its port mapper."""
        return {child.pid for child in (self._process, self._epmd) if child is not None}

    def start(self) -> Self:
        """Start and wait until it answers; does nothing while it runs."""
        if self.running:
            return self
        if self._epmd is None:
            # Started by us: the one that Erlang starts by itself is a daemon that outlives it.
            self._epmd = process.spawn(
                [self._epmd_program, "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                log=self._folder / "epmd.log",
                env=self._environment(),
            )
        self._process = process.spawn([self._script], log=self._log, env=self._environment())
        process.wait_until_ready(self._process, self._answers, log=self._log)
        return self

    def stop(self) -> None:
        """Stop in order."""
        if self._process is not None:
            process.stop(self._process, SIGTERM)
            self._process = None

    def kill(self) -> None:
        """SIGKILL the node."""
        if self._process is not None:
            process.kill_tree(self._process)
            self._process = None

    def restart(self) -> Self:
        """Stop if running, then start again on the same port with the same data."""
        self.stop()
        return self.start()

    def discard(self) -> None:
        """Stop everything and delete the data."""
        self.kill()
        if self._epmd is not None:
            process.kill_tree(self._epmd)
            self._epmd = None
        shutil.rmtree(self._folder)

    def create_vhost(self, name: str) -> None:
        """Make an empty virtual host that `guest` may use."""
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/api/vhosts/{quote(name, safe='')}")
        self.api("PUT", f"/api/permissions/{quote(name, safe='')}/guest", everything)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with its queues; connections to it are closed."""
        self.api("DELETE", f"/api/vhosts/{quote(name, safe='')}")

    def api(self, method: str, path: str, body: object = None) -> bytes:
        """One request to the management API.

        Returns:
            The body of the answer.

        Raises:
            OSError: No answer, or one that is not 2xx.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=30)
        try:
            headers = {"Authorization": _AUTHORIZATION, "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            answer = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if not 200 <= response.status < 300:
            raise OSError(f"{method} {path}: {response.status} {answer!r}")
        return answer

    def _answers(self) -> bool:
        try:
            self.api("GET", "/api/health/checks/port-listener/" + str(self.port))
        except OSError:
            return False
        return True

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_")) and name != "NOTIFY_SOCKET"
        }
        return inherited | {
            "HOME": str(self._folder),
            "RABBITMQ_NODENAME": f"saga-test-{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self._folder / "rabbitmq.pid"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                # Loopback only, and few idle schedulers on a small machine.
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"
            ),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Makes the script become the node instead of watching over it.
            "RUNNING_UNDER_SYSTEMD": "1",
        }


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)
