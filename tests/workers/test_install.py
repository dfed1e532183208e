from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task
from structlog.testing import CapturingLogger

from tests.workers import installed_app, plain_app
from tests.workers.eager import Eager
from tests.workers.stand_in import command, summary
from workers.sdk import install, runner


@pytest.fixture
def eager() -> Iterator[Eager]:
    """The installed app, run in this process."""
    with Eager(app) as running:
        yield running


app = installed_app.app

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("plain.add", {"x": 1, "y": 2}, "succeeded 3"),
    ("plain.add", {"x": 1, "sku": "lamp"}, "succeeded 2"),
    ("plain.add", {"y": 2}, "rejected InvalidArguments"),
    ("plain.everything", {"b": 1, "a": 2}, 'succeeded ["a", "b"]'),
    ("plain.shared", {"x": 4}, "succeeded 4"),
    ("plain.bound", {"x": 4, "y": 5}, "succeeded [4, 0]"),
    ("plain.in_context", {"x": 4}, "succeeded [4, true]"),
    ("plain.class_based", {"x": 4}, "succeeded 40"),
    ("plain.calls_itself", {"depth": 3}, "succeeded 0"),
    ("plain.calls_another", {"x": 3}, "succeeded 8"),
    ("plain.breaks", {}, "failed ConnectionError"),
    ("plain.says_no", {}, "rejected OutOfStock"),
    ("plain.not_json", {}, "failed ResultNotJson for good"),
    ("plain.too_large", {}, "failed ResultTooLarge for good"),
    ("plain.ignores", {}, "failed Ignored for good"),
    ("plain.rejects_message", {}, "failed MessageRejected for good"),
]


@pytest.mark.parametrize("task, payload, expected", CASES)
def test_unmodified_task_answers(
    eager: Eager, task: str, payload: dict[str, Any], expected: str
) -> None:
    """Whatever a task is made of and however it ends, the saga gets exactly one reply."""
    replies = eager.run(task, command(), payload)
    assert [expected] == [summary(reply.outcome) for reply in replies]


@pytest.mark.parametrize("task", ["plain.says_no", "plain.add"])
def test_compensation_cannot_be_refused(eager: Eager, task: str) -> None:
    """What would be a rejection of an action is a final failure of a compensation."""
    (reply,) = eager.run(task, command("compensation"), {})
    assert summary(reply.outcome).startswith("failed ")
    assert summary(reply.outcome).endswith(" for good")


def test_message_without_saga_headers_is_left_alone(eager: Eager) -> None:
    """The same tasks go on doing their other work: no reply, all arguments checked as before."""
    assert eager.plainly("plain.add", {"x": 1, "y": 2}) == 3
    assert eager.replies() == []


def test_malformed_saga_headers_are_logged_and_nothing_runs(
    eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nobody to answer; the message is gone, and a line in the log says why."""
    log = CapturingLogger()
    monkeypatch.setattr(runner, "_log", log)
    assert eager.run("plain.breaks", command(), {}, extra={"saga_attempt": "first"}) == []
    ((method, event, fields),) = log.calls
    assert (method, event) == ("error", ("step.malformed",))
    assert "saga_attempt" in fields["reason"]


def test_direct_call_is_a_call(eager: Eager) -> None:
    """A task that is used as a function is one."""
    assert plain_app.add(2, 3) == 5
    assert eager.replies() == []


def test_install_twice_changes_nothing() -> None:
    """A second `install` of the same app wraps nothing twice."""
    before = {name: type(task) for name, task in app.tasks.items()}
    install(app)
    assert before == {name: type(task) for name, task in app.tasks.items()}


def test_celerys_own_tasks_are_left_alone() -> None:
    """`celery.chord_unlock` and its siblings are no steps."""
    for name, task in app.tasks.items():
        assert name.startswith("celery.") is ("install" not in str(type(task).__mro__))


def test_app_that_was_finalized_before_is_covered() -> None:
    """The order of `install` and of looking at the tasks does not matter."""
    late: Celery[Any] = Celery("late", broker="memory://", set_as_current=False)

    @late.task(name="late.echo")
    def echo(x: int) -> int:
        """Return its argument."""
        return x

    task: Task[Any, Any] = late.tasks["late.echo"]
    install(late)
    assert task is late.tasks["late.echo"]
    with Eager(late) as running:
        (reply,) = running.run("late.echo", command(), {"x": 1})
    assert summary(reply.outcome) == "succeeded 1"
