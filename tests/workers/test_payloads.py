"""A function gets the values that its tickets stand for, and its large results become tickets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from shared.claims import Claims
from shared.messages import Failed, Reply, Succeeded
from shared.tickets import into, or_else, ticket
from tests.core.test_claims import LARGE, claims_in
from tests.workers.eager import Eager
from tests.workers.stand_in import command, summary
from workers.sdk import Participant, StepContext, StepResult, install, payloads

SMALL = {"name": "small"}


class Press:
    """A participant in this process, whose payload store is a folder.

    Attributes:
        claims: Its claim check.
        got: What its functions were called with.
        returns: What they return.
    """

    def __init__(self, folder: Path) -> None:
        self.claims: Claims = claims_in(folder / "claims")
        self.got: list[dict[str, Any]] = []
        self.returns: Any = None
        self.app: Celery[Any] = Celery("press", broker="memory://", set_as_current=False)
        self.participant = Participant(self.app, f"sqlite:///{folder}/press.db")
        self.participant.create_tables()
        install(self.app)
        self.participant.action("press.print")(self.print)
        self.participant.compensation("press.shred")(self.shred)
        self.app.task(name="press.plain", shared=False)(self.plain)
        self.eager = Eager(self.app)

    def print(self, context: StepContext, text: str, title: str = "") -> Any:
        """Print it."""
        self.got.append({"text": text, "title": title})
        return self.returns

    def shred(self, context: StepContext, undo: Any, text: str) -> None:
        """Take it back."""
        self.got.append({"undo": undo, "text": text})

    def plain(self, text: str) -> Any:
        """A task of an app that knows of no saga."""
        self.got.append({"text": text})
        return self.returns

    def kept(self, value: Any, saga_id: str = "saga-1") -> Any:
        """A value as the orchestrator sends it."""
        return self.claims.kept(value, saga_id, "It")

    def run(self, task: str, payload: Any, direction: Any = "action", **of: Any) -> Reply:
        """Run a step; returns its reply."""
        (reply,) = self.eager.run(task, command(direction, **of), payload)
        return reply


@pytest.fixture
def press(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Press]:
    """The participant; the claim check of this process is its own."""
    made = Press(tmp_path)
    monkeypatch.setattr(payloads, "claims", lambda: made.claims)
    with made.eager:
        yield made
    made.participant.engine.dispose()


def succeeded(reply: Reply) -> Succeeded:
    """Its outcome, which has to be that."""
    assert isinstance(reply.outcome, Succeeded), summary(reply.outcome)
    return reply.outcome


def failed(reply: Reply) -> tuple[str, bool]:
    """Kind of its failure, and whether another attempt may help."""
    assert isinstance(reply.outcome, Failed), summary(reply.outcome)
    return reply.outcome.failure.kind, reply.outcome.failure.retryable


@pytest.mark.parametrize("task", ["press.print", "press.plain"])
def test_tickets_are_fetched_and_made(task: str, press: Press) -> None:
    """Of a participant, and of a task that was not written for sagas."""
    press.returns = {"pdf": LARGE, **SMALL}
    outcome = succeeded(press.run(task, press.kept({"text": LARGE})))
    assert press.got[0]["text"] == LARGE
    assert outcome.output == outcome.undo == {**press.kept({"pdf": LARGE}), **SMALL}
    assert len(str(outcome)) < 500


def test_a_duplicate_gets_the_same_ticket_from_the_barrier(press: Press) -> None:
    """What is recorded is small, too."""
    press.returns = {"pdf": LARGE}
    first, again = (press.run("press.print", press.kept({"text": LARGE})) for _ in range(2))
    assert succeeded(first) == succeeded(again)
    assert len(press.got) == 1


def test_a_compensation_gets_the_real_undo_data(press: Press) -> None:
    """Those that the orchestrator knows, and those that only the barrier does."""
    press.returns = StepResult(output={"pages": 3}, undo={"pdf": LARGE})
    arguments = press.kept({"text": LARGE})
    outcome = succeeded(press.run("press.print", arguments))
    assert len(str(outcome)) < 500
    press.run("press.shred", {**arguments, "undo": outcome.undo}, "compensation")
    assert press.got[1] == {"undo": {"pdf": LARGE}, "text": LARGE}
    press.run("press.print", press.kept({"text": LARGE}, "saga-2"), saga_id="saga-2")
    lost = {"undo": None, **arguments}
    press.run("press.shred", lost, "compensation", saga_id="saga-2")
    assert press.got[3] == {"undo": {"pdf": LARGE}, "text": LARGE}


def test_a_path_into_a_value_is_followed(press: Press) -> None:
    """A path that leads to nothing rejects the step, unless it has a default."""
    book = press.kept({"book": {"text": LARGE, "title": "T"}})["book"]
    payload = {"text": into(book, "text"), "title": or_else(into(book, "subtitle"), "none")}
    succeeded(press.run("press.print", payload))
    assert press.got == [{"text": LARGE, "title": "none"}]
    reply = press.run("press.print", {"text": into(book, "no.such")}, step="other")
    assert summary(reply.outcome) == "rejected PayloadUnresolved"
    undo = press.run("press.shred", {"text": into(book, "no"), "undo": 1}, "compensation")
    assert failed(undo) == ("PayloadUnresolved", False)


def test_what_a_function_does_not_ask_for_is_not_fetched(press: Press) -> None:
    """Here it could not be."""
    succeeded(press.run("press.print", {"text": "t", "scan": ticket("0" * 64, 5_000)}))
    assert press.got == [{"text": "t", "title": ""}]


def test_a_value_that_cannot_be_fetched_fails_the_attempt_for_now(
    press: Press, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there later, or on another machine; nothing was called."""
    gone = {"text": ticket("0" * 64, 5_000)}
    assert failed(press.run("press.print", gone)) == ("PayloadUnavailable", True)
    monkeypatch.setattr(payloads, "claims", lambda: None)
    reply = press.run("press.print", gone)
    assert failed(reply) == ("PayloadUnavailable", True)
    assert "SAGA_CLAIM_CHECK_URL is not set" in str(reply.outcome)
    assert press.got == []


def test_a_result_that_cannot_be_kept_undoes_the_attempt(press: Press) -> None:
    """The transaction is rolled back: the next attempt does it anew."""
    folder = Path(press.claims.store._files()[1])
    folder.rmdir()
    press.returns = {"pdf": LARGE}
    assert failed(press.run("press.print", {"text": "t"})) == ("PayloadUnavailable", True)
    folder.mkdir()
    succeeded(press.run("press.print", {"text": "t"}, attempt=2))
    assert len(press.got) == 2


@pytest.mark.parametrize(
    "returns, kind",
    [
        ({"pdf": "x" * 20_000}, "ResultTooLarge"),
        ({"pdf": ticket("0" * 64, 1)}, "ResultIsTicket"),
        ({f"page-{number}": "y" * 900 for number in range(400)}, "ResultTooLarge"),
        ({"pdf": object()}, "ResultNotJson"),
    ],
)
def test_a_result_that_can_never_be_kept_fails_for_good(
    returns: Any, kind: str, press: Press
) -> None:
    """A forged ticket among them."""
    press.returns = returns
    assert failed(press.run("press.print", {"text": "t"})) == (kind, False)


def test_outside_of_a_saga_nothing_is_kept(press: Press) -> None:
    """Nobody would delete it."""
    press.returns = {"pdf": LARGE}
    assert press.eager.plainly("press.print", {"text": "t"}) == {"pdf": LARGE}
    assert press.claims.store.sagas() == []
