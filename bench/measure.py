"""One system after the other, each in a process of its own: ``python -m bench.measure SYSTEM``.

The CPU time is that of the measuring process and of all its descendants: sender, workers,
orchestrator, Redis and PostgreSQL; a collector is not part of the system that is measured.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from socket import create_connection
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import psutil

from bench import names
from orchestrator.cli.children import Child, end
from orchestrator.cli.stack import GRACE
from shared.embedded import PrivateRedis, free_port
from tests.servers.postgres import PostgresServer
from tests.servers.rotel import find_rotel

if TYPE_CHECKING:
    from orchestrator.client import Client

READY_WITHIN_S: Final = 60.0
ENDED_WITHIN_S: Final = 300.0
AT_ONCE: Final = 50
"""Sagas that one transaction starts at saturation."""

POLL_S: Final = 0.0005
WORKER: Final = ("-Q", names.QUEUE, "-c", "2", "-P", "prefork")


class Sizes(NamedTuple):
    """How much of it."""

    sagas: int
    samples: int


class Result(msgspec.Struct, kw_only=True):
    """One line of the table; for bare tasks a fifth of a "saga" is one task."""

    system: str
    store: str | None
    broker: str = "redis"
    traced: bool
    sagas_per_s: float
    cpu_ms_per_saga: float
    p50_ms: float | None = None
    p99_ms: float | None = None


_others: Final[set[int]] = set()
"""Processes that do not belong to the system."""


def cpu_seconds() -> float:
    """User and system time of this process and all descendants, the ended ones included."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        if process.pid in _others:
            continue
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def bare(sizes: Sizes) -> Result:
    """Five bare tasks count as a saga."""
    with _plain(traced=False):
        from bench import chain, done

        chain.last.delay("ready")
        _expect(lambda: done.wait(READY_WITHIN_S), READY_WITHIN_S, "a worker")
        tasks = sizes.sagas * names.STEPS

        def send() -> None:
            for _ in range(tasks):
                chain.bare.delay()
            chain.last.delay("end")

        seconds, cpu = _saturate(send, lambda: done.count() >= 1)
    return Result(
        system="Celery tasks, five for one saga",
        store=None,
        traced=False,
        sagas_per_s=sizes.sagas / seconds,
        cpu_ms_per_saga=cpu * 1000 / sizes.sagas,
    )


def chain_of_five(sizes: Sizes, *, traced: bool, level: str = "") -> Result:
    """``celery.chain``.

    Args:
        sizes: How much of it.
        traced: By contrib's instrumentation, to files as the product does.
        level: Of Celery's own log, two lines a task, which goes to a file; by default WARNING.
    """
    with _plain(traced=traced, level=level):
        from bench import chain, done

        def one() -> None:
            chain.chained(0).apply_async()
            if not done.wait(READY_WITHIN_S):
                raise TimeoutError("a chain did not end")

        p50, p99 = _latency(one, sizes.samples)

        def send() -> None:
            for number in range(sizes.sagas):
                chain.chained(number).apply_async()

        seconds, cpu = _saturate(send, lambda: done.count() >= sizes.sagas)
    return Result(
        system=f"celery.chain, log at {level}" if level else "celery.chain",
        store=None,
        traced=traced,
        sagas_per_s=sizes.sagas / seconds,
        cpu_ms_per_saga=cpu * 1000 / sizes.sagas,
        p50_ms=p50,
        p99_ms=p99,
    )


def product(
    sizes: Sizes,
    *,
    what: str = "this product",
    postgres: bool = False,
    traced: bool = True,
    level: str = "INFO",
    collector: bool | None = None,
) -> Result:
    """This product.

    Args:
        sizes: How much of it.
        what: Name of the line in the table.
        postgres: On PostgreSQL; otherwise on SQLite.
        traced: Every saga; otherwise none, by ``always_off``.
        level: Of its log, which is a file of JSON lines.
        collector: Spans go to a collector over OTLP/HTTP; False for one that is configured, and
            down. By default they go to files.
    """
    with _product(postgres=postgres, traced=traced, level=level, collector=collector) as client:
        from bench import done
        from orchestrator.core.state import ACTIVE
        from shared.messages import StartRequest

        def one() -> None:
            saga_id = client.start("bench-noop", {"number": "0"}).row.saga_id
            if not done.wait(READY_WITHIN_S):
                raise TimeoutError("a saga did not end")
            # The steps are done, the last commit is not: a saga has ended when that is durable.
            while client.row(saga_id).state.status in ACTIVE:
                sleep(POLL_S)

        p50, p99 = _latency(one, sizes.samples)

        def send() -> None:
            left = sizes.sagas
            while left > 0:
                requests = [
                    StartRequest(name="bench-noop", input={"number": "0"})
                    for _ in range(min(AT_ONCE, left))
                ]
                client.start_many(requests)
                left -= AT_ONCE

        def ended() -> bool:
            return done.count() >= sizes.sagas and not client.list(statuses=ACTIVE, limit=1)

        seconds, cpu = _saturate(send, ended)
    return Result(
        system=what,
        store="PostgreSQL" if postgres else "SQLite",
        traced=traced,
        sagas_per_s=sizes.sagas / seconds,
        cpu_ms_per_saga=cpu * 1000 / sizes.sagas,
        p50_ms=p50,
        p99_ms=p99,
    )


def messages(sizes: Sizes, *, by_bus: bool) -> Result:
    """Five no-op messages count as a saga: by the command bus, or by ``apply_async``."""
    with _servers() as home, ExitStack() as exits:
        _configure(home, level="WARNING")
        from opentelemetry.instrumentation.celery import CeleryInstrumentor

        from bench import bus, done

        if not by_bus:  # which makes its spans itself
            CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]
        exits.callback(end, [_celery("worker", "bench.bus", *WORKER)], GRACE)
        send_one = bus.by_bus if by_bus else bus.by_celery
        send_one("ready", ends=True)
        _expect(lambda: done.wait(READY_WITHIN_S), READY_WITHIN_S, "a worker")

        def send() -> None:
            for number in range(sizes.sagas * names.STEPS):
                send_one(str(number), ends=False)
            send_one("end", ends=True)

        seconds, cpu = _saturate(send, lambda: done.count() >= 1)
    return Result(
        system=f"{'command bus' if by_bus else 'apply_async'}, five for one saga",
        store=None,
        traced=True,
        sagas_per_s=sizes.sagas / seconds,
        cpu_ms_per_saga=cpu * 1000 / sizes.sagas,
    )


SYSTEMS: Final[dict[str, Callable[[Sizes], Result]]] = {
    "bare": bare,
    "chain": lambda sizes: chain_of_five(sizes, traced=False),
    "chain-traced": lambda sizes: chain_of_five(sizes, traced=True),
    "chain-info": lambda sizes: chain_of_five(sizes, traced=True, level="INFO"),
    "sqlite": product,
    "sqlite-warning": lambda sizes: product(
        sizes, what="this product, log at WARNING", level="WARNING"
    ),
    "sqlite-untraced": lambda sizes: product(sizes, what="this product, always_off", traced=False),
    "collector-up": lambda sizes: product(
        sizes, what="this product, collector up", collector=True
    ),
    "collector-down": lambda sizes: product(
        sizes, what="this product, collector down", collector=False
    ),
    "postgres": lambda sizes: product(sizes, postgres=True),
    "apply-async": lambda sizes: messages(sizes, by_bus=False),
    "bus": lambda sizes: messages(sizes, by_bus=True),
}


def _saturate(send: Callable[[], None], ended: Callable[[], bool]) -> tuple[float, float]:
    """Send all at once; returns the seconds until the last end, and the CPU seconds."""
    from bench import done

    done.forget()
    begun, cpu_before = monotonic(), cpu_seconds()
    send()
    _expect(ended, ENDED_WITHIN_S, "the end")
    return monotonic() - begun, cpu_seconds() - cpu_before


def _latency(one: Callable[[], None], samples: int) -> tuple[float, float]:
    """p50 and p99 in milliseconds of one at a time, after a warm-up."""
    for _ in range(20):
        one()
    taken: list[float] = []
    for _ in range(samples):
        begun = monotonic()
        one()
        taken.append((monotonic() - begun) * 1000)
    taken.sort()
    return taken[len(taken) // 2], taken[int(len(taken) * 0.99)]


def _expect(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = monotonic() + seconds
    while not condition():
        if monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        sleep(0.02)


@contextmanager
def _plain(*, traced: bool, level: str = "") -> Iterator[None]:
    with _servers() as home, ExitStack() as exits:
        os.environ[names.TRACED] = "1" if traced else "0"
        log = ("--loglevel", level, "--logfile", str(home / "chain.log")) if level else ()
        worker = _celery("worker", "bench.chain", *WORKER, *log)
        exits.callback(end, [worker], GRACE)
        yield


@contextmanager
def _product(
    *, postgres: bool, traced: bool, level: str, collector: bool | None
) -> Iterator["Client"]:
    with _servers() as home, ExitStack() as exits:
        if not traced:
            os.environ["OTEL_TRACES_SAMPLER"] = "always_off"
        if collector is not None:
            port = exits.enter_context(_collector(home)) if collector else free_port()
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
        if postgres:
            server = PostgresServer()
            exits.callback(server.discard)
            os.environ["SAGA_DATABASE_URL"] = server.start().url
        _configure(home, level=level)
        from orchestrator.bootstrap import make_client
        from orchestrator.cli.db import upgrade_store
        from shared.settings import settings

        upgrade_store(settings())
        children = [
            _celery("worker", "bench.steps", *WORKER),
            _celery("orchestrator", "orchestrator"),
        ]
        exits.callback(end, children, GRACE)
        yield exits.enter_context(closing(make_client(settings())))


def _configure(home: Path, *, level: str) -> None:
    """Logs, traces and settings of our own processes, this one included."""
    os.environ |= {
        "SAGA_HOME": str(home),
        "SAGA_LOG_DIR": str(home / "logs"),
        "SAGA_LOG_LEVEL": level,
        "SAGA_BROKER_URL": names.broker(),
        "SAGA_DEFINITIONS": "bench.definition",
    }
    from shared.telemetry import logs, setup
    from shared.telemetry.config import tracing_config

    logs.configure("bench", level=level, log_dir=home / "logs")
    setup.start("bench", tracing_config("bench", home=home))


@contextmanager
def _collector(home: Path) -> Iterator[int]:
    """A collector that nobody here wrote, which throws away what it has understood."""
    port = free_port()
    listen = ("--otlp-http-endpoint", f"127.0.0.1:{port}")
    other = ("--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}")
    command = [str(find_rotel()), "start", *listen, *other, "--exporter", "blackhole"]
    child = Child("collector", command, os.environ, home / "collector.out")
    child.start()
    _others.update([child.pid] if child.pid else [])
    try:
        _expect(lambda: _listens(port), READY_WITHIN_S, "the collector")
        yield port
    finally:
        end([child], GRACE)


def _listens(port: int) -> bool:
    with suppress(OSError), create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def _servers() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="saga-bench-") as folder:
        home = Path(folder)
        with PrivateRedis(home / "redis") as redis:
            os.environ[names.BROKER] = redis.url
            os.environ[names.HOME] = str(home)
            yield home


def _celery(name: str, app: str, *options: str) -> Child:
    quick = ("--without-mingle", "--without-gossip")
    head = [sys.executable, "-m", "celery", "--quiet", "-A", app, "worker", "-n", f"{name}@%h"]
    output = names.home() / f"{name}.out"
    child = Child(name, [*head, *options, *quick], os.environ, output)
    child.start()
    return child


def main() -> None:
    """Measure one system and print it as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--sagas", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    given = parser.parse_args()
    result = SYSTEMS[given.system](Sizes(given.sagas, given.samples))
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main()
