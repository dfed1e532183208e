"""Secrets and personal data stay out of what people read: spans, logs, stored errors, commands' output.

What goes by its key: passwords, tokens, secrets, API keys, authorization headers and cookies are
dropped; e-mail addresses, phone and card numbers are masked. What goes by its form, in any text
(messages, tracebacks, URLs): ``password=…`` and its like, bearer and basic credentials, user names
and passwords in URLs, keys of well-known make, private keys, JSON web tokens, card numbers (by their
check digit), e-mail addresses, and phone numbers that are written as such.

Payloads in the store and in messages stay as they are: they are data, and the work needs them.

It runs for every log line and every span, so what has nothing to hide must cost next to nothing:
keys are looked up in a table, and three quick looks at a text decide whether a pattern has to run.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import msgspec

from shared.errors import ConfigurationError
from shared.telemetry import names
from shared.telemetry.current import text_of
from shared.telemetry.environment import Environment
from shared.telemetry.redaction_patterns import hidden, mask_card, mask_email, mask_phone

REDACTED: Final = "[redacted]"
DEPTH_MAX: Final = 20
SHORT_CHARS_MAX: Final = 64
TEXTS_REMEMBERED_MAX: Final = 4096
"""Texts up to that length in which nothing was found are remembered; no secret is."""

TEXT_CHARS_MAX: Final = 100_000
"""A longer text is cut: searching it would take time that work needs."""

_CARD_LOW: Final = 10**12
_KEYS_REMEMBERED_MAX: Final = 4096

Rule = Literal["trust", "drop", "email", "phone", "card", "look"]
T = TypeVar("T")

_DROP_WORDS: Final = frozenset(
    {
        *("password", "passwd", "pwd", "passphrase", "secret", "secrets", "token", "credential"),
        *("credentials", "authorization", "apikey", "cookie", "cookies", "cvv", "cvc", "jwt"),
        *("csrf", "csrftoken", "xsrf", "otp", "ssn", "passcode"),
    }
)
_DROP_PAIRS: Final = frozenset(
    {
        *(("api", "key"), ("access", "key"), ("private", "key"), ("signing", "key")),
        *(("encryption", "key"), ("auth", "key"), ("session", "id"), ("security", "code")),
        *(("set", "cookie"), ("x", "auth")),
    }
)
_MASK_WORDS: Final[Mapping[str, Rule]] = {
    "email": "email",
    "mail": "email",
    "phone": "phone",
    "mobile": "phone",
    "telephone": "phone",
    "pan": "card",
    "card": "card",
}
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PLAIN_KINDS: Final = frozenset({float, bool, type(None), datetime})
_PLAIN: Final = (float, bool, type(None), date, time, timedelta, UUID, Enum, PurePath)

_TRUSTED: Final = frozenset(
    {
        *names.SAGA_ATTRIBUTES.values(),
        *(names.SAGA_OUTCOME, names.SAGA_STATUS, names.SAGA_RECONSTRUCTED),
        *(names.MESSAGING_SYSTEM, names.MESSAGING_OPERATION_NAME, names.MESSAGING_OPERATION_TYPE),
        *(names.MESSAGING_DESTINATION_NAME, names.MESSAGING_MESSAGE_ID),
        names.MESSAGING_CONVERSATION_ID,
        *(names.HTTP_REQUEST_METHOD, names.HTTP_ROUTE, names.ERROR_TYPE, names.EXCEPTION_TYPE),
        *(names.BUS_MESSAGE_KIND, names.BUS_MESSAGE_NAME, names.CODE_FUNCTION_NAME),
        *(*names.LOG_SAGA_KEYS, names.LOG_TRACE_ID, names.LOG_SPAN_ID, names.LOG_TASK_ID),
        *(names.LOG_TASK_NAME, names.LOG_TIMESTAMP, names.LOG_LEVEL, names.LOG_SERVICE),
        # What a record has of an exception becomes text later; the rest are Celery's own.
        *("exc_info", "celery.action", "celery.task_name", "celery.state"),
    }
)
"""Ids and names that the system makes itself: not looked into."""


class Redaction(msgspec.Struct, frozen=True, kw_only=True):
    """What is hidden beside what always is.

    Attributes:
        keys: More keys whose values are dropped, in any case and spelling: ``iban`` is also
            ``IBAN`` and ``customer_iban``.
        pattern: Regular expression; what it finds in a text is dropped. Empty for none.
        shown_keys: Keys that are never hidden, exactly as they are written.

    Raises:
        ConfigurationError: The pattern is no regular expression, or finds the empty text.
    """

    keys: tuple[str, ...] = ()
    pattern: str = ""
    shown_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.pattern:
            return
        try:
            found = re.compile(self.pattern)
        except re.error as error:
            raise ConfigurationError(
                f"Redaction.pattern={self.pattern!r} is not allowed; expected a regular expression: "
                f"{error}."
            ) from error
        if found.search(""):
            raise ConfigurationError(
                f"Redaction.pattern={self.pattern!r} is not allowed; expected a regular expression "
                "that does not find the empty text."
            )


class Redactor:
    """Hides what is to be hidden.

    Args:
        redaction: What is hidden beside what always is.
    """

    def __init__(self, redaction: Redaction) -> None:
        self._own_words = frozenset(
            tuple(word.lower() for word in _WORD.findall(key)) for key in redaction.keys
        )
        self._shown = frozenset(redaction.shown_keys)
        self._own = re.compile(redaction.pattern) if redaction.pattern else None
        self._rules: dict[str, Rule] = dict.fromkeys(_TRUSTED | self._shown, "trust")
        self._harmless: set[str] = set()

    def text(self, text: str) -> str:
        """A text without what is to be hidden; the same object where that is nothing."""
        # Events of a log and values of attributes come again and again.
        if text in self._harmless:
            return text
        shown = self._searched(text)
        if shown is text and len(text) <= SHORT_CHARS_MAX:
            if len(self._harmless) >= TEXTS_REMEMBERED_MAX:
                self._harmless.clear()
            self._harmless.add(text)
        return shown

    def fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keys and values without what is to be hidden; the same object where that is nothing."""
        changed: dict[str, Any] | None = None
        rules, harmless = self._rules, self._harmless
        for key, value in fields.items():
            rule = rules.get(key) or self._rule(key)
            # Nearly everything ends here.
            if rule == "trust" or (
                rule == "look"
                and (value in harmless if type(value) is str else type(value) in _PLAIN_KINDS)
            ):
                continue
            found = self._by_rule(rule, value, 0)
            if found is not value:
                changed = dict(fields) if changed is None else changed
                changed[key] = found
        return fields if changed is None else changed

    def value(self, value: T, depth: int = 0) -> T:
        """Any value, nested or not; the same object where nothing is to be hidden in it."""
        found: Any = value
        if isinstance(value, str):
            found = self.text(value)
        elif isinstance(value, _PLAIN):
            pass
        elif isinstance(value, int):
            if value >= _CARD_LOW and mask_card(str(value)) != str(value):
                found = mask_card(str(value))
        elif depth >= DEPTH_MAX:
            found = REDACTED
        elif isinstance(value, Mapping):
            inner = {
                key: self._by_rule(self._rule(str(key)), one, depth + 1)
                for key, one in value.items()
            }
            if any(inner[key] is not one for key, one in value.items()):
                found = inner
        elif isinstance(value, list | tuple | set | frozenset):
            items = [self.value(one, depth + 1) for one in value]
            if any(new is not old for new, old in zip(items, value, strict=True)):
                found = items if isinstance(value, list) else tuple(items)
        else:
            found = self._other(value, depth)
        return found  # type: ignore[no-any-return]

    def _other(self, value: Any, depth: int) -> Any:
        """A struct, a dataclass, an exception, anything: by its parts, or by its text."""
        try:
            plain = msgspec.to_builtins(value)
        except (TypeError, ValueError, RecursionError):
            plain = text_of(value)
        shown = self.value(plain, depth + 1)
        return value if shown is plain else shown

    def _by_rule(self, rule: Rule, value: Any, depth: int) -> Any:
        if rule == "look":
            return self.value(value, depth)
        if rule == "trust" or value is None or isinstance(value, bool) or value == "":
            return value
        if rule == "drop":
            return REDACTED
        if not isinstance(value, str | int):
            return self.value(value, depth)
        text = str(value)
        if rule == "email":
            return mask_email(text)
        if rule == "phone":
            return mask_phone(text)
        masked = mask_card(text)
        return self.value(value, depth) if masked == text else masked

    def _rule(self, key: str) -> Rule:
        known = self._rules.get(key)
        if known is not None:
            return known
        rule = self._rule_of(key)
        if len(self._rules) < _KEYS_REMEMBERED_MAX:
            self._rules[key] = rule
        return rule

    def _rule_of(self, key: str) -> Rule:
        words = [word.lower() for word in _WORD.findall(key[:256])]
        if not _DROP_WORDS.isdisjoint(words) or not _DROP_PAIRS.isdisjoint(pairwise(words)):
            return "drop"
        for own in self._own_words:
            width = len(own)
            if any(tuple(words[at : at + width]) == own for at in range(len(words))):
                return "drop"
        return next((_MASK_WORDS[word] for word in words if word in _MASK_WORDS), "look")

    def _searched(self, text: str) -> str:
        if len(text) > TEXT_CHARS_MAX:
            text = f"{text[: TEXT_CHARS_MAX - 1]}…"
        text = hidden(text)
        return self._own.sub(REDACTED, text) if self._own else text


def redaction_from(env: Environment) -> Redaction:
    """Read what is hidden from the environment.

    Raises:
        ConfigurationError: OPENTELEMETRY_REDACT_PATTERN is not allowed.
    """
    variable = "OPENTELEMETRY_REDACT_PATTERN"
    keys = env.words("OPENTELEMETRY_REDACT_KEYS")
    shown = env.words("OPENTELEMETRY_REDACT_SHOWN_KEYS")
    try:
        return Redaction(keys=keys, shown_keys=shown, pattern=env.text(variable))
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("Redaction.pattern", variable)) from error


_active = Redactor(Redaction())


def configure(redaction: Redaction) -> None:
    """Set what this process hides beside what always is."""
    global _active  # noqa: PLW0603 - a process has one configuration
    _active = Redactor(redaction)


def redacted_text(text: str) -> str:
    """A text for people; see `Redactor.text`."""
    return _active.text(text)


def redacted_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keys and values for people; see `Redactor.fields`."""
    return _active.fields(fields)


def redacted(value: T) -> T:
    """Any value for people; see `Redactor.value`."""
    return _active.value(value)
