"""The `saga` command beside a running `saga dev`, each as a real process."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from functools import partial
from signal import SIGINT, SIGKILL
from typing import Any

import httpx2
import pytest
from celery import Celery

from shared import names as wire
from shared.settings import Settings
from tests.e2e.saga_dev import SAGA, Dev, environment
from tests.guide.sessions import make_older
from tests.waiting import wait_until
from workers.examples import ledger

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
OPERATING = "docs/operating.md"
REFUNDS = """
from datetime import timedelta
import msgspec
from orchestrator.core.definition import Saga, Sleep, Step

class Refund(msgspec.Struct):
    pass

GIVE_REFUND = Saga(
    name="give-refund", version=1, input=Refund, steps=(Step("wait", Sleep(timedelta(seconds=1))),)
)
SAGAS = (GIVE_REFUND,)
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """One `saga dev` for all tests of this file."""
    # Short, so that the step of a killed worker comes again while we watch.
    env = {"SAGA_VISIBILITY_TIMEOUT": "PT4S"}
    with Dev(tmp_path_factory.mktemp("dev"), env=env) as running:
        yield running


def test_everybody_takes_part(dev: Dev) -> None:
    """Without options `saga dev` runs all that the example definitions need."""
    services = {"inventory", "payment", "shipping", "orders", "notifications"}
    assert {"broker", "store", "orchestrator", *services} <= dev.parts.keys()
    assert all(dev.process(name).is_running() for name in ("orchestrator", *services))


def test_a_start_says_what_was_started(dev: Dev) -> None:
    """One object, at once; the saga goes on by itself."""
    done = dev.order()
    assert done.code == 0
    started = done.json
    assert started["name"] == "place-order"
    assert started["version"] == 1
    assert started["status"] == "running"
    assert started["published"] is True
    assert len(started["trace_id"]) == 32
    wait_until(lambda: dev.status(started["saga_id"]) == "completed", timeout=30)


def test_waiting_for_a_completed_saga_exits_with_0(dev: Dev) -> None:
    """The outcome and how long it took."""
    done = dev.order("--wait")
    assert done.code == 0
    assert done.json["outcome"] == done.json["status"] == "completed"
    assert done.json["error"] is None
    assert 0 < done.json["duration_ms"] < 30_000


def test_waiting_for_a_compensated_saga_exits_with_3(dev: Dev) -> None:
    """With the reason why."""
    done = dev.order("--wait", card="4000000000000002")
    assert done.code == 3
    assert done.json["outcome"] == "compensated"
    assert done.json["error"]["kind"] == "CardDeclined"
    assert done.json["error"]["step"] == "charge-payment"


def test_waiting_for_a_stuck_saga_exits_with_4(dev: Dev) -> None:
    """It does not move by itself, so the wait is over; it is in the list of those."""
    done = dev.order("--wait", email="nobody")
    assert done.code == 4
    assert done.json["outcome"] == "stuck"
    listed = dev.saga("list", "--status", "stuck", "--json").json
    assert done.json["saga_id"] in [saga["saga_id"] for saga in listed]


def test_a_wait_that_ends_too_early_exits_with_5(dev: Dev) -> None:
    """The saga goes on; until then its trace shows what is still going on."""
    with dev.held("shipping"):
        done = dev.order("--wait", "--timeout", "0.3")
        assert done.code == 5
        assert done.json["outcome"] is None
        assert done.json["status"] == "running"
        saga_id = done.json["saga_id"]
        assert f"saga show {saga_id}" in done.err
        shown = dev.saga("trace", saga_id)
        assert "still going on" in shown.out
    wait_until(lambda: dev.status(saga_id) == "completed", timeout=30)


def test_ctrl_c_during_a_wait_leaves_the_saga_alone(dev: Dev) -> None:
    """It says that the saga goes on and how to look at it, and exits as shells expect."""
    given = ("--input", '{"order_id": "o-1"}', "--key", "ctrl-c", "--wait")
    with dev.held("inventory"):
        process = dev.spawn("start", "place-order", *given)
        found = wait_until(lambda: dev.saga("list", "--key", "ctrl-c", "--json").json, timeout=20)
        process.send_signal(SIGINT)
        out, err = process.communicate(timeout=20)
    saga_id = found[0]["saga_id"]
    assert process.returncode == 130
    assert "goes on" in err
    assert f"saga show {saga_id}" in err
    assert "Traceback" not in out + err
    wait_until(lambda: dev.status(saga_id) == "completed", timeout=30)


def test_wrong_input_names_every_field_and_stores_nothing(dev: Dev) -> None:
    """All mistakes at once, and no saga with that key."""
    given = {"quantity": "many", "colour": "red"}
    done = dev.saga(
        *("start", "place-order", "--key", "wrong", "--json", "--input", json.dumps(given))
    )
    assert done.code == 2
    assert done.out == ""
    assert done.error["type"] == "InputError"
    named = {problem.partition(":")[0] for problem in done.error["problems"]}
    assert named == {"quantity", "colour", "order_id"}
    assert dev.saga("list", "--key", "wrong", "--json").json == []


def test_an_input_over_the_limit_stores_nothing(dev: Dev) -> None:
    """The message names the limit and the setting."""
    given = {"order_id": "é" * 100, "sku": "é" * 100, "email": "é" * 250, "courier": "é" * 100}
    (dev.path / "large.json").write_text(json.dumps(given))
    done = dev.saga(
        *("start", "place-order", "--key", "large", "--json", "--input", "@large.json"),
        env={"SAGA_PAYLOAD_BYTES_MAX": "1024"},
    )
    assert done.code == 2
    assert done.error["type"] == "PayloadTooLarge"
    assert "1024" in done.error["message"]
    assert "SAGA_PAYLOAD_BYTES_MAX" in done.error["hint"]
    assert dev.saga("list", "--key", "large", "--json").json == []
    # So is a definition.
    done = dev.saga("definitions", "--json", env={"SAGA_STEPS_MAX": "4"})
    assert (done.code, done.error["type"]) == (2, "DefinitionError")
    assert "steps; SAGA_STEPS_MAX allows 4" in done.error["problems"][0]
    done = dev.saga("definitions", "--json", env={"SAGA_BRANCHES_MAX": "1"})
    assert any("SAGA_BRANCHES_MAX allows 1" in problem for problem in done.error["problems"])


def test_an_unknown_saga_shows_the_nearest_names(dev: Dev) -> None:
    """For people in two lines, for programs with its type."""
    done = dev.saga("start", "place-ordr", "--input", "{}")
    assert done.code == 2
    assert done.err.splitlines()[0] == "error: There is no saga named 'place-ordr'."
    assert "place-order" in done.err.splitlines()[1]
    assert dev.saga("show", "nothing", "--json").error["type"] == "UnknownSaga"


def test_the_same_key_gives_the_same_saga(dev: Dev) -> None:
    """A second start is no second order; with other input it is refused."""
    first = dev.order("--key", "once").json
    again = dev.order("--key", "once").json
    assert again["saga_id"] == first["saga_id"]
    assert (first["created"], again["created"]) == (True, False)
    other = dev.order("--key", "once", order_id="other")
    assert other.code == 2
    assert other.error["type"] == "KeyConflict"


def test_input_comes_from_standard_input_too(dev: Dev) -> None:
    """``--input -``."""
    done = dev.saga("start", "place-order", "--input", "-", "--json", stdin='{"order_id": "i"}')
    assert done.code == 0
    assert dev.saga("show", done.json["saga_id"], "--json").json["input"]["order_id"] == "i"


def test_one_trace_over_all_processes(dev: Dev) -> None:
    """The spans form one tree, and the trace id is in the logs of every process that took part."""
    started = dev.order("--wait", region="moon").json
    spans = dev.exported(started["trace_id"])
    known = {span["span_id"] for span in spans}
    roots = [span["name"] for span in spans if span["parent_span_id"] not in known]
    assert roots == ["saga place-order"]
    assert {span["trace_id"] for span in spans} == {started["trace_id"]}
    services = {span["service"] for span in spans}
    assert services == {"saga-cli", "orchestrator", "inventory", "payment", "shipping"}
    lines = [
        json.loads(line)
        for line in dev.saga("logs", started["saga_id"], "--json").out.splitlines()
    ]
    assert services == {line["service"] for line in lines}
    assert [line["timestamp"] for line in lines] == sorted(line["timestamp"] for line in lines)
    raw = "".join(file.read_text() for file in (dev.home / "logs").glob("*.jsonl"))
    assert len(lines) == sum(started["trace_id"] in line for line in raw.splitlines())


def test_people_see_a_time_line_and_a_waterfall(dev: Dev) -> None:
    """Plain text in a pipe: no colours, no control codes, no tables drawn with lines."""
    saga_id = dev.order("--wait", region="moon").json["saga_id"]
    shown = dev.saga("show", saga_id)
    assert "arrange-shipping rejected: UnreachableRegion" in shown.out
    assert "undone" in shown.out
    trace = dev.saga("trace", saga_id)
    assert "compensate charge-payment" in trace.out
    assert "█" in trace.out
    logs = dev.saga("logs", saga_id)
    assert "ledger.booked" in logs.out
    for done in (shown, trace, logs):
        assert done.code == 0
        assert "\x1b" not in done.out
        assert done.err == ""


def test_a_trace_of_the_environment_is_continued(dev: Dev) -> None:
    """The saga is part of its caller's trace."""
    done = dev.saga(
        *("start", "place-order", "--input", '{"order_id": "1"}', "--wait", "--json"),
        env={"TRACEPARENT": f"00-{TRACE_ID}-{PARENT_ID}-01"},
    )
    assert done.json["trace_id"] == TRACE_ID
    spans = dev.saga("trace", f"00-{TRACE_ID}-{PARENT_ID}-01", "--json").json["spans"]
    root = next(span for span in spans if span["name"] == "saga place-order")
    assert root["parent_span_id"] == PARENT_ID


def test_a_cancel_undoes_what_was_done(dev: Dev) -> None:
    """With the reason and the user in the history; a second time, after the end, it is refused."""
    # The step is in flight for as long as it takes to cancel, however busy the machine is.
    with dev.held("payment"):
        saga_id = dev.order().json["saga_id"]
        done = dev.saga("cancel", saga_id, "--reason", "changed my mind")
    assert done.code == 0, done.err
    wait_until(lambda: dev.status(saga_id) == "compensated", timeout=30)
    shown = dev.saga("show", saga_id)
    assert "changed my mind" in shown.out
    again = dev.saga("cancel", saga_id, "--reason", "again", "--json")
    assert again.code == 2
    assert again.error["type"] == "NotAllowed"


def test_a_program_starts_a_saga_over_http(dev: Dev) -> None:
    """Without Celery; the server says where it listens, and ends with Ctrl-C."""
    process = dev.spawn("serve", "--port", "0")
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        body = {"input": {"order_id": "o-http", "sku": "unicorn"}}
        begun = httpx2.post(f"{url}/sagas/place-order", json=body).json()
        wait_until(lambda: dev.status(begun["saga_id"]) == "compensated", timeout=30)
        shown = httpx2.get(f"{url}/sagas/{begun['saga_id']}")
        assert shown.json()["error"]["kind"] == "UnknownSku"
        assert len(shown.headers["x-trace-id"]) == 32
    finally:
        process.send_signal(SIGINT)
        _, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    (line,) = (one for one in dev.log("saga-http") if one.get("event") == "saga.started")
    assert line["trace_id"] == begun["trace_id"]


def test_what_ended_long_ago_is_purged_and_archived(dev: Dev) -> None:
    """It is in the archive and no longer in the store; what has not ended cannot be named."""
    saga_id, recent = (dev.order("--wait", sku="unicorn").json["saga_id"] for _ in range(2))
    for one in (saga_id, recent):
        dev.exported(one)  # until then it is kept

    def old_ones() -> int:
        return int(dev.saga("purge", "--older-than", "30d", "--dry-run", "--json").json["sagas"])

    make_older(dev.home / "saga.db", 31, saga_id)
    # The file may have the spans before the orchestrator knows.
    wait_until(old_ones, timeout=20)
    with dev.session() as session:
        session.play(OPERATING, "Retention")
    archived = [json.loads(one) for one in (dev.path / "purged.jsonl").read_text().splitlines()]
    assert [one["saga_id"] for one in archived] == [saga_id]
    assert old_ones() == 0
    asked = ("purge", "--older-than", "0s", "--status", "compensated")
    wait_until(lambda: dev.saga(*asked, "--dry-run", "--json").json["sagas"], timeout=20)
    assert "--yes" in dev.saga(*asked, "--json").error["hint"]  # nobody was asked
    assert dev.saga(*asked, "--yes", "--json").json["deleted"] is True
    assert dev.saga("show", saga_id).code == 2
    for wrong in (("--older-than", "soon"), ("--older-than", "1d", "--status", "stuck")):
        assert dev.saga("purge", *wrong).code == 2


def test_operators_act_on_one_saga_and_on_all_that_fit(dev: Dev) -> None:
    """A stuck refund: explained, looked at, tried again, skipped; each with its reason."""
    given = {"card": "4000000000000003", "region": "moon"}
    ids = [dev.order("--wait", **given).json["saga_id"] for _ in range(2)]
    at_it = ("--status", "stuck", "--step", "charge-payment", "--error", "RefundRefused")
    wait_until(lambda: len(dev.saga("list", *at_it, "--json").json) == 2, timeout=20)
    # Ids of one hour share their first characters.
    assert "The ids of several sagas begin with" in dev.saga("show", ids[0][:6]).err
    explained = dev.saga("explain", ids[0][:30], "--no-ask")
    assert "Undoing step 'charge-payment' gave up after RefundRefused" in explained.out
    # What would follow; nothing is done, and nothing without being asked twice.
    looked = dev.saga("retry", *at_it, "--reason", "test", "--dry-run", "--json").json
    assert {one["saga_id"] for one in looked} == {*ids}
    assert all(one["commands"] and one["dry_run"] for one in looked)
    assert dev.saga("retry", *at_it, "--reason", "test").code == 2
    assert dev.saga("retry", "--reason", "test").code == 2
    assert dev.saga("retry", ids[0], "--reason", " ", "--json").error["type"] == "InputError"
    assert dev.saga("resume", ids[0], "--reason", "test", "--json").error["type"] == "NotAllowed"
    with dev.session() as session:
        session.play(OPERATING, "Act")
    wait_until(lambda: len(dev.saga("list", *at_it, "--json").json) == 1, timeout=20)
    # Undone by hand at the bank: the saga goes on undoing the rest.
    done = dev.saga("skip", *at_it, "--reason", "refunded by hand", "--yes", "--json").json
    assert {one["status"] for one in done} == {"compensating"}
    for saga_id in ids:
        wait_until(partial(lambda it: dev.status(it) == "compensated", saga_id), timeout=20)
    assert "refunded by hand" in dev.saga("show", ids[0]).out


def test_a_whole_name_is_paused_with_what_starts_later(dev: Dev) -> None:
    """It may start, and begins when the name is resumed."""
    name = ("--name", "collect-payment", "--reason", "month end", "--json")
    assert dev.saga("pause", *name).code == 2  # nobody was asked
    assert dev.saga("pause", *name, "--yes").code == 0
    given = '{"amount_cents": 100, "card": "4000000000000000"}'
    started = dev.saga("start", "collect-payment", "--input", given, "--json")
    assert started.code == 0, started.err
    saga_id = started.json["saga_id"]
    assert "is paused by" in dev.saga("list").err
    shown = dev.saga("show", saga_id, "--json").json
    assert (shown["paused"], shown["timeline"][1]["event"]) == (True, "saga_paused")
    resumed = dev.saga("resume", *name, "--yes").json
    assert [one["saga_id"] for one in resumed] == [saga_id]
    wait_until(lambda: dev.status(saga_id) == "completed", timeout=30)


def test_a_saga_that_has_ended_is_forked_and_the_fork_undone_whole(dev: Dev) -> None:
    """What was charged for the old order is refunded by the fork, once, and by nobody else."""
    order = dev.order("--wait").json["saga_id"]
    at = (
        order,
        "--from-step",
        "arrange-shipping",
        "--input",
        '{"order_id": "2", "region": "moon"}',
    )
    looked = dev.saga("fork", *at, "--dry-run")
    assert "would be copied" in looked.out
    assert "arrange-shipping, confirm-order" in looked.err
    done = dev.saga("fork", *at, "--reason", "another address", "--wait", "--json")
    assert (done.code, done.json["status"]) == (3, "compensated"), done.err
    fork = done.json["saga_id"]
    assert (
        done.json["copied"] == ["reserve-inventory", "charge-payment"] == done.json["taken_over"]
    )
    using = Settings(home=dev.home)
    booked = {(one.step, one.direction) for one in ledger.effects(order, using=using)}
    both = {"action", "compensation"}
    assert {(one, direction) for one in done.json["copied"] for direction in both} <= booked
    assert ("arrange-shipping", "compensation") not in booked
    assert ledger.effects(fork, using=using) == []
    assert ledger.audit(using=using) == []
    again = dev.saga("fork", *at[:3], "--json")
    assert (again.code, again.error["type"]) == (2, "NotAllowed")
    assert f"belongs to an earlier fork, {fork}" in again.error["message"]
    shown = dev.saga("show", fork).out
    assert f"fork of  {order}, from step arrange-shipping" in shown
    assert "undone (copied)" in shown
    old, new = dev.exported(order), dev.exported(fork)
    roots = {one["span_id"] for one in old if one["name"] == "saga place-order"}
    assert any(roots & {*one["links"]} for one in new if one["name"] == "saga place-order")
    known = {one["span_id"] for one in new}
    tops = [one["name"] for one in new if one["parent_span_id"] not in known]
    assert tops == ["saga place-order"]


def held_up(dev: Dev) -> str:
    """Order something; returns the id of its saga, once it waits for room."""
    saga_id = str(dev.order().json["saga_id"])

    def reached() -> str:
        step = dev.saga("show", saga_id, "--json").json["steps"][1]
        return "waits" if step["awaits_room"] else "" if step["phase"] == "pending" else "sent"

    return saga_id if wait_until(reached, timeout=30) == "waits" else ""


def test_a_limit_that_an_operator_sets_makes_sagas_wait_for_room(dev: Dev) -> None:
    """One says so while it waits, and goes on when the one before it has ended."""
    asked = ("limit", "place-order", "--step", "charge-payment")
    assert dev.saga(*asked, "--in-flight", "1").code == 2  # it has no reason
    done = dev.saga(*asked, "--in-flight", "1", "--reason", "the bank is slow", "--json")
    assert done.json[0]["limit"] == {"in_flight": 1, "rate": ""}
    with dev.held("payment"):
        # The orchestrator knows of the limit within a second: some may begin before.
        saga_id = wait_until(lambda: held_up(dev), timeout=60)
        explained = " ".join(dev.saga("explain", saga_id, "--no-ask").out.split())
        shown = dev.saga("show", saga_id).out
    assert "of 1 `charge-payment` in flight" in explained
    assert "waits for room" in shown
    wait_until(lambda: dev.status(saga_id) == "completed", timeout=30)
    assert "the bank is slow" in dev.saga("limit").out
    assert dev.saga(*asked, "--reset", "--reason", "it is quick again").code == 0
    replayed = dev.saga("replay", saga_id)
    assert replayed.code == 0, replayed.out


def test_limits_are_set_as_the_guide_shows(dev: Dev) -> None:
    """Of a step and of a name, and taken back."""
    with dev.session() as session:
        session.play(OPERATING, "Limits")


def send_for_nobody(dev: Dev, plain: Celery[Any], task: str, **kwargs: Any) -> None:
    """Send what nobody can act on, and wait until it is kept."""

    def kept() -> int:
        return len(dev.saga("dlq", "list", "--json").json)

    before = kept()
    plain.send_task(task, kwargs=kwargs, queue=wire.REPLIES_QUEUE)
    wait_until(lambda: kept() > before, timeout=20)


def travel(dev: Dev, **given: Any) -> str:
    """Book a journey; returns the id of its saga."""
    given = {"booking_id": "b-1", "activities": ["city-tour", "surf-lesson"], **given}
    done = dev.saga("start", "book-travel", "--json", "--input", json.dumps(given))
    assert done.code == 0, done.err
    return str(done.json["saga_id"])


def test_a_journey_is_approved_and_paid_by_a_saga_of_its_own(dev: Dev) -> None:
    """Parallel reservations, a person, a sub-saga and a pivot: one trace, in the end one tree."""
    saga_id = travel(dev, amount_cents=250_000)
    asked = f"saga approve {saga_id} manager"
    wait_until(lambda: asked in dev.saga("explain", saga_id, "--no-ask").out, timeout=60)
    assert dev.saga("approve", saga_id, "manager", "--comment", "fine").code == 0
    wait_until(lambda: dev.status(saga_id) == "completed", timeout=30)
    trace_id = dev.saga("show", saga_id, "--json").json["trace_id"]
    listed = dev.saga("list", "--name", "collect-payment", "--json").json
    assert [one["status"] for one in listed if one["trace_id"] == trace_id] == ["completed"]

    def spans() -> Any:
        return dev.saga("trace", trace_id, "--json").json["spans"]

    wait_until(lambda: "step settle" in {span["name"] for span in spans()}, timeout=20)
    found = spans()
    known = {span["span_id"] for span in found}
    tops = [span["name"] for span in found if span.get("parent_span_id") not in known]
    assert tops == ["saga book-travel"]
    names = {span["name"] for span in found}
    wanted = ("step seat", "step room", "step activities[1]", "step approval", "step charge")
    assert {*wanted, "saga collect-payment"} <= names


def test_a_journey_is_undone_with_its_payment(dev: Dev) -> None:
    """The pivot refuses: a payment that had completed as a saga of its own is undone, too."""
    saga_id = travel(dev, amount_cents=1_000_001)
    dev.saga("approve", saga_id, "manager")  # before it is asked for: a signal is kept
    wait_until(lambda: dev.status(saga_id) == "compensated", timeout=40)
    shown = dev.saga("show", saga_id, "--json").json
    phases = {step["name"]: step["phase"] for step in shown["steps"]}
    assert phases["confirm"] == "rejected"
    assert {phases[one] for one in ("seat", "room", "activities[0]", "pay")} == {"undone"}
    payments = dev.saga("list", "--name", "collect-payment", "--json").json
    of_trace = [one["status"] for one in payments if one["trace_id"] == shown["trace_id"]]
    assert of_trace == ["compensated"]


def test_definitions_and_dead_letters_can_be_read(dev: Dev) -> None:
    """As text and as JSON; dead letters are looked through as the guide shows."""
    shown = dev.saga("definitions", "place-order")
    assert "inventory.release" in shown.out
    found = {one["name"]: one for one in dev.saga("definitions", "--json").json}
    assert found.keys() == {"book-travel", "collect-payment", "place-order"}
    assert found["place-order"]["steps"][0]["name"] == "reserve-inventory"
    assert dev.saga("definitions", "place-ordre").code == 2
    same = dev.saga("definitions", "diff", "place-order", "--json").json
    assert (same["from"], same["to"], same["differences"]) == (1, 1, [])
    assert dev.saga("dlq", "list", "--json").json == []
    assert dev.saga("dlq", "requeue", "7").code == 2
    assert dev.saga("dlq", "bus", "list", "--json").json == []
    # One is acted on once the code that knows it is there, the other one dropped.
    (dev.path / "refunds.py").write_text(REFUNDS)
    url = (dev.home / "broker.url").read_text()
    with Celery("plain", broker=url, set_as_current=False) as plain:
        send_for_nobody(dev, plain, wire.START_TASK, name="give-refund", input={}, key="refund-7")
        send_for_nobody(dev, plain, wire.CANCEL_TASK, saga_id="no-such-saga", reason="test")
    with dev.session() as session:
        session.play(OPERATING, "Dead letters")


def test_an_unknown_status_is_refused(dev: Dev) -> None:
    """With the nearest one, and all that there are."""
    done = dev.saga("list", "--status", "compleded")
    assert done.code == 2
    assert "Did you mean completed?" in done.err
    assert "compensating" in done.err


def test_logs_say_where_they_looked(dev: Dev) -> None:
    """Nothing found is not silence."""
    done = dev.saga("logs", "f" * 32)
    assert done.code == 1
    assert "logs" in done.err
    assert "files" in done.err


def test_a_terminal_shows_progress_and_colours(dev: Dev) -> None:
    """Live, step by step, and the result stays."""
    leader, follower = pty.openpty()
    given = json.dumps({"order_id": "1", "delay_in": "orders.confirm", "delay_seconds": 1})
    process = subprocess.Popen(
        [*SAGA, "start", "place-order", "--input", given, "--wait"],
        cwd=dev.path,
        env=environment(TERM="xterm", COLUMNS="100"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            read = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not read:
            break
        shown += read
    os.close(leader)
    assert process.wait() == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert "▸ confirm-order" in text
    assert "✓ arrange-shipping" in text
    assert "completed" in text.splitlines()[-2]


def test_a_second_dev_in_the_same_folder_is_refused(dev: Dev) -> None:
    """It names the process that is there, and disturbs nothing."""
    done = dev.saga("dev")
    assert done.code == 2
    assert "already" in done.err
    assert dev.order("--wait").code == 0


def test_a_worker_that_is_killed_comes_back(dev: Dev) -> None:
    """It is started again, and the step that it had in hand is done in the end."""
    saga_id = dev.order(delay_in="shipping.arrange", delay_seconds=4).json["saga_id"]
    begun = ("arrange-shipping", "shipping")
    wait_until(lambda: dev.has_begun(saga_id, *begun), timeout=20, what="the step to begin")
    dev.process("shipping").send_signal(SIGKILL)
    wait_until(lambda: "shipping starts again" in dev.said, timeout=20)
    wait_until(lambda: dev.status(saga_id) == "completed", timeout=60)
    pids = {line["pid"] for line in dev.log("shipping") if line.get("saga_id") == saga_id}
    assert len(pids) == 2
