"""Sagas with large payloads: each keeps its own, whoever gave it to it and whatever is purged."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typing_extensions import override

from orchestrator.cli.output import as_text
from orchestrator.cli.render import saga_blocks
from orchestrator.core.definition import Input, Output, Retry, Saga, Step, SubSaga, WaitFor
from orchestrator.payloads import same_input
from orchestrator.retention import Archived, archive_to, purge, sweep
from shared.claims import Claims
from shared.clock import utc_now
from shared.errors import (
    ConfigurationError,
    DecodeError,
    InputError,
    KeyConflict,
    NotAllowed,
    PayloadStoreUnavailable,
    PayloadTooLarge,
    UnknownSaga,
)
from shared.ids import sub_saga_id
from shared.messages import Command, StartRequest
from shared.tickets import is_ticket, ticket
from shared.tokens import token_of
from tests.core.test_claims import LARGE, claims_in
from tests.guide.shop import Shop
from workers.sdk import Later, Reject

WEEK = timedelta(days=7)
MARKS = "m" * 3_000
"""Nothing but a sub-saga has it."""


class Book(msgspec.Struct):
    """Input: a large field, checked as what it is."""

    text: str
    title: str = "T"


class Proofs(msgspec.Struct):
    """Input of the saga below: a field of a large value, and another one."""

    page: str


class Cover(msgspec.Struct):
    """What a step returns that is completed from elsewhere."""

    cover: str


PRINT = Saga(
    name="print",
    version=1,
    input=Book,
    steps=(
        Step("render", "press.render", "press.shred", retry=Retry(attempts=1)),
        Step("proof", SubSaga("proof"), payload={"page": Output("render", "page.text")}),
        Step("ship", "press.ship", "press.recall", payload={"proofs": Output("proof")}),
    ),
)
PROOF = Saga(
    name="proof",
    version=1,
    input=Proofs,
    steps=(Step("read", "press.read", "press.forget"),),
)
WAITS = Saga(
    name="waits",
    version=1,
    input=Book,
    steps=(
        Step("render", "press.render", "press.shred", payload={"text": Input("title")}),
        Step("opinion", WaitFor("opinion"), timeout=timedelta(hours=1)),
        Step(
            "later",
            "press.later",
            "press.forget",
            completes_within=timedelta(hours=1),
            output=Cover,
        ),
        Step("ship", "press.ship", "press.recall", payload={"proofs": Output("later")}),
    ),
)


class Press(Shop):
    """A shop with a payload store in a folder.

    Attributes:
        claims: Its claim check.
        got: What tasks were called with, by name.
        refuses: Tasks that say no.
        away_after: Task after whose first end the payload store is away.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "claims"
        self.claims: Claims = claims_in(self.folder)
        self.got: dict[str, dict[str, Any]] = {}
        self.refuses: set[str] = set()
        self.away_after = ""
        results: dict[str, Any] = {
            "render": {"page": {"text": LARGE, "number": 1}, "small": "s"},
            "read": {"marks": MARKS},
            "later": Later(),
        }
        names = ("render", "shred", "read", "forget", "ship", "recall", "later")
        tasks = {f"press.{one}": self._task(one, results.get(one)) for one in names}
        super().__init__(PRINT, PROOF, WAITS, tasks=tasks, claims=self.claims)

    @override
    def _run(self, command: Command) -> None:
        super()._run(command)
        if command.task == self.away_after:
            self.away_after = ""
            self.away()

    def _task(self, name: str, result: Any) -> Callable[..., Any]:
        def run(**arguments: Any) -> Any:
            self.got[name] = arguments
            if name in self.refuses:
                raise Reject("No")
            return result

        return run

    def away(self) -> None:
        """The payload store cannot be reached: its volume is not mounted."""
        self.folder.rename(self.folder.with_name("elsewhere"))

    def back(self) -> None:
        """It is again."""
        self.folder.with_name("elsewhere").rename(self.folder)

    def purge(self, *names: str, archive: Path | None = None) -> int:
        """Delete all sagas of these names that have ended; returns how many."""
        due = {one: row.trace_due_at for one, row in self.rows().items() if row.trace_due_at}
        self.store.commit((), traced=due)
        return sum(
            sum(
                purge(
                    self.store,
                    self.now + WEEK,
                    name=name,
                    archive=archive_to(archive) if archive else None,
                    claims=self.claims,
                )
            )
            for name in names
        )

    def rows(self) -> dict[str, Any]:
        """All sagas."""
        return self.store.load([one.saga_id for one in self.store.list_sagas(limit=100)])

    def largest(self) -> int:
        """Bytes of the largest row or history."""
        rows = self.rows()
        histories = self.store.history(list(rows))
        return max(len(msgspec.json.encode(one)) for one in [*rows.values(), *histories.values()])


@pytest.fixture
def press(tmp_path: Path) -> Press:
    """The shop."""
    return Press(tmp_path)


def test_large_values_pass_through_sagas_and_no_row(press: Press) -> None:
    """Input, output, a path into an output, and what a sub-saga has come to."""
    saga_id = press.start("print", text=LARGE)
    assert press.status(saga_id) == "completed"
    assert press.got["render"] == {"text": LARGE, "title": "T"}
    assert press.got["read"] == {"page": LARGE}
    assert press.got["ship"] == {"proofs": {"read": {"marks": MARKS}}}
    assert press.largest() < 6_000
    assert max(len(str(one.payload)) for one in press.commands) < 1_000
    assert is_ticket(press.view(saga_id).input["text"])
    shown = as_text(saga_blocks(press.view(saga_id), press.now))
    assert '"text": "<2.0 kB in the payload store>"' in shown
    assert press.client.payload(saga_id) == {"text": LARGE, "title": "T"}
    assert press.client.payload(saga_id, "proof") == {"read": {"marks": MARKS}}
    assert press.client.payload(saga_id, "render", undo=True)["page"]["text"] == LARGE
    with pytest.raises(InputError, match="no step 'x'"):
        press.client.payload(saga_id, "x")


def test_compensations_get_what_was_really_done(press: Press) -> None:
    """In the sub-saga, too."""
    press.refuses.add("ship")
    saga_id = press.start("print", text=LARGE)
    assert press.status(saga_id) == "compensated"
    assert press.got["forget"] == {"page": LARGE, "undo": {"marks": MARKS}}
    assert press.got["shred"]["text"] == LARGE
    assert press.got["shred"]["undo"]["page"]["text"] == LARGE


# Starts ---------------------------------------------------------------------------------------


def test_the_real_value_is_checked(press: Press) -> None:
    """A ticket is none that a client may give, however well it looks."""
    with pytest.raises(InputError, match="text"):
        press.client.start("print", {"text": [LARGE]})
    with pytest.raises(InputError, match="text"):
        press.client.start("print", {"text": ticket("0" * 64, 5_000)})
    with pytest.raises(PayloadTooLarge, match=r"field 'text'.*SAGA_CLAIM_CHECK_BYTES_MAX"):
        press.client.start("print", {"text": "x" * 20_000})
    assert press.claims.store.sagas() == []


def test_a_business_key_with_the_same_large_input_is_the_same_start(press: Press) -> None:
    """It leaves nothing behind; other input is a conflict."""
    first = press.start("waits", key="k", text=LARGE)
    assert press.start("waits", key="k", text=LARGE) == first
    with pytest.raises(KeyConflict):
        press.client.start("waits", {"text": LARGE + "x"}, key="k")
    assert press.claims.store.sagas() == [first]
    kept = press.client.row(first).state.input
    assert same_input(kept, {"text": LARGE, "title": "T"})  # from before there was a claim check
    assert not same_input(kept, {"text": LARGE, "title": "U"})


def test_a_start_without_the_payload_store_stores_nothing(press: Press) -> None:
    """And says so; small sagas start, and those in flight go on."""
    press.away()
    with pytest.raises(PayloadStoreUnavailable, match="cannot be used"):
        press.client.start("print", {"text": LARGE})
    assert press.store.list_sagas() == []
    assert press.status(press.start("waits", text="t")) == "running"


def test_a_start_by_message_waits_in_the_dead_letters(press: Press) -> None:
    """It holds nobody up, and is started when the store is back."""
    press.away()
    press.send(StartRequest(name="waits", input={"text": LARGE}), "task-1")
    (letter,) = press.client.dead_letters()
    assert "payload store" in letter.reason
    press.back()
    press.client.requeue(letter.dead_letter_id)
    assert len(press.store.list_sagas()) == 1


# What comes later -----------------------------------------------------------------------------


def test_signals_completions_and_what_operators_give(press: Press) -> None:
    """All of it large, and all of it kept as tickets."""
    saga_id = press.start("waits", text="t")
    press.client.signal(saga_id, "opinion", {"approved": True, "review": LARGE})
    press.settle()
    state = press.client.row(saga_id).state
    assert state.signals["opinion"]["approved"] is True
    (token,) = (one.token for one in press.commands if one.step == "later")
    press.refuses.add("ship")
    press.client.pause(saga_id, reason="test")
    press.client.complete(token, {"cover": LARGE}, undo=LARGE)
    assert press.client.payload(saga_id, "later", undo=True) == LARGE
    press.client.skip(saga_id, "ship", output={"by": "hand", "receipt": LARGE}, reason="test")
    press.client.resume(saga_id, reason="test")
    press.settle()
    assert press.status(saga_id) == "completed"
    assert press.client.payload(saga_id, "ship") == {"by": "hand", "receipt": LARGE}
    assert press.largest() < 6_000
    assert press.claims.store.sagas() == [saga_id]


def test_an_operator_may_edit_what_has_tickets(press: Press) -> None:
    """Those of the saga, as it is shown; no others. A dry run keeps nothing."""
    press.refuses.add("render")
    saga = Saga(
        name="forward",
        version=1,
        input=Book,
        steps=(Step("render", "press.render", pivot=True), Step("ship", "press.ship")),
    )
    shop = Shop(saga, tasks=press._tasks, claims=press.claims)
    saga_id = shop.start("forward", text=LARGE)
    assert shop.status(saga_id) == "compensated"
    press.refuses = {"ship"}
    saga_id = shop.start("forward", text=LARGE)
    assert shop.status(saga_id) == "stuck"
    given = shop.client.row(saga_id).state.input
    edit = shop.client.retry
    with pytest.raises(InputError, match="does not keep"):
        edit(saga_id, "ship", payload={"a": ticket("0" * 64, 1)}, reason="test")
    before = press.claims.store.digests(saga_id)
    new = {**given, "title": "U", "more": LARGE + "y"}
    edit(saga_id, "ship", payload=new, reason="test", dry_run=True)
    assert press.claims.store.digests(saga_id) == before
    press.refuses = set()
    edit(saga_id, "ship", payload=new, reason="test")
    shop.settle()
    assert press.got["ship"] == {"text": LARGE, "title": "U", "more": LARGE + "y"}


def test_what_is_refused_is_refused_by_its_real_values(press: Press) -> None:
    """And before any of it is kept."""
    saga_id = press.start("waits", text="t")
    before = press.claims.store.digests(saga_id)
    wrong = {"cover": [MARKS]}
    with pytest.raises(NotAllowed, match="is no Cover: cover: a text is wanted"):
        press.client.skip(saga_id, "later", output=wrong, reason="test")
    press.client.signal(saga_id, "opinion", "fine")
    press.settle()
    (token,) = (one.token for one in press.commands if one.step == "later")
    with pytest.raises(NotAllowed, match="is no Cover: cover: a text is wanted"):
        press.client.complete(token, wrong)
    forged = token_of("another secret", saga_id, "later", "action", 1)
    with pytest.raises(NotAllowed, match="token"):
        press.client.complete(forged, {"cover": MARKS})
    with pytest.raises(NotAllowed, match="no-such"):
        press.client.signal(saga_id, "no-such", MARKS)
    assert press.claims.store.digests(saga_id) == before


def test_nothing_is_kept_for_a_saga_that_does_not_exist(press: Press) -> None:
    """Nobody would delete it."""
    with pytest.raises(UnknownSaga):
        press.client.signal("no-such", "opinion", {"review": LARGE})
    with pytest.raises(InputError, match="looks like a ticket"):
        press.client.signal("no-such", "opinion", ticket("0" * 64, 1))
    assert press.claims.store.sagas() == []


# Between sagas --------------------------------------------------------------------------------


@pytest.mark.parametrize("first, second", [("print", "proof"), ("proof", "print")])
def test_a_saga_and_its_sub_saga_are_purged_apart(first: str, second: str, press: Press) -> None:
    """Neither takes what the other one keeps."""
    above = press.start("print", text=LARGE)
    below = sub_saga_id(above, "proof", 1)
    other = {"print": below, "proof": above}[first]
    assert press.purge(first) == 1
    assert press.claims.store.sagas() == [other]
    press.client.payload(other)
    for step in ("read",) if other == below else ("render", "proof"):
        press.client.payload(other, step)
    assert press.purge(second) == 1
    assert press.claims.store.sagas() == []


@pytest.mark.parametrize("task", ["press.render", "press.read"])
def test_sagas_ask_again_where_the_payload_store_was_away(task: str, press: Press) -> None:
    """When the sub-saga was to start, and when it had answered: nobody else is held up meanwhile."""
    press.away_after = task
    saga_id = press.start("print", text=LARGE)
    assert press.status(saga_id) == "running"
    assert press.status(press.start("waits", text="t")) == "running"
    press.back()
    press.wait(timedelta(minutes=3))
    assert press.status(saga_id) == "completed"
    assert press.got["ship"] == {"proofs": {"read": {"marks": MARKS}}}


@pytest.mark.parametrize(
    "task, lost, kind", [("press.render", "above", "rejected"), ("press.read", "below", "failed")]
)
def test_what_is_lost_for_good_is_not_asked_for_for_ever(
    task: str, lost: str, kind: str, press: Press
) -> None:
    """The step that is a saga fails, and names it; an undo that needs it waits for the backup."""
    press.away_after = task
    saga_id = press.start("print", text=LARGE)
    below = sub_saga_id(saga_id, "proof", 1)
    press.back()
    of = {"above": saga_id, "below": below}[lost]
    files = {one: one.read_bytes() for one in (press.folder / of).iterdir()}
    for file in files:
        file.unlink()
    press.wait(timedelta(hours=2))
    error = press.view(saga_id).error
    assert error is not None
    assert (error.step, error.cause, error.kind) == ("proof", kind, "PayloadLost")
    assert f"of saga {of}." in error.message
    assert press.status(of) == "stuck"
    for file, data in files.items():
        file.write_bytes(data)
    press.client.retry(of, reason="restored from a backup")
    press.settle()
    press.wait(timedelta(minutes=3))
    assert press.status(saga_id) == "compensated"
    assert below not in press.rows() or press.status(below) == "compensated"


def test_an_empty_folder_is_taken_for_a_volume_that_is_not_mounted(press: Press) -> None:
    """All of it gone at once: more likely it is elsewhere. It is asked for again."""
    press.away_after = "press.read"
    saga_id = press.start("print", text=LARGE)
    press.folder.mkdir()
    press.wait(timedelta(minutes=3))
    assert press.status(saga_id) == "running"
    press.folder.rmdir()
    press.back()
    press.wait(timedelta(minutes=10))
    assert press.status(saga_id) == "completed"


def test_a_path_that_leads_to_nothing_starts_no_sub_saga(press: Press) -> None:
    """Its input is put together where the value is at hand: the step is rejected then."""
    payload = {"page": Output("render", "page.no.such")}
    above = Saga(
        name="above",
        version=1,
        input=Book,
        steps=(
            Step("render", "press.render", "press.shred"),
            Step("proof", SubSaga("proof"), payload=payload),
        ),
    )
    shop = Shop(above, PROOF, tasks=press._tasks, claims=press.claims)
    saga_id = shop.start("above", text=LARGE)
    error = shop.view(saga_id).error
    assert shop.status(saga_id) == "compensated"
    assert error is not None
    assert error.kind == "SubSagaRefused"
    assert "the value in the payload store has no 'no.such'" in error.message


def test_a_fork_keeps_what_it_copies(press: Press) -> None:
    """The input, and what counts as done, with its undo data; a dry run keeps nothing."""
    press.refuses.add("recall")
    old = press.start("print", text=LARGE)
    press.client.fork(old, "ship", dry_run=True)
    below = sub_saga_id(old, "proof", 1)
    assert set(press.claims.store.sagas()) == {old, below}
    press.got.clear()
    forked = press.client.fork(old, "ship").row.saga_id
    press.settle()
    press.claims.store.delete(old)  # as its purge does
    assert press.got["ship"] == {"proofs": {"read": {"marks": MARKS}}}
    assert press.client.payload(forked) == {"text": LARGE, "title": "T"}
    assert press.client.payload(forked, "render", undo=True)["page"]["text"] == LARGE
    assert press.client.payload(forked, "proof") == {"read": {"marks": MARKS}}


# Purging --------------------------------------------------------------------------------------


def test_the_archive_has_the_payloads(press: Press, tmp_path: Path) -> None:
    """And not before it has them is anything deleted."""
    saga_id = press.start("print", text=LARGE)
    file = tmp_path / "archive.jsonl"
    without = purge(press.store, press.now + WEEK, archive=archive_to(file))
    press.purge()  # the spans of all are exported
    with pytest.raises(ConfigurationError, match="SAGA_CLAIM_CHECK_URL is not set"):
        list(without)
    assert saga_id in press.rows()
    kept = press.claims.store.digests(saga_id)
    assert press.purge("print", archive=file) == 1
    (line,) = file.read_bytes().splitlines()
    archived = msgspec.json.decode(line, type=Archived)
    assert sorted(archived.payloads) == kept
    digest = archived.row.state.input["text"]["$claim"]
    assert msgspec.json.decode(archived.payloads[digest]) == LARGE


def test_a_purge_that_cannot_archive_a_payload_deletes_nothing(
    press: Press, tmp_path: Path
) -> None:
    """It is damaged, or encrypted with another key."""
    saga_id = press.start("print", text=LARGE)
    for digest in press.claims.store.digests(saga_id):
        press.claims.store.write(saga_id, digest, b"damaged", anew=True)
    with pytest.raises(DecodeError, match=f"saga {saga_id} is damaged"):
        press.purge("print", archive=tmp_path / "archive.jsonl")
    assert saga_id in press.rows()


def test_a_purge_without_the_payload_store_deletes_nothing(press: Press) -> None:
    """The rows stay as long as their payloads."""
    saga_id = press.start("print", text=LARGE)
    press.away()
    with pytest.raises(PayloadStoreUnavailable):
        press.purge("print")
    assert saga_id in press.rows()


def test_the_rows_go_first(press: Press, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in between leaves payloads of no saga, which a later purge takes along."""
    saga_id = press.start("print", text=LARGE)

    def crash(_: str) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(press.claims.store, "delete", crash)
        with pytest.raises(SystemExit):
            press.purge("print")
    assert saga_id not in press.rows()
    assert saga_id in press.claims.store.sagas()
    assert sweep(press.store, press.claims, utc_now() - timedelta(days=1)) == 0
    assert sweep(press.store, press.claims, utc_now() + timedelta(days=1)) == 1
    assert press.claims.store.sagas() == [sub_saga_id(saga_id, "proof", 1)]
    assert press.client.sweep() == 0
    with pytest.raises(ConfigurationError, match="SAGA_CLAIM_CHECK_URL is not set"):
        Shop(PROOF, tasks={}).client.sweep()
