"""What nobody can act on is refused with a clear message, and nothing is lost."""

from datetime import timedelta
from typing import Any

from celery import Celery

from orchestrator.core.state import Status
from shared import names
from tests.faults.stack import ENDED_WITHIN, MakeStack, Stack
from tests.waiting import wait_until
from workers.examples import ledger


def send(stack: Stack, kwargs: dict[str, Any]) -> None:
    """Put a reply into the queue of the orchestrator."""
    with Celery("sender", broker=stack.settings.broker_url, set_as_current=False) as app:
        app.send_task(names.REPLY_TASK, kwargs=kwargs, queue=names.REPLIES_QUEUE)


def test_replies_that_nobody_can_act_on_become_dead_letters(make_stack: MakeStack) -> None:
    """One that cannot be read, and one for a saga that is not there; a saga beside them completes."""
    stack = make_stack()
    reply = {"step": "pay", "direction": "action", "attempt": 1, "outcome": {"type": "succeeded"}}
    send(stack, {"nonsense": True})
    send(stack, {"saga_id": "no-such-saga", **reply})
    orders = stack.order(1)
    stack.orchestrator()
    stack.participants()
    stack.assert_sound(orders)
    letters = wait_until(lambda: stack.client.dead_letters()[:2])
    unknown, unreadable = sorted(letters, key=lambda one: one.saga_id or "~")
    assert (unknown.saga_id, unknown.task) == ("no-such-saga", names.REPLY_TASK)
    assert "There is no saga 'no-such-saga'" in unknown.reason
    assert (unreadable.saga_id, unreadable.task) == (None, names.REPLY_TASK)
    assert "saga_id" in unreadable.reason
    assert "nonsense" in unreadable.body
    assert 0 == stack.unsettled_replies()


def test_task_that_no_worker_knows_undoes_the_saga(make_stack: MakeStack) -> None:
    """The saga is undone at once, not at a timeout, and its cause names the task and the queue."""
    stack = make_stack(SAGA_DEFINITIONS="tests.faults.unanswered")
    stack.settings.definitions = ("tests.faults.unanswered",)
    started = stack.client.start("unanswered", {})
    stack.orchestrator()
    stack.participants()
    row = stack.client.wait(started.row.saga_id, ENDED_WITHIN)
    assert row.state.status is Status.COMPENSATED
    assert row.state.cause is not None
    assert row.state.cause.failure is not None
    assert "TaskUnknown" == row.state.cause.failure.kind
    assert "'payment.nobody_knows'" in row.state.cause.failure.message
    assert row.updated_at - row.started_at < timedelta(seconds=20)
    assert {} == ledger.standing(started.row.saga_id, using=stack.settings)
    assert len(ledger.effects(started.row.saga_id, using=stack.settings)) == 2


def test_changed_definition_without_a_new_version_is_refused(make_stack: MakeStack) -> None:
    """The orchestrator does not start, and shows what differs; sagas of the old one still finish."""
    stack = make_stack()
    orders = stack.order(1)
    stack.orchestrator("changed", SAGA_DEFINITIONS="tests.faults.changed")
    assert 2 == stack.processes.pop("changed").wait(30), stack.output("changed")
    (refused,) = (line for line in stack.lines() if line["level"] == "critical")
    difference = "steps.reserve-inventory.timeout: PT30S -> PT7S"
    for part in ("'place-order' version 1 differs", difference, "Raise its version number to 2"):
        assert part in refused["error"], refused
    stack.orchestrator()
    stack.participants()
    stack.assert_sound(orders)
