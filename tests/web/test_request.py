"""What is recorded of a request: by the conventions, of low cardinality, and nobody's secret."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from shared.telemetry.http import HttpOptions, http_options
from shared.telemetry.http_request import (
    ATTRIBUTE_CHARS_MAX,
    Request,
    redacted_query,
    request_attributes,
)


def request(**changes: Any) -> Request:
    """A plain request, unless changed."""
    fields: dict[str, Any] = {
        "method": "GET",
        "path": "/orders/17",
        "query": "",
        "scheme": "http",
        "version": "1.1",
        "headers": {},
    }
    return Request(**fields | changes)


def test_everything_that_the_conventions_ask_for() -> None:
    """Names and values as the HTTP conventions have them."""
    asked = request(
        method="POST",
        query="page=2&token=abc",
        headers={"host": "shop.example:8443", "user-agent": "curl/8", "x-tenant": "acme"},
        server=("10.0.0.1", 8000),
        peer=("192.0.2.7", 5123),
    )
    options = HttpOptions(
        request_headers=frozenset({"X-Tenant", "X-Absent"}), query_parameters=frozenset({"page"})
    )
    assert {
        "http.request.method": "POST",
        "url.path": "/orders/17",
        "url.query": "page=2&token=REDACTED",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "shop.example",
        "server.port": 8443,
        "client.address": "192.0.2.7",
        "network.peer.address": "192.0.2.7",
        "network.peer.port": 5123,
        "user_agent.original": "curl/8",
        "http.request.header.x-tenant": ["acme"],
    } == request_attributes(asked, options)


def test_a_method_that_somebody_made_up_is_other() -> None:
    """Its cardinality is not the caller's to choose; what was sent is kept, cut short."""
    found = request_attributes(request(method="X" * 100), HttpOptions())
    assert "_OTHER" == found["http.request.method"]
    assert "X" * 32 == found["http.request.method_original"]
    known = HttpOptions(known_methods=frozenset({"PURGE"}))
    assert "PURGE" == request_attributes(request(method="PURGE"), known)["http.request.method"]


@pytest.mark.parametrize(
    "query, shown",
    [
        ("a=1", "a=REDACTED"),
        ("page=1&a=2&page=3", "page=1&a=REDACTED&page=3"),
        ("%70age=1", "%70age=1"),
        ("secret", "REDACTED"),
        ("a=1&&b=", "a=REDACTED&&b=REDACTED"),
        ("=1", "=REDACTED"),
        ("a=b=c", "a=REDACTED"),
    ],
)
def test_query_shows_names_and_what_is_allowed(query: str, shown: str) -> None:
    """A value is somebody's secret until it is said that it is not."""
    assert shown == redacted_query(query, frozenset({"page"}))


@given(st.lists(st.tuples(st.text("abc", min_size=1), st.text("xyz1", min_size=1))))
def test_no_value_is_ever_shown(pairs: list[tuple[str, str]]) -> None:
    """Whatever the query, without an allow-list no value gets through."""
    shown = redacted_query("&".join(f"{name}={value}" for name, value in pairs), frozenset())
    assert not set("xyz1") & set(shown)
    assert len(shown) <= ATTRIBUTE_CHARS_MAX


def test_long_values_are_cut() -> None:
    """A request cannot make a span as large as it likes."""
    found = request_attributes(
        request(
            path="/é" * 5000, query="&".join(["a=1"] * 5000), headers={"user-agent": "u" * 9999}
        ),
        HttpOptions(),
    )
    assert all(len(str(value)) <= ATTRIBUTE_CHARS_MAX for value in found.values())


@pytest.mark.parametrize(
    "host, expected",
    [
        ("shop.example", ("shop.example", None)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
        ("evil\r\nx", ("10.0.0.1", 8000)),
        ("a" * 300, ("10.0.0.1", 8000)),
        ("shop.example:99999", ("10.0.0.1", 8000)),
        ("", ("10.0.0.1", 8000)),
    ],
)
def test_server_is_the_host_header_when_it_is_one(
    host: str, expected: tuple[str, int | None]
) -> None:
    """What is no host name is ignored: then it is where the server listens."""
    found = request_attributes(
        request(headers={"host": host}, server=("10.0.0.1", 8000)), HttpOptions()
    )
    assert expected == (found["server.address"], found.get("server.port"))


@pytest.mark.parametrize(
    "headers",
    [
        {"forwarded": 'for="[2001:db8::5]:1234";host=shop.example;proto=https, for=10.0.0.9'},
        {
            "x-forwarded-for": "2001:db8::5, 10.0.0.9",
            "x-forwarded-host": "shop.example",
            "x-forwarded-proto": "https",
        },
    ],
)
def test_a_proxy_is_believed_only_where_there_is_one(headers: dict[str, str]) -> None:
    """Anybody can send these headers."""
    asked = request(headers=headers, peer=("10.0.0.2", 1), server=("10.0.0.1", 8000))
    found = request_attributes(asked, HttpOptions(behind_proxy=True))
    assert ("2001:db8::5", "shop.example", "https", "10.0.0.2") == (
        found["client.address"],
        found["server.address"],
        found["url.scheme"],
        found["network.peer.address"],
    )
    found = request_attributes(asked, HttpOptions())
    assert ("10.0.0.2", "10.0.0.1", "http") == (
        found["client.address"],
        found["server.address"],
        found["url.scheme"],
    )


def test_a_forwarded_header_that_is_nonsense_is_ignored() -> None:
    """Neither the scheme nor the address of a hostile header is recorded."""
    headers = {"forwarded": 'for="<script>";proto=javascript;host="a b"'}
    found = request_attributes(
        request(headers=headers, peer=("10.0.0.2", 1)), HttpOptions(behind_proxy=True)
    )
    assert ("10.0.0.2", "http") == (found["client.address"], found["url.scheme"])
    assert "server.address" not in found


@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
def test_headers_with_credentials_are_refused(field: str) -> None:
    """By name, when the options are made, not when the secret is in the trace."""
    given: dict[str, Any] = {field: frozenset({"Authorization", "Set-Cookie", "x-tenant"})}
    with pytest.raises(
        ConfigurationError, match=f"{field} names authorization, set-cookie, which"
    ):
        HttpOptions(**given)


def test_options_of_the_environment() -> None:
    """The variables that OpenTelemetry defines, and changes from code before them."""
    environ = {
        "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": "GET, PURGE",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": "X-Tenant",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": "X-Cache,",
    }
    found = http_options(environ, untraced=frozenset({"/health"}))
    assert frozenset({"GET", "PURGE"}) == found.known_methods
    assert frozenset({"x-tenant"}) == found.request_headers
    assert frozenset({"x-cache"}) == found.response_headers
    assert frozenset({"/health"}) == found.untraced
    assert HttpOptions() == http_options({})
