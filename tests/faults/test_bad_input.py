"""What nobody can act on is refused with a clear message, and nothing is lost."""

import json
from datetime import timedelta
from typing import Any

from celery import Celery

from orchestrator.core.state import Status
from orchestrator.explain import explain
from shared import names
from shared.clock import utc_now
from shared.errors import UnknownSaga
from shared.ids import sub_saga_id
from shared.messages import TASK_UNKNOWN
from tests.faults.stack import ENDED_WITHIN, MakeStack, Stack
from tests.servers.process import kill_tree
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


def test_saga_whose_task_no_worker_knows_is_stuck_until_one_does(make_stack: MakeStack) -> None:
    """At once, not at a timeout; after a deploy `saga retry` lets all of them go on, or one gives up."""
    stack = make_stack(SAGA_DEFINITIONS="tests.faults.unanswered")
    stack.settings.definitions = ("tests.faults.unanswered",)
    first, second, parent = (
        stack.client.start(name, {}).row.saga_id
        for name in ("unanswered", "unanswered", "asks-another")
    )
    child = sub_saga_id(parent, "other", 1)
    stack.orchestrator()
    stack.participants()
    wait_until(lambda: all(stuck(stack, one) for one in (first, second, child)), timeout=30)
    row = stack.client.row(first)
    failure = row.state.step("ask").failure
    assert failure is not None
    assert failure.kind == TASK_UNKNOWN
    assert row.updated_at - row.started_at < timedelta(seconds=20)
    told = explained(stack, first)
    assert "No worker of the queue 'payment' knows the task 'payment.nobody_knows'" in told
    assert f"`saga retry {first}`" in told
    held_up = f"The saga {child} (unanswered) that it waits for is stuck at step 'ask'"
    assert held_up in explained(stack, parent)

    # One is given up: what never ran needs no undo.
    stack.client.compensate(second, reason="not worth it")
    assert stack.client.wait(second, ENDED_WITHIN).state.status is Status.COMPENSATED
    assert {} == ledger.standing(second, using=stack.settings)
    assert len(ledger.effects(second, using=stack.settings)) == 2

    # The others go on after the deploy, which only knows what they wait for.
    kill_tree(stack.processes.pop("participants"))
    stack.deploy("tests.faults.answering", "payment")
    options = ("--error", TASK_UNKNOWN, "--yes", "--reason", "deployed", "--json")
    asked = stack.run("retry", *options)
    assert asked.returncode == 0, asked.stderr
    assert {first, child} == {one["saga_id"] for one in json.loads(asked.stdout)}
    for saga_id in (first, child, parent):
        assert stack.client.wait(saga_id, ENDED_WITHIN).state.status is Status.COMPLETED


def stuck(stack: Stack, saga_id: str) -> bool:
    """Whether a saga has begun, and is stuck."""
    try:
        return stack.client.row(saga_id).state.status is Status.STUCK
    except UnknownSaga:
        return False


def explained(stack: Stack, saga_id: str) -> str:
    """What `saga explain` says."""
    definition, row, history = stack.client.story(saga_id)
    below = stack.client.below(row)
    return explain(definition, row, history, utc_now(), consumed=None, below=below)


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
