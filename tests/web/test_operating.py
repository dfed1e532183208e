"""What operators do over HTTP: one saga, forks, limits and pauses of a whole name."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.client import Client
from orchestrator.ports import Delivery
from shared.messages import Failed, Failure, Outcome, Rejected, Reply, Succeeded
from tests.web.test_api import accepted, client, http, start

__all__ = ["client", "http"]

BECAUSE = {"reason": "test", "by": "eve"}


def tell(client: Client, saga_id: str, outcome: Outcome, direction: Any = "action") -> None:
    """The participant of the first step answers its first attempt."""
    reply = Reply(saga_id=saga_id, step="ship", direction=direction, attempt=1, outcome=outcome)
    client._engine.handle([Delivery(message=reply, task="saga.reply", body="")])


def failed(*, retryable: bool) -> Failed:
    """A failure."""
    return Failed(failure=Failure(kind="CourierAway", message="gone", retryable=retryable))


def test_a_saga_is_paused_tried_again_skipped_and_resumed(
    http: TestClient, client: Client
) -> None:
    """With who and why in its history; a dry run says what would follow, and changes nothing."""
    saga_id = start(http).json()["saga_id"]
    tell(client, saga_id, failed(retryable=True))
    at = f"/sagas/{saga_id}"
    would = http.post(f"{at}/retry", json={**BECAUSE, "dry_run": True})
    assert (would.status_code, would.json()["dry_run"]) == (200, True)
    assert would.json()["commands"] == [{"step": "ship", "direction": "action", "attempt": 2}]
    assert http.post(f"{at}/pause", json=BECAUSE).json()["paused"]
    refused = http.post(f"{at}/retry", json=BECAUSE)
    assert (refused.status_code, refused.json()["error"]["type"]) == (409, "NotAllowed")
    assert http.post(f"{at}/resume", json=BECAUSE).json()["events"] == ["saga_resumed"]
    edited = {**BECAUSE, "step": "ship", "payload": {"order_id": "o-2"}}
    assert http.post(f"{at}/retry", json=edited).json()["commands"][0]["attempt"] == 2
    assert client._engine.store.load([saga_id])[saga_id].state.step("ship").attempt == 2
    skipped = http.post(f"{at}/skip", json={**BECAUSE, "step": "confirm", "output": {"ok": 1}})
    assert (skipped.status_code, skipped.json()["events"]) == (202, ["step_skipped"])
    shown = http.get(at).json()
    assert shown["steps"][1]["phase"] == "skipped"
    told = [one["detail"] for one in shown["timeline"] if one["event"] == "saga_paused"]
    assert told == ["by eve: test"]


def test_a_stuck_saga_is_resolved_and_another_one_given_up(
    http: TestClient, client: Client
) -> None:
    """As the commands of these names."""
    saga_id = start(http).json()["saga_id"]
    assert http.post(f"/sagas/{saga_id}/resolve", json=BECAUSE).status_code == 409
    assert http.post(f"/sagas/{saga_id}/compensate", json=BECAUSE).status_code == 202
    tell(client, saga_id, Succeeded(output=None, undo=None))
    tell(client, saga_id, failed(retryable=False), "compensation")
    assert client.row(saga_id).state.status == "stuck"
    resolved = http.post(f"/sagas/{saga_id}/resolve", json=BECAUSE).json()
    assert (resolved["status"], resolved["events"]) == ("resolved", ["saga_resolved"])


def test_a_saga_is_forked(http: TestClient, client: Client) -> None:
    """The answer says what was copied; one that may still undo something is refused."""
    saga_id = start(http).json()["saga_id"]
    at, given = f"/sagas/{saga_id}/fork", {"from_step": "confirm", "key": "again", **BECAUSE}
    refused = http.post(at, json=given)
    assert (refused.status_code, refused.json()["error"]["type"]) == (409, "NotAllowed")
    tell(client, saga_id, Succeeded(output={"parcel": "p-1"}, undo=None))
    answer = {"name": "manager", "data": {"approved": True}}
    http.post(f"/sagas/{saga_id}/signals", json=answer)
    would = http.post(at, json={**given, "dry_run": True})
    assert (would.status_code, would.json()["copied"]) == (200, ["ship"])
    assert "saga_id" not in would.json()
    made, again = http.post(at, json=given), http.post(at, json=given)
    assert (made.status_code, again.status_code) == (201, 200)
    assert made.json()["taken_over"] == ["ship"]
    assert made.json()["saga_id"] == again.json()["saga_id"] != saga_id
    assert http.get(f"/sagas/{made.json()['saga_id']}").json()["fork"]["reason"] == "test"


def test_limits_are_read_set_and_taken_back(
    http: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Each with its reason; what waits for room is counted. What was taken back is in the log."""
    caplog.set_level("INFO")
    assert http.get("/limits").json() == []
    limits = "/names/slow/limits"
    (made,) = http.post(limits, json={**BECAUSE, "step": "ship", "in_flight": 1}).json()
    assert (made["step"], made["limit"]) == ("ship", {"in_flight": 1, "rate": ""})
    assert (made["control"]["by"], made["control"]["reason"]) == ("eve", "test")
    for _ in range(3):
        start(http)
    (found,) = http.get("/limits").json()
    assert (found["in_flight"], found["waiting"]) == (1, 2)
    assert http.post(limits, json={**BECAUSE, "rate": "5/s"}).json()[0]["limit"]["rate"] == "5/s"
    (none, _) = http.post(limits, json={**BECAUSE, "none": True}).json()
    assert none["limit"] == {"in_flight": None, "rate": ""}
    for step in ("", "ship"):
        http.post(limits, json={**BECAUSE, "step": step, "reset": True})
    assert http.get(limits).json() == []
    logged: list[Any] = [one.msg for one in caplog.records if "limit.reset" in str(one.msg)]
    assert [(one["saga_step"], one["by"], one["reason"]) for one in logged] == [
        ("", "eve", "test"),
        ("ship", "eve", "test"),
    ]


def test_a_whole_name_is_paused_and_resumed(
    http: TestClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page the sagas that there are, and at once those that start later."""
    monkeypatch.setattr("orchestrator.web.operating.SAGAS_MAX", 2)
    ids = {start(http).json()["saga_id"] for _ in range(3)}
    paused, rest = (http.post("/names/slow/pause", json=BECAUSE).json() for _ in range(2))
    assert [len(paused["sagas"]), paused["more"]] == [2, True]
    assert [len(rest["sagas"]), rest["more"]] == [1, False]
    assert {one["saga_id"] for one in (*paused["sagas"], *rest["sagas"])} == ids
    ((name, by),) = ((one["name"], one["by"]) for one in http.get("/pauses").json())
    assert (name, by) == ("slow", "eve")
    late = start(http).json()["saga_id"]
    assert client.row(late).state.paused
    monkeypatch.setattr("orchestrator.web.operating.SAGAS_MAX", 100)
    resumed = http.post("/names/slow/resume", json=BECAUSE).json()["sagas"]
    assert {one["saga_id"] for one in resumed} == {*ids, late}
    assert {one["paused"] for one in resumed} == {False}
    assert http.get("/pauses").json() == []


def test_one_that_ends_meanwhile_does_not_stop_the_others(
    http: TestClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told which one, and why."""
    ended, other = (start(http).json()["saga_id"] for _ in range(2))
    monkeypatch.setattr(client, "find", lambda *_: [client.row(one) for one in (ended, other)])
    tell(client, ended, Rejected(failure=Failure(kind="No", message="no", retryable=False)))
    done = {
        one["saga_id"]: one for one in http.post("/names/slow/pause", json=BECAUSE).json()["sagas"]
    }
    assert "compensated already" in done[ended]["refused"]
    assert done[other]["paused"]


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        ("/sagas/unknown/pause", BECAUSE, 404, "There is no saga"),
        ("/sagas/unknown/fork", {"from_step": "ship"}, 404, "There is no saga"),
        ("/sagas/unknown/pause", {"reason": ""}, 422, "length"),
        ("/sagas/unknown/skip", BECAUSE, 422, "step"),
        ("/names/slwo/pause", BECAUSE, 404, "There is no saga named 'slwo'"),
        ("/names/slwo/limits", {**BECAUSE, "in_flight": 1}, 404, "There is no saga named"),
        ("/names/slow/limits", BECAUSE, 422, "Give either"),
        ("/names/slow/limits", {**BECAUSE, "none": True, "rate": "1/s"}, 422, "Give either"),
        ("/names/slow/limits", {**BECAUSE, "in_flight": 0}, 422, "must be 1 or more"),
        ("/names/slow/limits", {**BECAUSE, "rate": "fast"}, 422, "write it as 10/s"),
        ("/names/slow/limits", {"in_flight": 1}, 422, "reason"),
        ("/names/slow/limits", {**BECAUSE, "step": "x", "rate": "1/s"}, 422, "no step 'x'"),
    ],
)
def test_what_is_wrong_is_named(
    path: str, body: Any, status: int, said: str, http: TestClient
) -> None:
    """In the words of the command."""
    answer = http.post(path, json=body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), (
        answer.text
    )


def test_accepted_work_may_be_given_up(http: TestClient, client: Client) -> None:
    """A token that comes after it changes nothing that an operator has said."""
    saga_id = start(http).json()["saga_id"]
    token = accepted(client, saga_id)
    http.post(f"/sagas/{saga_id}/compensate", json=BECAUSE)
    done = http.post("/completions", json={"token": token, "output": 1}).json()
    assert done["status"] == "compensating"
