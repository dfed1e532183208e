"""The services of these tests as a Celery app: orders handles commands, others subscribe.

What a handler did stands as a line in the file that BUS_TEST_EFFECTS names.
"""

import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from shared.backoff import Backoff
from shared.bus import CommandBus, EventBus, QueryBus, Refuse, RetryPolicy
from shared.celery_app import make_app
from shared.settings import settings
from tests.bus.messages import (
    AskingOrder,
    CreateOrder,
    DeadlyOrder,
    FindOrder,
    FlakyOrder,
    OrderCreated,
    OrderFailed,
    OrderFulfilled,
    OrderView,
    RefusedOrder,
    SlowOrder,
)
from workers.sdk import Participant, Reject, StepContext

app = make_app("tests.bus.services", service="services", settings=settings)
commands = CommandBus(app)
queries = QueryBus(app)
orders, billing, audit = (EventBus(app, service=one) for one in ("orders", "billing", "audit"))

EFFECTS = Path(os.environ.get("BUS_TEST_EFFECTS", os.devnull))

log = structlog.stdlib.get_logger("tests.bus")

QUICKLY = RetryPolicy(attempts=3, backoff=Backoff(wait_first=timedelta(milliseconds=50)))


def effect(name: str, **fields: Any) -> None:
    """Write down what was done."""
    with EFFECTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"effect": name, **fields}) + "\n")


@commands.handler(CreateOrder)
def create_order(command: CreateOrder) -> None:
    """Create it, and say so."""
    log.info("created", order_id=command.order_id)
    effect("created", order_id=command.order_id, cents=command.amount_cents, at=str(command.at))
    orders.publish(OrderCreated(order_id=command.order_id, amount_cents=command.amount_cents))


@commands.handler(FlakyOrder, retry=QUICKLY)
def flaky_order(command: FlakyOrder) -> None:
    """Fail a few times."""
    effect("tried", order_id=command.order_id)
    with EFFECTS.open(encoding="utf-8") as file:
        tried = sum(json.loads(line).get("order_id") == command.order_id for line in file)
    if tried < command.succeeds_at:
        raise KeyError("not yet")
    effect("succeeded", order_id=command.order_id)


@commands.handler(RefusedOrder)
def refused_order(command: RefusedOrder) -> None:
    """Say no."""
    raise Refuse("OutOfStock", "none left")


@commands.handler(DeadlyOrder)
def deadly_order(command: DeadlyOrder) -> None:
    """Die."""
    effect("dying", order_id=command.order_id)
    os.kill(os.getpid(), signal.SIGKILL)


@commands.handler(SlowOrder, retry=RetryPolicy(attempts=1), time_limit=1)
def slow_order(command: SlowOrder) -> None:
    """Take too long."""
    time.sleep(30)


@commands.handler(AskingOrder)
def asking_order(command: AskingOrder) -> None:
    """Ask the other process of this worker."""
    # It may have to wait until the pool has replaced a process that another test killed.
    view = queries.ask(FindOrder(command.order_id), timeout=timedelta(seconds=30))
    effect(f"found {view.amount_cents}", order_id=command.order_id)


@queries.handler(FindOrder)
def find_order(query: FindOrder) -> Any:
    """Answer, or not."""
    time.sleep(query.seconds)
    match query.order_id:
        case "missing":
            raise Refuse("UnknownOrder", "there is no order 'missing'")
        case "broken":
            raise ValueError("the index is broken")
        case "mistyped":
            return {"order_id": 1}
        case _:
            pass
    return OrderView(query.order_id, 4200)


@billing.subscriber(OrderCreated)
def send_invoice(event: OrderCreated) -> None:
    """Bill it."""
    log.info("billed", order_id=event.order_id)
    effect("billed", order_id=event.order_id)


@billing.subscriber(OrderCreated, name="broken", retry=QUICKLY)
def broken(event: OrderCreated) -> None:
    """Fail whenever the order says so, whatever the others do."""
    if event.order_id.startswith("broken"):
        raise RuntimeError("no paper")
    effect("printed", order_id=event.order_id)


@audit.subscriber(OrderCreated)
def record(event: OrderCreated) -> None:
    """Keep it."""
    effect("recorded", order_id=event.order_id)


@Participant(app).action("packing.pack")
def pack(context: StepContext, order_id: str) -> None:
    """A step of a saga."""
    if order_id.startswith("unpackable"):
        raise Reject("TooLarge")
    effect("packed", order_id=order_id)


@Participant(app).action("packing.seal")
def seal(context: StepContext, order_id: str) -> None:
    """A step of a saga that is a step itself."""
    effect("sealed", order_id=order_id)


@Participant(app).compensation("packing.unseal")
def unseal(context: StepContext, order_id: str, undo: object) -> None:
    """Undo it."""
    effect("unsealed", order_id=order_id)


@billing.subscriber(OrderFulfilled)
def collect(event: OrderFulfilled) -> None:
    """The saga says that it has completed."""
    log.info("collected", order_id=event.order_id)
    effect("collected", order_id=event.order_id)


@billing.subscriber(OrderFailed)
def refund(event: OrderFailed) -> None:
    """The saga says that it was undone."""
    effect(f"refunded: {event.why}", order_id=event.order_id)
