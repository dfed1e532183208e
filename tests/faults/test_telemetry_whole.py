"""One run of real processes and a real collector: what is hidden, what is carried, what is kept."""

import json
from pathlib import Path
from typing import Any

from celery import Celery

from shared import names as wire
from shared.telemetry.config import TracingConfig
from tests.faults import leaky
from tests.faults.stack import CELERY, ENDED_WITHIN, MakeStack, Stack
from tests.servers.otlp import OtlpReceiver, ReceivedSpan
from tests.servers.spantree import assert_one_tree
from tests.telemetry.records import OTHER_TRACE_ID, ROOT_ID
from tests.waiting import wait_until

ACCOUNT = {"email": leaky.EMAIL, "password": leaky.PASSWORD, "card": leaky.CARD}
DEFINITIONS = ("tests.faults.leaky", "orchestrator.sagas")
RATIO = 0.01


def saga(stack: Stack, *arguments: str, **env: str) -> str:
    """What a ``saga`` command says, on both of its outputs."""
    kept, stack._env = stack._env, {**stack._env, **env}
    try:
        command = stack.run(*arguments)
    finally:
        stack._env = kept
    assert command.returncode == 0, command.stderr
    return command.stdout + command.stderr


def start(stack: Stack, name: str, given: dict[str, Any], **env: str) -> dict[str, Any]:
    """Start a saga as a user does."""
    said = saga(stack, "start", name, "--json", "--input", json.dumps(given), **env)
    found: dict[str, Any] = json.loads(said)
    return found


def processed(otlp: OtlpReceiver) -> list[ReceivedSpan]:
    """Attempts of the ordinary task so far."""
    return [one for one in otlp.spans(OTHER_TRACE_ID) if one.name == "process leaky"]


def assert_hidden(text: str, where: str) -> None:
    """Nothing that was planted is in it."""
    assert [] == [secret for secret in leaky.SECRETS if secret in text], where


def assert_hidden_in_files(home: Path) -> list[dict[str, Any]]:
    """No log file and no output of a process has a secret; returns the lines of the service."""
    files = [path for path in (home / "logs").rglob("*") if path.is_file()]
    for path in [*files, *home.glob("*.out")]:
        assert_hidden(path.read_text(), str(path))
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    ours = [line for line in lines if line["logger"] == "tests.leaky"]
    assert {"password": "[redacted]", "card": "****1111"} in [one.get("customer") for one in ours]
    return ours


def assert_hidden_in_store(stack: Stack, saga_id: str) -> None:
    """What failures say is cleared; what the saga works with is not."""
    _, row, history = stack.client.story(saga_id)
    assert row.state.cause is not None
    why = row.state.cause.failure
    assert why is not None
    failures = [getattr(one.event, "failure", None) for one in history]
    assert any(failures)
    assert_hidden(f"{failures} {row.state.cause}", "the store's errors")
    assert "no login for j***@example.com" in why.message
    assert "Traceback" in why.traceback
    assert leaky.PASSWORD == row.state.input["password"]


def assert_carried(lines: list[dict[str, Any]]) -> None:
    """The baggage of the saga, and that of the task over its retry."""
    assert {"acme"} == {line["tenant"] for line in lines if line["event"] == "checked"}
    assert ["other", "other"] == [line["tenant"] for line in lines if line["event"] == "again"]


def assert_kept(
    stack: Stack, otlp: OtlpReceiver, order: dict[str, Any], status: str, env: dict[str, str]
) -> None:
    """A failure has a trace with its true times, whatever was sampled; a success has none."""
    trace_id = order["trace_id"]
    spans = otlp.spans(trace_id)
    by_ratio = TracingConfig(
        service_name="s", sampling_strategy="ratio", sampling_ratio=RATIO
    ).should_sample(trace_id)
    sampled = "OPENTELEMETRY_SAMPLING_RATIO" in env and by_ratio
    assert bool(spans) == (sampled or status != "completed")
    if not spans or sampled:
        return
    root = assert_one_tree(spans, trace_id)
    assert status == root.attributes["saga.status"]
    assert {True} == {one.attributes.get("saga.trace.reconstructed") for one in spans}
    _, row, _ = stack.client.story(order["saga_id"])
    assert root.start_ns // 1000 == round(row.started_at.timestamp() * 1_000_000)
    assert root.end_ns // 1000 == round(row.updated_at.timestamp() * 1_000_000)
    consumers = [one for one in spans if one.kind == "consumer"]
    assert consumers
    assert all(root.start_ns < one.start_ns < one.end_ns < root.end_ns for one in consumers)


def test_what_is_hidden_carried_and_kept(make_stack: MakeStack, otlp_http: OtlpReceiver) -> None:
    """Secrets stay out of everything for people; B3 and baggage go everywhere; failures have traces."""
    stack = make_stack(
        **otlp_http.environment,
        OTEL_SDK_DISABLED="false",
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_PROPAGATORS="b3multi,baggage",
        OPENTELEMETRY_BAGGAGE_KEYS="tenant",
        SAGA_DEFINITIONS=",".join(DEFINITIONS),
    )
    stack.settings.definitions = DEFINITIONS
    stack._start(
        "leaky",
        [*CELERY, "-A", "tests.faults.leaky_app", "worker", "-Q", "leaky", "-P", "solo"],
        {},
    )
    stack.participants()
    leaks = start(stack, "leaky", ACCOUNT, BAGGAGE="tenant=acme,session=x")
    ratio = {"OPENTELEMETRY_SAMPLING_RATIO": str(RATIO)}
    off = {"OPENTELEMETRY_SAMPLING_STRATEGY": "always_off"}
    orders = [
        (start(stack, "place-order", {"order_id": "o", **given}, **env), status, env)
        for given, status, env in (
            ({}, "completed", off),
            ({"region": "moon"}, "compensated", off),
            ({"email": "nobody"}, "stuck", off),
            ({"region": "moon"}, "compensated", ratio),
        )
    ]
    with Celery("sender", broker=stack.settings.broker_url, set_as_current=False) as sender:
        sender.send_task(
            "leaky.again",
            queue="leaky",
            headers={
                "X-B3-TraceId": OTHER_TRACE_ID,
                "X-B3-SpanId": ROOT_ID,
                "X-B3-Sampled": "1",
                "baggage": "tenant=other",
            },
        )
        sender.send_task(
            wire.REPLY_TASK,
            kwargs={"nonsense": True, "password": leaky.PASSWORD, "note": leaky.EMAIL},
            queue=wire.REPLIES_QUEUE,
        )
    stack.orchestrator()
    row = stack.client.wait(leaks["saga_id"], ENDED_WITHIN)
    assert "compensated" == row.state.status.value
    for order, status, _ in orders:
        ended = stack.client.wait(order["saga_id"], ENDED_WITHIN)
        assert status == ended.state.status.value
    wait_until(stack.client.dead_letters, what="the dead letter")
    wait_until(lambda: len(processed(otlp_http)) == 2, what="both attempts")
    said = {
        " ".join(command): saga(stack, *command)
        for command in (
            ("show", leaks["saga_id"]),
            ("show", leaks["saga_id"], "--json"),
            ("trace", leaks["saga_id"], "--json"),
            ("logs", leaks["saga_id"]),
            ("dlq", "show", "1"),
        )
    }
    stack.stop()

    assert_one_tree(otlp_http.spans(leaks["trace_id"]), leaks["trace_id"])
    assert_hidden(repr(otlp_http.spans()), "spans")
    for command, text in said.items():
        assert_hidden(text, command)
    assert_hidden_in_store(stack, leaks["saga_id"])
    assert_carried(assert_hidden_in_files(stack.home))
    assert {ROOT_ID} == {
        one.parent_id for one in processed(otlp_http)
    }  # siblings, never a staircase
    for order, status, env in orders:
        assert_kept(stack, otlp_http, order, status, env)
