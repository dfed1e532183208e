"""``place-order`` on the real core and the real participants, in one process, with time that jumps.

What is left standing is read from the services' own books, which know nothing of the barrier.
"""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.events import Trace
from orchestrator.core.machine import Message, Start, Tick, decide
from orchestrator.core.state import SagaState
from orchestrator.core.timers import wake_at
from orchestrator.sagas import PLACE_ORDER, SAGAS
from orchestrator.transport.task_message import headers_of
from shared.ids import new_saga_id, new_span_id, new_trace_id
from shared.messages import Command
from shared.settings import settings
from tests.workers.eager import Eager
from workers import celery as services
from workers.celery import app
from workers.examples import inventory, ledger

STANDING = {"inventory": 1, "payment": 4_900, "shipping": 1, "orders": 1, "notifications": 1}
MESSAGES_MAX = 200


class Shop:
    """Runs orders to their end.

    Args:
        copies: How often each command is delivered.
    """

    def __init__(self, eager: Eager, *, copies: int = 1) -> None:
        self._eager = eager
        self._copies = copies
        self._now = datetime(2030, 1, 1, tzinfo=UTC)

    def place(self, **order: Any) -> SagaState:
        """Start an order, answer its commands, let time jump to its timers; returns where it ends."""
        trace = Trace(trace_id=new_trace_id(), root_span_id=new_span_id())
        checked = PLACE_ORDER.check_input({"order_id": "o-1", **order})
        messages: deque[Message] = deque(
            [Start(saga_id=new_saga_id(), input=checked, trace=trace)]
        )
        state: SagaState | None = None
        for _ in range(MESSAGES_MAX):
            decision = decide(PLACE_ORDER.definition, state, messages.popleft(), self._now)
            state = decision.state
            assert state is not None
            for command in decision.commands:
                messages += self._deliver(command)
            if not messages:
                due = wake_at(PLACE_ORDER.definition, state)
                if due is None:
                    return state
                self._now = max(self._now, due)
                messages.append(Tick())
        raise AssertionError(f"no end after {MESSAGES_MAX} messages: {state}")

    def _deliver(self, command: Command) -> list[Message]:
        found: list[Message] = []
        for _ in range(self._copies):
            app.tasks[command.task].apply(
                kwargs=dict(command.payload),
                task_id=command.id,
                headers=headers_of(command, "test"),
            )
            replies = self._eager.replies()
            assert len(replies) == 1
            found += replies
        return found


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """All five services, with empty books."""
    monkeypatch.setenv("SAGA_HOME", str(tmp_path))
    monkeypatch.setenv("SAGA_BROKER_URL", "memory://")
    monkeypatch.delenv("SAGA_LEDGER_URL", raising=False)
    settings.cache_clear()
    services.create_tables()
    with Eager(app) as eager:
        yield Shop(eager)
    for participant in services.PARTICIPANTS.values():
        participant.engine.dispose()
        del vars(participant)["barrier"]
    settings.cache_clear()


PATHS: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    # input, status, failure kind, whether all of it is left standing
    "defaults": ({}, "completed", "", True),
    "issue": (
        {"order_id": "o-1", "sku": "lamp", "quantity": 1, "card": "4242424242424242"},
        "completed",
        "",
        True,
    ),
    "unknown sku": ({"sku": "unicorn"}, "compensated", "UnknownSku", False),
    "out of stock": ({"sku": "chair", "quantity": 6}, "compensated", "OutOfStock", False),
    "card declined": ({"card": "4000000000000002"}, "compensated", "CardDeclined", False),
    "unreachable region": ({"region": "moon"}, "compensated", "UnreachableRegion", False),
    "courier is flaky": ({"courier": "flaky"}, "completed", "", True),
    "courier is down": ({"courier": "down"}, "compensated", "ConnectionError", False),
    "over the limit": ({"amount_cents": 1_000_001}, "compensated", "OverLimit", False),
    "undone at the second attempt": (
        {"courier": "flaky", "amount_cents": 1_000_001},
        "compensated",
        "OverLimit",
        False,
    ),
    "mail server is flaky": ({"email": "me@flaky.example"}, "completed", "", True),
}


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_by_its_input(shop: Shop, path: str, copies: int) -> None:
    """Each ends as the definition's table says, with all or nothing standing, delivered twice too."""
    order, status, kind, stands = PATHS[path]
    shop._copies = copies
    state = shop.place(**order)
    failure = state.cause.failure if state.cause else None
    assert (state.status.value, failure.kind if failure else "") == (status, kind)
    assert ledger.standing(state.saga_id) == (STANDING if stands else {})
    assert ledger.audit() == []


def test_refund_that_is_refused_is_stuck(shop: Shop) -> None:
    """Compensation gives up at the payment, which still stands; the reservation waits behind it."""
    state = shop.place(card="4000000000000003", region="moon")
    assert state.status == "stuck"
    assert state.step("charge-payment").stuck
    assert ledger.standing(state.saga_id) == {"inventory": 1, "payment": 4_900}


def test_notification_that_is_refused_is_stuck(shop: Shop) -> None:
    """After the pivot nothing is undone: an operator has to mend the address."""
    state = shop.place(email="nobody")
    assert state.status == "stuck"
    assert state.step("notify-customer").stuck
    assert ledger.standing(state.saga_id) == {
        service: amount for service, amount in STANDING.items() if service != "notifications"
    }


def test_stock_runs_out(shop: Shop) -> None:
    """Five chairs are sold, the sixth is not, and one that was given back is sold again."""
    assert shop.place(sku="chair", quantity=4).status == "completed"
    assert shop.place(sku="chair", quantity=1, region="moon").status == "compensated"
    assert shop.place(sku="chair", quantity=1).status == "completed"
    assert shop.place(sku="chair", quantity=1).status == "compensated"
    with inventory.participant.engine.connect() as connection:
        assert inventory.ledger.available(connection, "chair") == 0
    assert ledger.audit() == []


def test_card_number_does_not_leave_the_payment_service(shop: Shop) -> None:
    """What a saga stores of a payment are the last four digits."""
    state = shop.place(card="4242424242421234")
    assert state.step("charge-payment").output["card_last4"] == "1234"


def test_audit_sees_what_it_is_for(shop: Shop) -> None:
    """The evidence would notice a double effect, a double undoing, and one without the other."""
    done = shop.place().saga_id
    undone = shop.place(region="moon").saga_id
    with inventory.participant.engine.begin() as connection:
        for saga_id, direction, times in (
            (done, "action", 1),
            (undone, "compensation", 1),
            ("ghost", "compensation", 1),
        ):
            for _ in range(times):
                connection.execute(
                    ledger.entries.insert().values(
                        service="inventory",
                        saga_id=saga_id,
                        step="reserve-inventory",
                        direction=direction,
                        attempt=1,
                        kind="planted",
                        subject="lamp",
                        amount=1,
                        reference="planted",
                        created_at=datetime.now(UTC),
                    )
                )
    found = "\n".join(ledger.audit())
    assert f"step 'reserve-inventory' of saga {done} happened 2 times" in found
    assert f"step 'reserve-inventory' of saga {undone} was undone 2 times" in found
    assert "saga ghost was undone but never happened" in found
    assert "lamp stands at 1, its entries at 4" in found
    assert ledger.standing("ghost") == {"inventory": 1}


def test_books_that_nobody_opened_are_empty(tmp_path: Path) -> None:
    """Before any service has run there is nothing standing, and nothing is created by looking."""
    elsewhere = settings().model_copy(update={"home": tmp_path / "none", "ledger_url": ""})
    assert ledger.standing("saga-1", using=elsewhere) == {}
    assert ledger.audit(using=elsewhere) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("shop")
def test_participants_and_definitions_agree() -> None:
    """Every task that a definition names is registered, for the queue that it is sent to."""
    for saga in SAGAS:
        for step in saga.definition.steps:
            if step.task:
                assert {step.task, step.undo_task or step.task} <= app.tasks.keys()
        assert {*saga.definition.queues} <= services.PARTICIPANTS.keys()
