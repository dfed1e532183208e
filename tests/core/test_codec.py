"""Bytes to messages and back: whatever arrives, nothing is raised and nothing is lost."""

import pickle
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import codec, names
from shared.errors import DecodeError, PayloadTooLarge
from shared.ids import saga_id_from
from shared.messages import (
    CancelRequest,
    CompleteRequest,
    Execution,
    Failed,
    Failure,
    HeartbeatRequest,
    Rejected,
    Reply,
    Request,
    SignalRequest,
    StartRequest,
    Succeeded,
    Undecodable,
)

tasks = st.sampled_from((*names.INBOUND_TASKS, "", "celery.ping")) | st.text()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
failures = st.builds(Failure, kind=st.text(), message=st.text(), retryable=st.booleans())
outcomes = (
    st.builds(Succeeded, output=json_values, undo=json_values)
    | st.builds(Rejected, failure=failures)
    | st.builds(Failed, failure=failures)
)
replies = st.builds(
    Reply,
    saga_id=st.text(),
    step=st.text(),
    direction=st.sampled_from(("action", "compensation")),
    attempt=st.integers(1, 1_000),
    outcome=outcomes,
    execution=st.none() | st.just(Execution(worker="w", started_at=MOMENT, ended_at=MOMENT)),
)


def inbound(task: str, body: bytes, headers: dict[str, Any] | None = None) -> object:
    """A message as the coordinator reads it."""
    return codec.decode_inbound(task, "task-1", body, headers or {})


@given(tasks, st.binary())
def test_arbitrary_bytes_never_raise(task: str, body: bytes) -> None:
    """They are put aside with the reason, and with all that they held."""
    found = inbound(task, body)
    assert isinstance(found, Undecodable)
    assert found.reason
    assert (found.task, found.body) == (task, body.decode("utf-8", "backslashreplace"))


@given(tasks, json_values, json_values)
def test_arbitrary_json_never_raises(task: str, value: object, kwargs: object) -> None:
    """Also when it nearly has the form of a task."""
    for body in (value, [[], kwargs, None], [[], {"saga_id": "s", "step": kwargs}, {}]):
        found = inbound(task, codec.encode(body))
        assert isinstance(found, Undecodable | CancelRequest)


@given(replies, st.data())
def test_a_reply_that_was_cut_or_changed_never_raises(reply: Reply, data: st.DataObject) -> None:
    """One byte is another one, or the rest is missing."""
    body = bytearray(codec.task_body(reply))
    at = data.draw(st.integers(0, len(body) - 1))
    assert isinstance(inbound(names.REPLY_TASK, bytes(body[:at])), Undecodable)
    body[at] = data.draw(st.integers(0, 255))
    assert isinstance(inbound(names.REPLY_TASK, bytes(body)), Undecodable | Reply)


@given(replies)
def test_a_reply_comes_back_as_it_was_sent(reply: Reply) -> None:
    """Through the body of a Celery message."""
    assert inbound(names.REPLY_TASK, codec.task_body(reply)) == reply


@given(st.builds(CancelRequest, saga_id=st.text(), reason=st.text(), by=st.text()))
def test_a_cancel_comes_back_as_it_was_sent(request: CancelRequest) -> None:
    """Through the body of a Celery message."""
    assert inbound(names.CANCEL_TASK, codec.task_body(request)) == request


@pytest.mark.parametrize(
    "request_",
    [
        SignalRequest(saga_id="s", name="ok", data={"approved": True}, by="me"),
        CompleteRequest(token="t", outcome=Succeeded(output=1, undo=2)),
        CompleteRequest(token="t", outcome=Failed(failure=Failure(kind="Broken"))),
        HeartbeatRequest(saga_id="s", step="a", direction="action", attempt=1, progress=[1]),
        StartRequest(
            name="n",
            input={},
            saga_id="s",
            traceparent="00-t-s-01",
            not_before=datetime(2026, 1, 1, tzinfo=UTC),
        ),
    ],
)
def test_other_requests_come_back_as_they_were_sent(request_: Request) -> None:
    """Through the body of a Celery message."""
    task = codec.INBOUND_TASKS[type(request_)]
    assert inbound(task, codec.task_body(request_)) == request_


def test_a_time_without_an_offset_is_refused() -> None:
    """Nobody knows which moment it is."""
    body = b'[[], {"name": "n", "input": {}, "not_before": "2026-01-01T00:00:00"}, null]'
    assert isinstance(inbound(names.START_TASK, body), Undecodable)


def test_a_start_gets_its_id_and_trace_from_the_message() -> None:
    """So a duplicate of it starts nothing new, and the caller's trace is continued."""
    request = StartRequest(name="place-order", input={"order_id": "o"})
    headers: dict[str, Any] = {names.TRACEPARENT: "00-trace-span-01", names.TRACESTATE: "a=b"}
    headers[names.BAGGAGE] = {"tenant": "acme"}
    assert inbound(names.START_TASK, codec.task_body(request), headers) == (
        msgspec.structs.replace(
            request,
            saga_id=saga_id_from("task-1"),
            traceparent="00-trace-span-01",
            tracestate="a=b",
            baggage={"tenant": "acme"},
        )
    )


def test_a_start_keeps_the_id_and_trace_that_it_names() -> None:
    """The headers only fill what is missing."""
    request = StartRequest(
        name="place-order", input={}, saga_id="mine", traceparent="00-t-s-01", tracestate="c=d"
    )
    headers = {names.TRACEPARENT: "00-other", names.TRACESTATE: "x=y"}
    assert inbound(names.START_TASK, codec.task_body(request), headers) == request


def test_pickle_is_refused() -> None:
    """By never being decoded."""
    found = inbound(names.REPLY_TASK, pickle.dumps([[], {}, {}]))
    assert isinstance(found, Undecodable)


def test_an_unknown_task_is_refused_with_the_ones_that_are_known() -> None:
    """The dead letter says what would have been right."""
    found = inbound("nope", b"[]")
    assert isinstance(found, Undecodable)
    assert found.reason == (
        "no task 'nope' here; expected one of saga.reply, saga.start, saga.cancel, "
        "saga.signal, saga.complete, saga.heartbeat, saga.undo"
    )


@given(st.text(alphabet=st.characters(categories=["Cs"]), min_size=1))
def test_a_task_name_of_lone_surrogates_never_raises(task: str) -> None:
    """Headers are text from elsewhere, too."""
    assert isinstance(inbound(task, b""), Undecodable)


@given(json_values)
def test_json_comes_back_as_it_was(value: object) -> None:
    """Encoding loses nothing that JSON has a form for."""
    assert codec.decode(codec.encode(value), Any) == value


@pytest.mark.parametrize("value", [object(), {"a": {1: object()}}, 1j])
def test_what_json_has_no_form_for_is_refused(value: object) -> None:
    """With its type."""
    with pytest.raises(DecodeError, match=r"not JSON: .*(object|complex)"):
        codec.encode(value)


def test_a_value_without_end_is_refused() -> None:
    """A list that holds itself."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(DecodeError, match="not JSON"):
        codec.encode(endless)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"saga_id": 1}', "x"])
def test_what_is_not_of_the_type_is_refused(raw: bytes | str) -> None:
    """Strictly: a number is no text."""
    with pytest.raises(DecodeError):
        codec.decode(raw, CancelRequest)


def test_a_payload_over_the_limit_is_refused() -> None:
    """With both sizes and the setting; at the limit it passes."""
    assert codec.check_size("x" * 8, 10, "The input") == 10
    with pytest.raises(PayloadTooLarge, match="The input is 11 bytes as JSON; the limit is 10"):
        codec.check_size("x" * 9, 10, "The input")
