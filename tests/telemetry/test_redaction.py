from dataclasses import dataclass
from datetime import UTC, datetime
from time import process_time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from shared.telemetry import names, redaction_patterns
from shared.telemetry.config import tracing_config
from shared.telemetry.redaction import REDACTED, Redaction, Redactor, redacted
from shared.telemetry.redaction_patterns import hidden, mask_card
from tests.telemetry.test_config import HOME

REDACTOR = Redactor(Redaction())
SECONDS_MAX = 2.0  # a quadratic search takes a minute
CARD = "4111 1111 1111 1111"
JWT = (
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)
PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIB\nAAKCAQ==\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("password=hunter2 and more", "password=[redacted] and more"),
        ("{'db_password': 'hunter 2', 'x': 1}", "{'db_password': '[redacted]', 'x': 1}"),
        ('{"api_key":"abc","n":1}', '{"api_key":"[redacted]","n":1}'),
        (
            '"{\\"secret\\": \\"abc\\", \\"n\\": 1}"',
            '"{\\"secret\\": \\"[redacted]\\", \\"n\\": 1}"',
        ),
        ("Authorization: Bearer abc.def", "Authorization: [redacted]"),
        ("sent Basic dXNlcjpwYXNz to it", "sent Basic [redacted] to it"),
        ("GET /x?access_token=abc&page=2", "GET /x?access_token=[redacted]&page=2"),
        ("connect(secret='a b', n=1)", "connect(secret='[redacted]', n=1)"),
        ("X-Api-Key: abc", "X-Api-Key: [redacted]"),
        ("redis://user:p4ss@h:6379/0", "redis://[redacted]@h:6379/0"),
        (f"got {JWT}.", "got [redacted]."),
        ("key AKIAIOSFODNN7EXAMPLE", "key [redacted]"),
        ("ghp_" + "a" * 36, REDACTED),
        ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", REDACTED),
        (f"key:\n{PRIVATE_KEY}\nend", "key:\n[redacted]\nend"),
        (f"card {CARD} declined", "card ****1111 declined"),
        ("card 4111-1111-1111-1111", "card ****1111"),
        ("card=5500005555555559", "card=****5559"),
        ("jane.doe+x@example.com wrote", "j***@example.com wrote"),
        ("call +81 90-1234-5678", "call ***78"),
        ("(555) 123-4567 or 03-1234-5678", "***67 or ***78"),
    ],
)
def test_what_is_hidden_in_a_text(text: str, shown: str) -> None:
    """By its name or by its form, and nothing around it; twice is as once."""
    assert shown == REDACTOR.text(text)
    assert shown == REDACTOR.text(shown)


@given(st.from_regex(r"[+(]?[0-9]{1,3}(?:[ .()/-]{0,2}[0-9]{1,4}){2,6}", fullmatch=True))
def test_the_quick_look_at_a_text_misses_no_number(number: str) -> None:
    """It decides whether the patterns have to run."""
    shown = mask_card(number)
    shown = redaction_patterns._PHONE.sub(redaction_patterns._masked_phone, shown)
    assert shown == hidden(number)
    assert f"[{shown}]" == hidden(f"[{number}]")


@pytest.mark.parametrize(
    "text",
    [
        "step.succeeded",
        "01a21222-4b35-7e43-b597-7c2e1b9f5674:charge-payment:action:1",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "2026-11-25T10:00:00.123456+00:00, 2026-11-25 10:00:00, on 05-11-2026",
        "order 4111111111111112 has no check digit",
        "in 0.4111111111111111 s, at 1795000000123456789 ns, pid 12345",
        "celery@vm.example.com ready, gen123@host.example.com left, 77@host.example.com",
        "10.0.0.12:5432 and 2001:db8::1 and version 1.2.3.4567890123",
        "the token is missing, no password given, secretary, tokens: 12",
        "Task inventory.reserve[task-1] succeeded in 0.0123456789s: {'reservation_id': 'r-1'}",
        "https://shop.example/orders/7?page=2",
        "",
    ],
)
def test_what_is_harmless_stays_the_same_object(text: str) -> None:
    """Ids, times, addresses and words are not taken for secrets, and nothing is copied."""
    assert text is REDACTOR.text(text)


@pytest.mark.parametrize(
    "key, value, shown",
    [
        ("password", "x", REDACTED),
        ("dbPassword", "x", REDACTED),
        ("http.request.header.authorization", ["Bearer x"], REDACTED),
        ("X-API-Key", "x", REDACTED),
        ("clientSecret", {"a": 1}, REDACTED),
        ("refresh_token", 12345, REDACTED),
        ("session.id", "abc", REDACTED),
        ("password", None, None),
        ("has_password", True, True),
        ("email", "jane@example.com", "j***@example.com"),
        ("email", "not an address", REDACTED),
        ("customer_phone", "0901234567", "***67"),
        ("phone", 901234567, "***67"),
        ("card_number", 4111111111111111, "****1111"),
        ("amount", 4111111111111111, "****1111"),
        ("card", "visa", "visa"),
        ("max_tokens", 500, 500),
        ("key", "o-1", "o-1"),
        ("author", "jane", "jane"),
        ("passenger", "jane", "jane"),
        ("saga.id", CARD, CARD),
    ],
)
def test_what_is_hidden_by_its_key(key: str, value: Any, shown: Any) -> None:
    """In every spelling of the key; words that only look alike are left alone."""
    assert {key: shown} == REDACTOR.fields({key: value})


@dataclass
class Customer:
    name: str
    password: str


class Card(msgspec.Struct):
    number: str


def test_nested_values() -> None:
    """Dictionaries, lists, structs, dataclasses and exceptions are looked into."""
    value = {
        "order": {"items": [{"note": f"paid with {CARD}"}], "total": 12},
        "customer": Customer("jane", "hunter2"),
        "card": Card("4111111111111111"),
        "error": ValueError("password=hunter2"),
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    assert {
        "order": {"items": [{"note": "paid with ****1111"}], "total": 12},
        "customer": {"name": "jane", "password": REDACTED},
        "card": {"number": "****1111"},
        "error": "password=[redacted]",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    } == REDACTOR.value(value)
    assert "hunter2" in str(value["error"])


def test_nothing_is_copied_where_nothing_is_hidden() -> None:
    """The usual case costs a look."""
    value = {"a": [1, {"b": "c"}], "d": Card("x"), "e": None}
    assert value is REDACTOR.value(value)
    assert value is REDACTOR.fields(value)


def test_depth_has_a_limit() -> None:
    """A structure without a bottom is cut, not followed."""
    endless: dict[str, Any] = {}
    endless["again"] = endless
    assert REDACTED in str(REDACTOR.value(endless))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_nothing_raises_and_nothing_is_found_twice(value: Any) -> None:
    """Any value gives a value, and what is shown is fit to be shown."""
    shown = REDACTOR.value(value)
    assert repr(shown) == repr(REDACTOR.value(shown))


@pytest.mark.parametrize(
    "text",
    [
        *("password " * 11_000, "pass" * 25_000, "secret=" * 14_000, "1" * 100_000),
        *("x" * 99_999 + "@", "a.b-" * 25_000 + "@", "eyJ" * 33_000, "token='" * 14_000),
        *("-----BEGIN PRIVATE KEY-----" * 3_700, "://a:" * 20_000 + "@", "+1 " * 33_000),
    ],
)
def test_a_hostile_text_takes_no_long_time(text: str) -> None:
    """Patterns run in proportion to the text: the test's own limit of time says so."""
    begin = process_time()
    REDACTOR.text(text)
    assert process_time() - begin < SECONDS_MAX


def test_a_text_has_a_limit() -> None:
    """What is beyond it is cut off rather than let through unsearched."""
    assert "hunter2" not in REDACTOR.text("x" * 200_000 + "password=hunter2")


def test_own_keys_and_patterns() -> None:
    """In any spelling; what is shown on purpose is written as it is."""
    own = Redactor(
        Redaction(keys=("iban", "tax_id"), pattern=r"CUST-\d+", shown_keys=("page_token",))
    )
    assert {
        "customerIban": REDACTED,
        "tax.id": REDACTED,
        "tax": "x",
        "page_token": "abc",
        "note": "of [redacted]",
    } == own.fields(
        {
            "customerIban": "x",
            "tax.id": 7,
            "tax": "x",
            "page_token": "abc",
            "note": "of CUST-123",
        }
    )


def test_own_rules_come_from_the_environment() -> None:
    """Three variables, read with the rest of the configuration."""
    found = tracing_config(
        "s",
        home=HOME,
        environ={
            "OPENTELEMETRY_REDACT_KEYS": "iban, tax_id",
            "OPENTELEMETRY_REDACT_PATTERN": "CUST-[0-9]+",
            "OPENTELEMETRY_REDACT_SHOWN_KEYS": "page_token",
        },
    ).redaction
    assert found == Redaction(
        keys=("iban", "tax_id"), pattern="CUST-[0-9]+", shown_keys=("page_token",)
    )


@pytest.mark.parametrize("pattern", ["(", "x*"])
def test_a_wrong_pattern_is_named(pattern: str) -> None:
    """At start, by the name of its variable."""
    with pytest.raises(ConfigurationError) as caught:
        tracing_config("s", home=HOME, environ={"OPENTELEMETRY_REDACT_PATTERN": pattern})
    assert str(caught.value).startswith(f"OPENTELEMETRY_REDACT_PATTERN={pattern!r} is not allowed")


def test_our_own_vocabulary_is_not_hidden() -> None:
    """No key of a span or a log line that the system writes sounds like a secret."""
    ours = {value for value in vars(names).values() if isinstance(value, str) and value.islower()}
    assert "saga.id" in ours
    assert dict.fromkeys(ours, "x") == redacted(dict.fromkeys(ours, "x"))
