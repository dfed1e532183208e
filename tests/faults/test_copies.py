"""Two of everything: orchestrators, and copies of every message."""

from collections import Counter

from tests.faults.stack import TWICE, MakeStack, Ordered, Stack

COUNT = 20


def advanced_by(stack: Stack, orders: list[Ordered]) -> set[int]:
    """Processes that have advanced one of the sagas."""
    ids = {one.saga_id for one in orders}
    return {
        line["pid"]
        for line in stack.lines()
        if line["service"] == "orchestrator" and line.get("saga_id") in ids
    }


def test_two_orchestrators_never_advance_a_saga_twice(
    make_stack: MakeStack, postgres_url: str
) -> None:
    """Side by side on PostgreSQL: both work, histories have no gap, and each effect happens once."""
    stack = make_stack(postgres_url)
    stack.orchestrator("one")
    stack.orchestrator("other")
    stack.participants()
    orders = stack.order(COUNT)
    stack.assert_sound(orders)
    assert len(advanced_by(stack, orders)) == 2


def test_every_message_twice_at_once_has_no_effect_twice(
    make_stack: MakeStack, postgres_url: str
) -> None:
    """Commands and replies in two copies, over two orchestrators and four children."""
    stack = make_stack(postgres_url)
    stack.orchestrator("one", celery=TWICE)
    stack.orchestrator("other", celery=TWICE)
    stack.participants("participants", "-c", "4", celery=TWICE)
    orders = stack.order(COUNT)
    stack.assert_sound(orders)
    received = Counter(
        line["task_id"]
        for line in stack.lines()
        if line.get("task_id")
        and line["event"].startswith("Task ")
        and " received" in line["event"]
    )
    assert Counter(received.values())[2] > COUNT, "no copies were received"
