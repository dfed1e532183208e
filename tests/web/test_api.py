"""The HTTP API, over a store and a broker in memory; and once as a real process."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.catalog import Catalog
from orchestrator.cli.serve import _listening
from orchestrator.client import Client
from orchestrator.core.definition import Saga, Step, WaitFor
from orchestrator.engine import Engine
from orchestrator.ports import Delivery
from orchestrator.store.memory import MemoryStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryTransport
from orchestrator.web.api import make_api
from shared.clock import utc_now
from shared.errors import UnavailableError
from shared.messages import Accepted, Reply
from shared.tokens import token_of
from tests.core.builders import Order
from tests.core.test_claims import LARGE, claims_in
from tests.e2e.saga_dev import Folder
from tests.web.calls import TRACE_ID, TRACEPARENT

SLOW = Saga(
    name="slow",
    version=1,
    input=Order,
    steps=(
        Step("ship", "shipping.arrange", "shipping.cancel", completes_within=timedelta(hours=1)),
        Step("confirm", WaitFor("manager", approval=True), timeout=timedelta(hours=1)),
    ),
)


@pytest.fixture
def client() -> Client:
    """What stands behind the API."""
    engine = Engine(
        store=MemoryStore(),
        transport=MemoryTransport(),
        catalog=Catalog([SLOW]),
        tracing=SagaTracing(system="memory", clock=utc_now),
        clock=utc_now,
    )
    return Client(engine)


@pytest.fixture
def http(client: Client) -> Iterator[TestClient]:
    """A program that speaks HTTP."""
    with TestClient(make_api(client, payload_bytes_max=2_000)) as made:
        yield made


@pytest.mark.parametrize("method, path, status", [("GET", "/no", 404), ("PUT", "/sagas/x", 405)])
def test_a_request_that_there_is_not_is_an_error_like_any_other(
    http: TestClient, method: str, path: str, status: int
) -> None:
    """Programs read one form of errors alone."""
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == f"The API has no {method} {path}."


def accepted(client: Client, saga_id: str) -> str:
    """The participant takes the first step on; returns the token that it got."""
    reply = Reply(saga_id=saga_id, step="ship", direction="action", attempt=1, outcome=Accepted())
    client._engine.handle([Delivery(message=reply, task="saga.reply", body="")])
    return token_of(client.row(saga_id).state.secret, saga_id, "ship", "action", 1)


def start(http: TestClient, **body: Any) -> Any:
    """Start a saga."""
    return http.post("/sagas/slow", json={"input": {"order_id": "o-1"}, **body})


def test_a_saga_is_started_completed_and_approved(http: TestClient, client: Client) -> None:
    """Without a line of Celery; a completion that comes again changes nothing."""
    begun = start(http, key="k")
    assert (begun.status_code, begun.json()["status"]) == (201, "running")
    assert start(http, key="k").status_code == 200
    saga_id = begun.json()["saga_id"]
    completion = {"token": accepted(client, saga_id), "output": {"parcel": "p-1"}}
    first, again = (http.post("/completions", json=completion) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert "step_succeeded" in first.json()["events"]
    assert again.json()["events"] == []
    answer = {"name": "manager", "data": {"approved": True}, "by": "eve"}
    assert http.post(f"/sagas/{saga_id}/signals", json=answer).json()["status"] == "completed"
    shown = http.get(f"/sagas/{saga_id}").json()
    assert [step["phase"] for step in shown["steps"]] == ["succeeded", "succeeded"]
    assert shown["steps"][0]["output"] == {"parcel": "p-1"}


def test_a_payload_is_fetched_whole(client: Client, tmp_path: Path) -> None:
    """Where it is large the saga itself has a ticket for it; else it is what is shown."""
    client._engine.payloads.claims = claims_in(tmp_path / "claims")
    client._engine.payloads._payload_bytes_max = 1_000
    with TestClient(make_api(client, payload_bytes_max=10_000)) as http:
        begun = http.post("/sagas/slow", json={"input": {"order_id": LARGE}})
        url = f"/sagas/{begun.json()['saga_id']}"
        completion = {"token": accepted(client, begun.json()["saga_id"]), "undo": {"u": LARGE}}
        assert http.post("/completions", json={**completion, "output": 7}).status_code == 202
        assert LARGE not in http.get(url).text
        assert http.get(f"{url}/payload").json() == {"order_id": LARGE}
        assert http.get(f"{url}/payload?step=ship").json() == 7
        assert http.get(f"{url}/payload?step=ship&undo=true").json() == {"u": LARGE}
        assert http.get(f"{url}/payload?step=no").status_code == 422
        assert http.get(f"{url}/payload?undo=yes").status_code == 422
        assert http.get("/sagas/no/payload").status_code == 404


def test_a_failure_and_a_cancel_turn_a_saga_back(http: TestClient, client: Client) -> None:
    """The reason is kept."""
    saga_id = start(http).json()["saga_id"]
    failure = {"token": accepted(client, saga_id), "kind": "CourierGone", "rejected": True}
    assert http.post("/failures", json=failure).json()["status"] == "compensated"
    other = start(http).json()["saga_id"]
    done = http.post(f"/sagas/{other}/cancel", json={"reason": "test"})
    assert (done.status_code, done.json()["saga_id"]) == (202, other)
    assert "test" in str(http.get(f"/sagas/{other}").json()["timeline"])


def test_the_trace_of_the_request_goes_on_in_the_saga(http: TestClient) -> None:
    """And the answer says which one it is."""
    begun = http.post("/sagas/slow", json={}, headers={"traceparent": TRACEPARENT})
    assert (TRACE_ID, TRACE_ID) == (begun.json()["trace_id"], begun.headers["x-trace-id"])


@pytest.mark.parametrize(
    "method, path, body, status, kind",
    [
        ("POST", "/sagas/slwo", b"{}", 404, "UnknownSaga"),
        ("GET", "/sagas/unknown", b"", 404, "UnknownSaga"),
        ("POST", "/sagas/slow", b"{", 422, "InputError"),
        ("POST", "/sagas/slow", b'{"inptu": {}}', 422, "InputError"),
        ("POST", "/sagas/slow", b'{"input": {"order_id": 7}}', 422, "InputError"),
        ("POST", "/sagas/slow", b'{"not_before": "2026-01-01T00:00:00"}', 422, "InputError"),
        ("POST", "/sagas/slow", b'{"key": "%s"}' % (b"x" * 9_000), 413, "PayloadTooLarge"),
        ("POST", "/sagas/unknown/cancel", b'{"reason": "x"}', 404, "UnknownSaga"),
        ("POST", "/sagas/unknown/cancel", b"{}", 422, "InputError"),
        ("POST", "/completions", b'{"token": "garbage"}', 400, "DecodeError"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    method: str, path: str, body: bytes, status: int, kind: str, http: TestClient
) -> None:
    """As the command does, with the status that the error carries."""
    answer = http.request(method, path, content=body)
    assert (status, kind) == (answer.status_code, answer.json()["error"]["type"])
    assert answer.json()["error"]["message"]


def test_a_token_is_asked_for_where_one_is_set(client: Client) -> None:
    """By everything but the health check."""
    with TestClient(make_api(client, payload_bytes_max=2_000, token="s3cret")) as http:
        assert start(http).status_code == 401
        wrong = {"authorization": "Bearer s3cre"}
        assert http.post("/sagas/slow", json={}, headers=wrong).status_code == 401
        right = {"authorization": "Bearer s3cret"}
        assert http.post("/sagas/slow", json={}, headers=right).status_code == 201
        assert http.get("/health").json() == {"status": "ok"}


def test_a_store_that_is_away_is_503(
    http: TestClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a load balancer sends the request elsewhere."""

    def away() -> None:
        raise UnavailableError("The store is away.")

    monkeypatch.setattr(client._engine.store, "check", away)
    assert http.get("/health").status_code == 503


def test_nobody_listens_for_everybody_without_a_token(tmp_path: Any) -> None:
    """Outside of loopback it needs SAGA_HTTP_TOKEN."""
    done = Folder(tmp_path).saga("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.code == 2
    assert "SAGA_HTTP_TOKEN" in done.err


def test_who_reads_the_address_can_connect() -> None:
    """It was printed a moment before anybody listened there: a script that was quick was refused."""
    with _listening("127.0.0.1", 0) as listening:
        socket.create_connection(listening.getsockname(), timeout=5).close()
