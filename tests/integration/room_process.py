"""One of several orchestrators on one database, with participants that count how many they are.

``python -m tests.integration.room_process URL NAME SAGAS [AFTER]`` starts sagas, waits for those of one
other process, and until that has begun some work if it is named, carries out every command that it
sends, and ends when every saga in the store has ended.
"""

import sys
from datetime import timedelta

import sqlalchemy as sa

from orchestrator.catalog import Catalog
from orchestrator.core.definition import Limit, Retry, Saga
from orchestrator.core.state import ACTIVE
from orchestrator.engine import Engine
from orchestrator.store.opening import open_store
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryBroker, MemoryTransport
from shared.backoff import Backoff
from shared.clock import pause, utc_now
from shared.messages import Command, Reply, StartRequest, Succeeded
from tests.core.builders import Order, step

AT_ONCE = 3
AGAIN = Retry(attempts=None, backoff=Backoff(wait_first=timedelta(0)))
SAGA = Saga(
    name="limited",
    version=1,
    input=Order,
    steps=(
        step("reserve", timeout=timedelta(seconds=1), retry=AGAIN),
        step(
            "charge",
            timeout=timedelta(seconds=1),
            retry=AGAIN,
            limit=Limit(in_flight=AT_ONCE),
        ),
    ),
)
WORKING = sa.Table(
    "working",
    sa.MetaData(),
    sa.Column("process", sa.Text),
    sa.Column("command", sa.Text),
    sa.Column("at_once", sa.Integer),
    sa.Column("over", sa.Boolean),
)


class Workers:
    """What is carried out, as a table that all processes share: the outer world's view."""

    def __init__(self, url: str, process: str) -> None:
        self._engine = sa.create_engine(url)
        self._process = process

    def begin(self, command: Command) -> None:
        """A participant begins; it notes how many there are, with it."""
        with self._engine.begin() as connection:
            connection.execute(sa.text("LOCK TABLE working"))
            busy = sa.select(sa.func.count()).where(~WORKING.c.over)
            at_once = connection.execute(busy).scalar_one() + 1
            row = {"process": self._process, "command": command.id}
            connection.execute(sa.insert(WORKING).values(**row, at_once=at_once, over=False))

    def has_begun(self, process: str) -> bool:
        """Whether a process has carried out anything yet."""
        with self._engine.begin() as connection:
            query = sa.select(WORKING.c.command).where(WORKING.c.process == process).limit(1)
            return connection.execute(query).first() is not None

    def end(self, command: Command) -> None:
        """It has ended."""
        with self._engine.begin() as connection:
            ended = sa.update(WORKING).where(WORKING.c.command == command.id)
            connection.execute(ended.values(over=True))


def run(url: str, name: str, sagas: int, after: str = "") -> None:
    """Start sagas, and work until all of them have ended, those of others too."""
    broker = MemoryBroker()
    engine = Engine(
        store=open_store(url, create=False),
        transport=MemoryTransport(broker),
        catalog=Catalog([SAGA]),
        tracing=SagaTracing(system="memory", clock=utc_now),
        clock=utc_now,
    )
    workers = Workers(url, name)
    for number in range(sagas):
        engine.start([StartRequest(name="limited", input={}, saga_id=f"{name}-{number:03}")])
    # Who comes first could do everything alone.
    while len(engine.store.list_sagas(limit=2 * sagas)) < 2 * sagas:
        pause(0.01)
    while after and not workers.has_begun(after):
        pause(0.001)
    charging: list[Command] = []
    while engine.store.list_sagas(statuses=ACTIVE, limit=1):
        for command in charging:
            workers.end(command)
            _answer(engine, broker, command)
        charging = []
        for held in broker.take_commands():
            broker.settle_command(held)
            if held.item.step == "charge":
                workers.begin(held.item)
                charging.append(held.item)
            else:
                _answer(engine, broker, held.item)
        engine.tick(100)
        engine.admit()
        pause(0.01)
    engine.close()


def _answer(engine: Engine, broker: MemoryBroker, command: Command) -> None:
    broker.send(
        Reply(
            saga_id=command.saga_id,
            step=command.step,
            direction=command.direction,
            attempt=command.attempt,
            outcome=Succeeded(),
        ),
        "",
    )
    deliveries = engine.transport.receive(100, 0)
    engine.handle(deliveries)
    engine.transport.acknowledge(deliveries)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
