"""``python -m tests.chaos``: sagas under load, and something killed every few seconds.

Prints sagas run, faults injected, faults that fired, spans, and violations; 1 if there are any.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Final

from orchestrator.bootstrap import make_client
from orchestrator.client import Client
from orchestrator.core.state import ACTIVE, Status
from shared.errors import NotAllowed, UnavailableError
from shared.telemetry import logs, setup
from shared.telemetry.config import tracing_config
from tests.chaos.evidence import violations
from tests.chaos.orders import Order, orders
from tests.chaos.system import ORCHESTRATOR, POINTS, System
from tests.chaos.traces import Told, await_roots, trace_problems
from tests.servers.otlp import OtlpReceiver, Protocol
from tests.servers.postgres import find_postgres
from tests.servers.rotel import Rotel
from workers.examples.service import SERVICES

TICK_S: Final = 0.05
PREFORK: Final = ("payment", "inventory")
OFTEN: Final = {
    "worker": 3,
    "pool process": 1,
    "orchestrator": 2,
    "point": 4,
    "redis": 1,
    "postgres": 1,
}
"""Faults in one deck, which is shuffled: all kinds come in a run that is long enough."""

MOVING: Final = ACTIVE - {Status.STUCK}


class Chaos:
    """One run."""

    def __init__(self, system: System, client: Client, random: Random, every: float) -> None:
        self._system = system
        self._client = client
        self._random = random
        self._every = every
        self.started: dict[str, Order] = {}
        self.injected: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.unavailable = 0
        self._deck: list[str] = []

    def run(self, asked: list[Order], seconds: float, settle: float) -> bool:
        """Start the orders over these seconds, and break things; whether all sagas ended."""
        begun = monotonic()
        fault_at = begun + min(self._every, 3.0)
        waiting = list(reversed(asked))
        while waiting or monotonic() - begun < seconds:
            elapsed = monotonic() - begun
            wanted = len(asked) * min(1.0, elapsed / max(seconds * 0.9, 0.1))
            while waiting and len(asked) - len(waiting) < wanted and self._start(waiting[-1]):
                waiting.pop()
            if monotonic() >= fault_at and elapsed < seconds:
                self._inject()
                fault_at = monotonic() + self._every * self._random.uniform(0.5, 1.5)
            self._system.tick()
            sleep(TICK_S)
        # An armed point that nobody came by did not fire.
        self.fired["point"] = self.injected["point"] - self._system.awaited()
        self._system.disarm()
        return self._settled(monotonic() + settle)

    def _start(self, order: Order) -> bool:
        try:
            row = self._client.start("place-order", order.input, key=order.key).row
            self.started[row.saga_id] = order
            if order.cancel:
                self._client.cancel(row.saga_id, reason="chaos", by="chaos")
        except NotAllowed:
            pass
        except UnavailableError:
            # The store is away. Its key makes the next attempt the same start.
            self.unavailable += 1
            return False
        return True

    def _inject(self) -> None:
        system, random = self._system, self._random
        ways: dict[str, Callable[[], bool]] = {
            "worker": lambda: self._kill(random.choice(SERVICES)),
            "pool process": self._kill_forked,
            "orchestrator": lambda: self._kill(self._some_orchestrator()),
            "point": lambda: system.arm(random.choice(POINTS)),
            "redis": self._restart_redis,
            "postgres": self._restart_postgres,
        }
        if not self._deck:
            self._deck = [kind for kind, often in OFTEN.items() for _ in range(often)]
            if not system.postgres:
                self._deck.remove("postgres")
            random.shuffle(self._deck)
        kind = self._deck.pop()
        done = ways[kind]()
        # A point that is still awaited is not armed a second time.
        if done or kind != "point":
            self.injected[kind] += 1
        if done and kind != "point":
            self.fired[kind] += 1

    def _kill(self, name: str) -> bool:
        return self._system.kill(next(one for one in self._system.children if one.name == name))

    def _kill_forked(self) -> bool:
        name = self._random.choice(PREFORK)
        child = next(one for one in self._system.children if one.name == name)
        return self._system.kill_forked(child, self._random.randrange(8))

    def _some_orchestrator(self) -> str:
        names = [one.name for one in self._system.children if one.name.startswith(ORCHESTRATOR)]
        return self._random.choice(names)

    def _restart_redis(self) -> bool:
        away, killed = self._random.uniform(0.1, 2), self._random.random() < 0.5
        self._system.restart_redis(away, killed=killed)
        return True

    def _restart_postgres(self) -> bool:
        away, killed = self._random.uniform(0.1, 2), self._random.random() < 0.5
        self._system.restart_postgres(away, killed=killed)
        return True

    def _settled(self, deadline: float) -> bool:
        while monotonic() < deadline:
            self._system.tick()
            try:
                if not self._client.list(statuses=MOVING, limit=1):
                    return True
            except UnavailableError:
                self.unavailable += 1
            sleep(0.2)
        return False


def main() -> int:
    """Run it and report."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--sagas", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=75, help="of load and faults")
    parser.add_argument("--every", type=float, default=2.5, help="seconds between faults")
    parser.add_argument("--settle", type=float, default=90, help="longest wait for the last end")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--store", choices=["auto", "sqlite", "postgres"], default="auto")
    parser.add_argument("--traces", choices=["http", "grpc"], default="http", help="OTLP over it")
    parser.add_argument("--rotel", action="store_true", help="through a collector of others")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    given = parser.parse_args()
    seed = Random().randrange(1_000_000) if given.seed is None else given.seed
    random = Random(seed)
    postgres = given.store == "postgres" or (given.store == "auto" and bool(find_postgres()))
    home = Path(tempfile.mkdtemp(prefix="saga-chaos-"))
    print(
        f"seed {seed}, {'PostgreSQL' if postgres else 'SQLite'}, logs in {home}/logs", flush=True
    )
    logs.configure("chaos", log_dir=home / "logs")
    behind: Protocol = "grpc" if given.rotel else given.traces  # what rotel passes on
    with OtlpReceiver(behind) as receiver, ExitStack() as collectors:
        environment = receiver.environment
        if given.rotel:
            collector = collectors.enter_context(Rotel(home, receiver))
            environment = collector.environment(given.traces)
        os.environ |= {**environment, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        setup.start("chaos", tracing_config("chaos", home=home))
        # Side by side, where two of them can be.
        with (
            System(home, postgres=postgres, orchestrators=2 if postgres else 1) as system,
            closing(make_client(system.settings)) as client,
        ):
            chaos = Chaos(system, client, random, given.every)
            begun = monotonic()
            ended = chaos.run(orders(random, given.sagas), given.seconds, given.settle)
            seconds = monotonic() - begun
            found, ends = violations(client, chaos.started, system.settings)
            letters = len(client.dead_letters(1000))
            outbox = client._store.outbox_size()
            told = {saga_id: Told(*client.story(saga_id)[1:]) for saga_id in chaos.started}
            await_roots(receiver, [one.row for one in told.values()], given.settle)
        setup.shutdown()
        wrong, spans = trace_problems(receiver, told)
    found += wrong
    print(f"sagas run        {len(chaos.started)} in {seconds:.0f} s: {_listed(ends)}")
    print(f"faults injected  {chaos.injected.total()}: {_listed(chaos.injected)}")
    print(f"faults fired     {chaos.fired.total()}: {_listed(chaos.fired)}")
    way = f"{given.traces} and rotel" if given.rotel else given.traces
    print(f"spans received   {spans} over {way}, of {len(told)} traces")
    print(f"store away       {chaos.unavailable} calls; dead letters {letters}; outbox {outbox}")
    print(f"violations       {len(found)}", *found, sep="\n  ")
    if not ended:
        print("not all sagas ended in time")
    if not (found or given.keep):
        shutil.rmtree(home, ignore_errors=True)
    return 1 if found or not ended else 0


def _listed(counts: "Counter[str]") -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)


if __name__ == "__main__":
    sys.exit(main())
