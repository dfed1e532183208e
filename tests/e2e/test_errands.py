"""What sagas wait for and what people do about it, by the `saga` command, HTTP and plain messages.

One `saga dev` with a worker of its own; each test starts the sagas that it looks at, and looks at
what `saga show`, `saga explain` and `saga trace` say of them.
"""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import accumulate
from signal import SIGINT
from typing import Any, Final

import httpx2
import pytest
from celery import Celery

from shared import names as wire
from shared.clock import utc_now
from tests.e2e.errand_app import booking
from tests.e2e.errands import STAMPS_A_SECOND
from tests.e2e.saga_dev import ERRAND_APP, ERRANDS, Dev
from tests.servers.otlp import ReceivedSpan
from tests.servers.spantree import assert_one_tree
from tests.waiting import wait_until

IN_FLIGHT_MAX: Final = 2
EVENTS_MAX: Final = 100
NEXT: Final = {"SAGA_DEFINITIONS": "tests.e2e.errands,tests.e2e.errands_next"}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """One `saga dev` for all tests of this file."""
    env = {
        **ERRANDS,
        "SAGA_IN_FLIGHT_MAX": str(IN_FLIGHT_MAX),
        "SAGA_HISTORY_EVENTS_MAX": str(EVENTS_MAX),
    }
    home = tmp_path_factory.mktemp("errands")
    with Dev(home, *ERRAND_APP, env=env) as running:
        yield running


@pytest.fixture
def plain(dev: Dev) -> Iterator[Celery[Any]]:
    """Any Celery app on the same broker."""
    broker = (dev.home / "broker.url").read_text()
    with Celery("plain", broker=broker, set_as_current=False) as app:
        yield app


def start(dev: Dev, name: str, *options: str, **given: Any) -> str:
    """Start a saga; returns its id."""
    if name not in {"paperwork", "stamp", "attic"}:
        given = {"begin_at": utc_now().isoformat(), **given}
    done = dev.start_saga(name, *options, **given)
    assert done.code == 0, done.err
    return str(done.json["saga_id"])


def show(dev: Dev, saga_id: str) -> Any:
    """What `saga show --json` shows."""
    return dev.saga("show", saga_id, "--json").json


def step(dev: Dev, saga_id: str, name: str) -> Any:
    """The line of one step."""
    return next(one for one in show(dev, saga_id)["steps"] if one["name"] == name)


def await_step(dev: Dev, saga_id: str, name: str, phase: str) -> Any:
    """Wait until a step stands there."""

    def stands() -> Any:
        found = step(dev, saga_id, name)
        return found if found["phase"] == phase else None

    return wait_until(stands, timeout=30, what=f"{name} {phase}")


def await_end(dev: Dev, saga_id: str, status: str) -> Any:
    """Wait until a saga has come to rest, and look at it."""
    wait_until(lambda: show(dev, saga_id)["outcome"], timeout=30, what=status)
    shown = show(dev, saga_id)
    assert shown["status"] == status, shown["error"]
    return shown


def token(dev: Dev, saga_id: str, name: str) -> str:
    """The token of a ride, once it was ordered."""
    file = booking(dev.home, saga_id, name)
    wait_until(file.exists, timeout=30, what=f"{name} of {saga_id}")
    return file.read_text()


def details(shown: Any, event: str) -> list[str]:
    """What the time line says with an event."""
    return [one["detail"] for one in shown["timeline"] if one["event"] == event]


@contextmanager
def serving(dev: Dev) -> Iterator[str]:
    """`saga serve` as a process of its own; gives its address."""
    process = dev.spawn("serve", "--port", "0")
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.send_signal(SIGINT)
        process.communicate(timeout=20)


def assert_right(dev: Dev, *saga_ids: str) -> list[ReceivedSpan]:
    """They are one trace, which is one tree; their histories are decided alike today."""
    for saga_id in saga_ids:
        replayed = dev.saga("replay", saga_id)
        assert replayed.code == 0, replayed.out
    found = dev.exported(saga_ids[0])
    spans = [
        ReceivedSpan(
            trace_id=one["trace_id"],
            span_id=one["span_id"],
            parent_id=one["parent_span_id"] or "",
            name=one["name"],
            kind=one["kind"],
            start_ns=one["start_ns"],
            end_ns=one["end_ns"],
            attributes=one["attributes"],
            status="error" if one["error"] else "unset",
            status_message=one["error"] or "",
            links=(),
            events=(),
            service=one["service"],
            resource={},
            tracestate="",
            parent_is_remote=None,
        )
        for one in found
    ]
    assert_one_tree(spans, show(dev, saga_ids[0])["trace_id"])
    assert {one.attributes["saga.id"] for one in spans} == {*saga_ids}
    return spans


def test_what_waits_is_answered_in_every_way(dev: Dev, plain: Celery[Any]) -> None:
    """Tokens by the command, HTTP and a plain message; a signal; a deadline; two in flight at most."""
    ways = ["command", "http", "message"]
    saga_id = start(dev, "errand", mood="busy", to="eve", ways=ways)
    first = token(dev, saga_id, "rides[0]")
    explained = " ".join(dev.saga("explain", saga_id, "--no-ask").out.split())
    assert "Step 'rides[0]' was accepted by its participant" in explained
    await_step(dev, saga_id, "rides[1]", "running")
    wait_until(lambda: "accepted, goes on elsewhere" in dev.saga("show", saga_id).out, timeout=20)
    assert step(dev, saga_id, "rides[2]")["phase"] == "pending"  # two are in flight

    done = dev.saga("complete", first, "--output", '{"cab": 7}', "--json")
    assert "step_succeeded" in done.json["events"]
    again = dev.saga("complete", first, "--output", '{"cab": 8}', "--json")
    assert (again.code, again.json["events"]) == (0, [])
    assert dev.saga("complete", first[:-2]).code == 2
    with serving(dev) as url:
        told = {"token": token(dev, saga_id, "rides[1]"), "output": {"cab": 8}}
        assert httpx2.post(f"{url}/completions", json=told).status_code == 202
        at, why = f"{url}/sagas/{saga_id}", {"reason": "lunch", "by": "eve"}
        assert httpx2.post(f"{at}/pause", json=why).json()["paused"]
        parcel = {"name": "parcel", "data": {"weight": 3}, "by": "eve"}
        assert httpx2.post(f"{at}/signals", json=parcel).json()["events"] == ["signal_received"]
        assert httpx2.post(f"{at}/resume", json=why).json()["events"][0] == "saga_resumed"
        limits = httpx2.get(f"{url}/names/stamp/limits").json()
        assert [one["limit"]["rate"] for one in limits] == [f"{STAMPS_A_SECOND}/s"]
    outcome = {"type": "succeeded", "output": {"cab": 9}}
    kwargs = {"token": token(dev, saga_id, "rides[2]"), "outcome": outcome}
    plain.send_task(wire.COMPLETE_TASK, kwargs=kwargs, queue=wire.REPLIES_QUEUE)
    shown = await_end(dev, saga_id, "completed")
    steps = {one["name"]: one for one in shown["steps"]}
    assert steps["rides"]["output"] == [{"cab": 7}, {"cab": 8}, {"cab": 9}]
    assert (steps["quote"]["attempts"], steps["quote"]["output"]) == (3, {"price": 7})
    assert steps["insure"]["phase"] == "skipped"
    assert steps["opinion"]["output"] == {"approved": True}  # nobody has said anything
    assert (steps["mail"]["attempts"], steps["mail"]["output"]) == (3, {"to": "eve"})
    assert details(shown, "signal_received")[0].startswith("parcel")
    assert details(shown, "saga_paused") == ["by eve: lunch"]
    text = dev.saga("show", saga_id).out
    assert "skipped" in text
    assert "RateLimited" in text
    for form, sign in (("--ascii", "∅ insure"), ("--mermaid", "flowchart"), ("--dot", "digraph")):
        drawn = dev.saga("graph", "errand", saga_id, form)
        assert sign in drawn.out
        assert "rides" in drawn.out
    spans = assert_right(dev, saga_id)
    names = [span.name for span in spans]
    assert names.count("process errand") == 3 + 3 + 1 + 3
    assert {"step begin", "step opinion", "step rides[2]", "step parcel"} <= {*names}
    assert "step insure" not in names


def test_a_ride_that_failed_elsewhere_turns_the_errand_back(dev: Dev) -> None:
    """`saga fail`, with the kind that it says; the other ride is called off."""
    saga_id = start(dev, "errand", ways=["a", "b"])
    tokens = [token(dev, saga_id, f"rides[{number}]") for number in range(2)]
    with dev.session() as session:
        session.type(f"ID={saga_id}; TOKEN={tokens[1]}; OTHER={tokens[0]}")
        session.play("docs/operating.md", "Answer what waits")
    shown = await_end(dev, saga_id, "compensated")
    assert (shown["error"]["step"], shown["error"]["kind"]) == ("rides[0]", "CourierGone")
    assert not any(booking(dev.home, saga_id, f"rides[{one}]").exists() for one in range(2))
    refused = start(dev, "errand", ways=["a"])
    rejected = ("--kind", "NoSuchStreet", "--rejected")
    dev.saga("fail", token(dev, refused, "rides[0]"), *rejected)
    assert await_end(dev, refused, "compensated")["error"]["cause"] == "rejected"
    assert booking(dev.home, refused, "rides[0]").exists()  # a rejection has nothing to undo
    spans = assert_right(dev, saga_id)
    assert {"compensate rides[0]", "compensate rides[1]"} <= {span.name for span in spans}


def test_a_kind_of_failure_that_is_never_tried_again(dev: Dev) -> None:
    """One attempt; and a time that had to come first has nothing to do with it."""
    at = utc_now() + timedelta(seconds=1)
    saga_id = start(dev, "errand", "--at", at.isoformat(), mood="closed")
    tomorrow = start(dev, "errand", "--at", "12h", mood="closed")
    assert "Its first step begins at" in dev.saga("explain", tomorrow, "--no-ask").out
    assert dev.saga("cancel", tomorrow, "--reason", "test").code == 0
    shown = await_end(dev, saga_id, "compensated")
    assert (shown["error"]["kind"], shown["steps"][0]["attempts"]) == ("Closed", 1)
    begun = [one["at"] for one in shown["timeline"] if one["event"] == "step_dispatched"]
    assert datetime.fromisoformat(begun[0]) >= at
    assert_right(dev, saga_id)


def test_what_is_retrying_is_found_explained_and_tried_now(dev: Dev) -> None:
    """By every filter that it fits, and by none that it does not; then in bulk."""
    saga_id = start(dev, "errand", "--key", "retrying", mood="away")
    await_step(dev, saga_id, "quote", "retrying")
    name = ("--name", "errand")
    fits = [
        ("--key", "retrying"),
        (*name, "--retrying"),
        (*name, "--status", "active", "--attempts", "1", "--step", "quote"),
        (*name, "--error", "Away", "--older-than", "0s"),
    ]
    for wanted in fits:
        found = dev.saga("list", *wanted, "--json").json
        assert [one["saga_id"] for one in found] == [saga_id], wanted
    others = [
        (*name, "--error", "Away", "--attempts", "2"),
        (*name, "--retrying", "--step", "mail"),
        (*name, "--retrying", "--older-than", "1h"),
    ]
    assert [dev.saga("list", *wanted, "--json").json for wanted in others] == [[], [], []]
    explained = " ".join(dev.saga("explain", saga_id, "--no-ask").out.split())
    assert "for attempt 2 of step 'quote' after Away: come back another time" in explained
    asked = ("retry", *name, "--retrying", "--error", "Away", "--reason", "they are back")
    (would,) = dev.saga(*asked, "--dry-run", "--json").json
    assert would["commands"] == [{"step": "quote", "direction": "action", "attempt": 2}]
    assert step(dev, saga_id, "quote")["attempts"] == 1
    (done,) = dev.saga(*asked, "--yes", "--json").json
    assert done["saga_id"] == saga_id
    await_step(dev, saga_id, "parcel", "running")
    by = f"by {getpass.getuser()}: they are back"
    assert any(by in said for said in details(show(dev, saga_id), "retry_requested"))

    # What waits begins nothing while it is paused; giving up undoes it, although it waits.
    for command in ("pause", "compensate"):
        would = dev.saga(command, saga_id, "--reason", "test", "--dry-run", "--json").json
        assert (would["dry_run"], bool(would["events"])) == (True, True)
    assert not show(dev, saga_id)["paused"]
    assert dev.saga("pause", saga_id, "--reason", "a strike").code == 0
    dev.saga("signal", saga_id, "parcel", "--data", '{"weight": 3}')
    assert f"paused   by {getpass.getuser()}: a strike" in dev.saga("show", saga_id).out
    explained = " ".join(dev.saga("explain", saga_id, "--no-ask").out.split())
    assert "It was paused" in explained
    assert "(a strike): nothing new begins" in explained
    assert dev.saga("compensate", saga_id, "--reason", "for good").code == 0
    assert dev.saga("resume", saga_id, "--reason", "it is over").code == 0
    shown = await_end(dev, saga_id, "compensated")
    assert (shown["error"]["cause"], shown["error"]["message"]) == ("cancelled", "for good")
    assert_right(dev, saga_id)


def stuck(dev: Dev) -> str:
    """An errand whose mail cannot be sent, past its pivot."""
    saga_id = start(dev, "errand", to="")
    refused = dev.saga("signal", saga_id, "parcel", "--data", '{"weight": "heavy"}')
    assert "is no Parcel: weight: a whole number is wanted" in refused.err
    dev.saga("signal", saga_id, "parcel", "--data", '{"weight": 3}')
    shown = await_end(dev, saga_id, "stuck")
    assert (shown["error"]["step"], shown["error"]["kind"]) == ("mail", "NoAddress")
    return saga_id


@pytest.mark.parametrize(
    "arguments, status, event",
    [
        (
            ("retry", "--step", "mail", "--payload", '{"to": "bob", "weight": 1}'),
            "completed",
            "retry_requested",
        ),
        (("skip", "--step", "mail", "--output", '{"to": "nobody"}'), "completed", "step_skipped"),
        (("resolve",), "resolved", "saga_resolved"),
    ],
    ids=["retry", "skip", "resolve"],
)
def test_a_stuck_errand_is_put_right(
    arguments: tuple[str, ...], status: str, event: str, dev: Dev
) -> None:
    """With an edited payload, without the step, or by hand; who and why stay in its history."""
    saga_id = stuck(dev)
    explained = " ".join(dev.saga("explain", saga_id, "--no-ask").out.split())
    assert "Step 'mail' gave up after NoAddress: to whom? (attempt 1)" in explained
    assert dev.saga("compensate", saga_id, "--reason", "test", "--json").code == 2
    command, *options = arguments
    asked = (command, saga_id, *options, "--reason", f"told {command}")
    would = dev.saga(*asked, "--dry-run", "--json").json
    assert (would["dry_run"], show(dev, saga_id)["status"]) == (True, "stuck")
    done = dev.saga(*asked, "--json").json
    assert event in done["events"]
    shown = await_end(dev, saga_id, status)
    assert any(f"by {getpass.getuser()}" in one for one in details(shown, event))
    assert any(f"told {command}" in one for one in details(shown, event))
    assert f"told {command}" in dev.saga("show", saga_id).out
    outputs = {"retry": {"to": "bob"}, "skip": {"to": "nobody"}}
    assert shown["steps"][-1]["output"] == outputs.get(command)
    assert_right(dev, saga_id)


def test_a_cancel_and_a_deadline_go_down(dev: Dev) -> None:
    """The sub-saga is called back, and undoes what it has done; all of it is one tree."""
    hasty, outing = (start(dev, name) for name in ("hasty", "outing"))
    below = await_step(dev, outing, "errand", "running")["sub_saga"]
    await_step(dev, below, "ride", "succeeded")
    assert booking(dev.home, below, "ride").exists()
    explained = " ".join(dev.saga("explain", outing, "--no-ask").out.split())
    assert f"waits for its saga {below} to end" in explained
    assert f"saga {below}" in dev.saga("show", outing).out
    text = dev.saga("show", below).out
    assert f"part of  {outing}, step errand" in text
    assert "waits for signal parcel" in text
    assert dev.saga("cancel", outing, "--reason", "rain").code == 0
    for name, saga_id, cause in (("outing", outing, "cancelled"), ("hasty", hasty, "deadline")):
        above = await_end(dev, saga_id, "compensated")
        below = above["steps"][0]["sub_saga"]
        shown = await_end(dev, below, "compensated")
        assert (above["error"]["cause"], shown["error"]["cause"]) == (cause, "cancelled")
        assert shown["parent"]["saga_id"] == saga_id
        assert shown["steps"][0]["phase"] == "undone"
        assert not booking(dev.home, below, "ride").exists()
        spans = assert_right(dev, saga_id, below)
        assert {f"saga {name}", "saga hurry", "compensate ride"} <= {one.name for one in spans}


def test_no_more_is_in_flight_and_in_a_history_than_is_allowed(dev: Dev) -> None:
    """The next one waits until one has ended; a history that is full leaves the saga stuck."""
    longer = await_end(dev, start(dev, "paperwork", papers=[*range(101)]), "compensated")
    assert (longer["error"]["cause"], longer["error"]["kind"]) == ("rejected", "TooManyItems")
    saga_id = start(dev, "paperwork", papers=[*range(60)])
    shown = await_end(dev, saga_id, "stuck")
    moves = [
        {"step_dispatched": 1, "step_succeeded": -1}.get(one["event"], 0)
        for one in shown["timeline"]
    ]
    assert max(accumulate(moves)) == IN_FLIGHT_MAX
    assert shown["error"]["cause"] == "history_full"
    assert EVENTS_MAX <= len(moves) <= EVENTS_MAX + 2 * IN_FLIGHT_MAX
    explained = " ".join(dev.saga("explain", saga_id, "--no-ask").out.split())
    assert "its history has as many events as SAGA_HISTORY_EVENTS_MAX allows" in explained
    assert "history" in dev.saga("show", saga_id).out
    wait_until(lambda: dev.saga("resolve", saga_id, "--reason", "too much").code == 0, timeout=20)
    await_end(dev, saga_id, "resolved")
    assert_right(dev, saga_id)


def test_no_more_begin_in_a_second_than_their_rate_allows(dev: Dev, plain: Celery[Any]) -> None:
    """The others wait for room, and say so; the one that came first is first."""
    for number in range(STAMPS_A_SECOND + 2):
        given = {"name": "stamp", "input": {}, "key": f"stamp-{number}"}
        plain.send_task(wire.START_TASK, kwargs=given, queue=wire.REPLIES_QUEUE)

    def all_done() -> Any:
        found = dev.saga("list", "--name", "stamp", "--status", "completed", "--json").json
        return found if len(found) == STAMPS_A_SECOND + 2 else None

    done = wait_until(all_done, timeout=30)
    shown = [show(dev, one["saga_id"]) for one in reversed(done)]
    begun = [
        next(one["at"] for one in saga["timeline"] if one["event"] == "step_dispatched")
        for saga in shown
    ]
    times = sorted(map(datetime.fromisoformat, begun))
    pairs = zip(times, times[STAMPS_A_SECOND:], strict=False)
    assert all(later - earlier >= timedelta(seconds=1) for earlier, later in pairs)
    assert details(shown[-1], "room_awaited") != []
    limits = dev.saga("limit", "stamp", "--json").json
    assert [(one["step"], one["limit"]["rate"]) for one in limits] == [("stamp", "4/s")]
    spans = {one.name: one for one in assert_right(dev, shown[-1]["saga_id"])}
    waited = spans["await room stamp"]
    assert waited.attributes["saga.outcome"] == "succeeded"
    assert waited.start_ns < waited.end_ns == spans["step stamp"].start_ns


def test_what_nobody_could_act_on_is_acted_on_later(dev: Dev, plain: Celery[Any]) -> None:
    """A start of a saga that only newer code knows; then nobody listens on its queue."""
    start_it = {"name": "attic", "input": {}}
    undo_it = {"saga_id": "no-such-saga", "reason": "test"}
    for task, kwargs in ((wire.START_TASK, start_it), (wire.CANCEL_TASK, undo_it)):
        plain.send_task(task, kwargs=kwargs, queue=wire.REPLIES_QUEUE)

    def two() -> Any:
        found = dev.saga("dlq", "list", "--json").json
        return {one["task"]: one for one in found} if len(found) == 2 else None

    letters = wait_until(two, timeout=20)
    number = {task: str(one["dead_letter_id"]) for task, one in letters.items()}
    assert "'attic'" in dev.saga("dlq", "show", number[wire.START_TASK]).out
    refused = dev.saga("dlq", "requeue", number[wire.CANCEL_TASK])
    assert (refused.code, "no-such-saga" in refused.err) == (2, True)
    assert dev.saga("dlq", "drop", number[wire.CANCEL_TASK]).code == 0
    assert dev.saga("dlq", "requeue", number[wire.START_TASK], env=NEXT).code == 0
    assert dev.saga("dlq", "list", "--json").json == []
    (found,) = dev.saga("list", "--name", "attic", "--json").json
    asked = " ".join(dev.saga("explain", found["saga_id"]).out.split())
    assert "No worker that answers listens on the queue 'attic'" in asked
    assert "No orchestrator" not in asked


def test_a_new_version_is_compared_with_what_is_in_the_store(dev: Dev) -> None:
    """What a deploy would change is named before it."""
    start(dev, "errand", mood="closed")
    differs = dev.saga("definitions", "diff", "errand", "--json", env=NEXT).json
    assert (differs["from"], differs["to"]) == (1, 2)
    assert any("mail" in str(one) for one in differs["differences"])
