"""Lists of sagas over HTTP: filters, pages, and what is wrong with a request."""

from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.client import Client
from orchestrator.web import listing
from tests.web.test_api import client, http, start
from tests.web.test_operating import failed, tell

__all__ = ["client", "http"]


def ids(http: TestClient, **asked: Any) -> list[str]:
    """The sagas that a request finds."""
    answer = http.get("/sagas", params=asked)
    assert answer.status_code == 200, answer.text
    return [one["saga_id"] for one in answer.json()["sagas"]]


def test_sagas_are_found_by_every_filter(http: TestClient, client: Client) -> None:
    """As `saga list` finds them; together the filters narrow."""
    first = start(http, key="k-1").json()["saga_id"]
    second = start(http).json()["saga_id"]
    tell(client, first, failed(retryable=True))
    client.pause(second, reason="test")
    assert ids(http) == [second, first]
    fits: list[dict[str, Any]] = [
        {"key": "k-1"},
        {"retrying": "true", "name": "slow"},
        {"error": "CourierAway", "attempts": 1, "step": "ship"},
        {"paused": "false", "status": "active"},
        {"retrying": "true", "older_than": "0s"},
    ]
    assert [ids(http, **wanted) for wanted in fits] == [[first]] * len(fits)
    assert ids(http, paused="true") == [second]
    nothing: list[dict[str, Any]] = [
        {"status": "final"},
        {"name": "other"},
        {"attempts": 2},
        {"older_than": "1h"},
        {"unreadable": "true"},
    ]
    assert [ids(http, **wanted) for wanted in nothing] == [[]] * len(nothing)
    assert ids(http, status=["completed", "running,stuck"]) == [second, first]
    shown = http.get("/sagas", params={"key": "k-1"}).json()["sagas"][0]
    assert (shown["name"], shown["status"], "unreadable" in shown) == ("slow", "running", False)


@pytest.mark.parametrize("asked", [{}, {"retrying": "false", "paused": "false"}])
def test_pages_follow_each_other(
    asked: dict[str, str], http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each saga once, newest first, until `next` is null; also where few are read for a page."""
    begun = [start(http).json()["saga_id"] for _ in range(7)]
    monkeypatch.setattr(listing, "LOOKED_AT_MAX", 3)
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/sagas", params={**asked, **after, "limit": 3}).json()
        assert len(page["sagas"]) <= 3
        found += [one["saga_id"] for one in page["sagas"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == begun[::-1]


@pytest.mark.parametrize(
    "asked, named",
    [
        (
            {"status": "compleded"},
            "status: There is no status 'compleded'. Did you mean completed?",
        ),
        ({"limit": "0"}, "limit: it is a number from 1 to 1000, not '0'."),
        ({"limit": "1001"}, "limit: "),
        ({"limit": "1" * 30}, "limit: "),
        ({"attempts": "-1"}, "attempts: "),
        ({"attempts": "²"}, "attempts: "),
        ({"retrying": "yes"}, "retrying: it is true or false, not 'yes'."),
        ({"older_than": "soon"}, "older_than: it is 'soon', which is no duration."),
        ({"older_than": "999999d"}, "older_than: '999999d' is more than 100 years."),
        ({"after": "there"}, "after: 'there' is no place in a list."),
        ({"after": "1~"}, ""),
        ({"after": "x~y"}, "after: "),
        ({"after": f"{10**40}~y"}, "after: "),
        ({"names": "x"}, "names: unknown parameter. Did you mean name"),
        ({"name": ["x", "y"]}, "name: it is given more than once."),
        ({"unreadable": "true", "step": "ship"}, "step does not go with unreadable"),
    ],
)
def test_a_wrong_parameter_is_named(asked: dict[str, Any], named: str, http: TestClient) -> None:
    """With what is allowed."""
    answer = http.get("/sagas", params=asked)
    if not named:
        assert answer.status_code == 200
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (422, "InputError")
    assert named in " ".join([error["message"], *error["problems"]])


def test_all_wrong_parameters_are_named_at_once(http: TestClient) -> None:
    """One line for each."""
    error = http.get("/sagas", params={"limit": "x", "paused": "", "what": "1"}).json()["error"]
    assert [one.partition(":")[0] for one in error["problems"]] == ["limit", "paused", "what"]


def test_a_time_stays_what_it_is_on_the_way(client: Client) -> None:
    """To the microsecond: a page ends between two sagas."""
    at = client.start("slow", {"order_id": "o"}).row.started_at + timedelta(microseconds=1)
    assert listing._place(listing.place_as_text((at, "a~b"))) == (at, "a~b")
