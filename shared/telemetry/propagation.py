"""Trace context and baggage, in and out of headers of any kind, without ever stopping work.

Formats: W3C Trace Context (https://www.w3.org/TR/trace-context-2/), B3 single and multi, and W3C
Baggage, in any combination (`Propagation`). What is written is written in every configured format.
Of what comes, the first configured format that has a well-formed header counts.

Headers come from anybody: one that breaks its grammar, is too long, comes twice or is no text is
ignored, counted (`ignored`), and logged once for each reason; a new trace starts.

`header_propagator.py` puts this behind the OpenTelemetry API.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec
import structlog

from shared import names
from shared.telemetry import b3, baggage
from shared.telemetry.baggage import NOTHING, Baggage

Format = Literal["tracecontext", "b3", "b3multi", "baggage"]

TRACEPARENT_VARIABLE: Final = "TRACEPARENT"
TRACESTATE_VARIABLE: Final = "TRACESTATE"
BAGGAGE_VARIABLE: Final = "BAGGAGE"
TRACESTATE_CHARS_MAX: Final = 512
TRACESTATE_MEMBERS_MAX: Final = 32
HEADER_CHARS_MAX: Final = 256
"""Of a header with ids; a ``traceparent`` of today has 55."""

BAGGAGE_BYTES_MAX_DEFAULT: Final = 1024

_SAMPLED: Final = 0x01
_GRAMMAR: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<span_id>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?",
    re.ASCII,
)
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


class Propagation(msgspec.Struct, frozen=True, kw_only=True):
    """What is read from headers and written into them.

    Attributes:
        formats: In the order in which they are looked for; empty for none.
        baggage_keys: What passes of baggage, in and out, when `formats` has it; ``*`` for all.
        baggage_bytes_max: Most that a ``baggage`` header may have with what passes.
    """

    formats: tuple[Format, ...] = ("tracecontext",)
    baggage_keys: tuple[str, ...] = ()
    baggage_bytes_max: int = BAGGAGE_BYTES_MAX_DEFAULT


_USUAL: Final = ("tracecontext",)

_active = Propagation()
_ignored: Counter[str] = Counter()


class TraceParent(msgspec.Struct, frozen=True, kw_only=True):
    """Where a trace stands: its id, the span that is the parent of what comes, and its flags.

    Attributes:
        trace_id: 32 lower-case hexadecimal digits, not all zero.
        span_id: 16 lower-case hexadecimal digits, not all zero.
        flags: 8 bits; newer versions set more than the first.
        decided: False where the caller leaves it to others whether the trace is recorded (B3).
    """

    trace_id: str
    span_id: str
    flags: int = _SAMPLED
    decided: bool = True

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & _SAMPLED)


def configure(propagation: Propagation) -> None:
    """Set what this process reads and writes; the default is W3C Trace Context alone."""
    global _active  # noqa: PLW0603 - a process has one configuration
    _active = propagation


def configured() -> Propagation:
    """What this process reads and writes."""
    return _active


def ignored() -> Mapping[str, int]:
    """How many headers of this process were ignored, by header and reason."""
    return dict(_ignored)


# Trace context -----------------------------------------------------------------------------------


def parse_traceparent(value: object) -> TraceParent | None:
    """Read a ``traceparent`` header.

    Returns:
        None for anything that is not one; never raises.
    """
    if not isinstance(value, str):
        return None
    # The header of one message is read by several: the instrumentation, the log, the SDK.
    return _parsed(value) if len(value) <= HEADER_CHARS_MAX else _parsed.__wrapped__(value)


@lru_cache(maxsize=1024)
def _parsed(value: str) -> TraceParent | None:
    match = _GRAMMAR.fullmatch(value.strip())
    if match is None or match["version"] == "ff":
        return None
    if match["version"] == "00" and match["rest"] is not None:
        return None
    if not match["trace_id"].strip("0") or not match["span_id"].strip("0"):
        return None
    return TraceParent(
        trace_id=match["trace_id"], span_id=match["span_id"], flags=int(match["flags"], 16)
    )


def format_traceparent(trace_id: str, span_id: str, *, sampled: bool) -> str:
    """Write a ``traceparent`` header, version 00."""
    return f"00-{trace_id}-{span_id}-{_SAMPLED if sampled else 0:02x}"


def extract(headers: Mapping[str, Any], *, count: bool = True) -> tuple[TraceParent | None, str]:
    """Trace context of a message or a request.

    Args:
        headers: By lower-case names; a value may be text, bytes, or a list of them.
        count: False for a look beside the one that begins the work: nothing is counted or logged.

    Returns:
        The parent, or None, and the ``tracestate``: empty without a parent of its format, or where
        it is malformed or longer than `TRACESTATE_CHARS_MAX`.
    """
    parent: TraceParent | None = None
    if _active.formats[:1] == _USUAL and not headers.get(names.TRACESTATE):
        parent = parse_traceparent(headers.get(names.TRACEPARENT))
        if parent is not None:
            return parent, ""
    reading = _Reading(headers, count=count)
    for one in _active.formats:
        match one:
            case "tracecontext":
                parent = reading.traceparent()
                if parent:
                    return parent, reading.tracestate()
            case "b3":
                parent = reading.b3_single()
            case "b3multi":
                parent = reading.b3_multi()
            case "baggage":
                continue
        if parent:
            return parent, ""
    return None, ""


def inject(
    headers: MutableMapping[str, Any],
    traceparent: str,
    tracestate: str = "",
    entries: Baggage = NOTHING,
) -> None:
    """Put a trace context into headers, in every configured format.

    Args:
        headers: Of a message or a request.
        traceparent: W3C; a malformed one is written as it is, in W3C's format alone.
        tracestate: W3C; other formats have no place for it.
        entries: Baggage, that is allowed already.
    """
    for one in _active.formats:
        if one == "tracecontext":
            headers[names.TRACEPARENT] = traceparent
            if tracestate:
                headers[names.TRACESTATE] = tracestate
        elif one == "baggage":
            inject_baggage(headers, entries)
        elif (parent := parse_traceparent(traceparent)) is None:
            continue
        elif one == "b3":
            headers[b3.SINGLE] = b3.format_single(
                parent.trace_id, parent.span_id, sampled=parent.sampled
            )
        else:
            headers[b3.TRACE_ID] = parent.trace_id
            headers[b3.SPAN_ID] = parent.span_id
            headers[b3.SAMPLED] = f"{parent.sampled:d}"


def inject_baggage(headers: MutableMapping[str, Any], entries: Baggage) -> None:
    """Put baggage that is allowed already into headers."""
    if entries:
        headers[names.BAGGAGE] = baggage.format_header(entries)


def written_names() -> tuple[str, ...]:
    """Names of the headers that `inject` may write, and that `extract` looks for."""
    found: list[str] = []
    for one in _active.formats:
        found += _NAMES[one]
    return tuple(found)


def headers_of(pairs: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, list[str]]:
    """The headers of an HTTP request that `extract` and `extract_baggage` look for.

    Args:
        pairs: Names in any case, with values; one that comes twice is kept twice.
    """
    wanted = frozenset(written_names())
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        key = (name.decode("latin-1") if isinstance(name, bytes) else name).lower()
        if key in wanted:
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            found.setdefault(key, []).append(text)
    return found


def from_environment(
    environ: Mapping[str, str] = os.environ,
) -> tuple[TraceParent | None, str]:
    """Trace context of the calling program, from the variables TRACEPARENT and TRACESTATE.

    https://opentelemetry.io/docs/specs/otel/context/env-carriers/
    """
    return checked(environ.get(TRACEPARENT_VARIABLE), environ.get(TRACESTATE_VARIABLE))


def checked(traceparent: object, tracestate: object) -> tuple[TraceParent | None, str]:
    """A trace context in W3C's format that came as data, whatever formats headers have."""
    reading = _Reading({names.TRACEPARENT: traceparent, names.TRACESTATE: tracestate})
    parent = reading.traceparent()
    return parent, reading.tracestate() if parent else ""


# Baggage -----------------------------------------------------------------------------------------


def extract_baggage(headers: Mapping[str, Any]) -> Baggage:
    """Baggage of a message or a request: what is allowed of it; empty unless it is switched on."""
    if "baggage" not in _active.formats:
        return NOTHING
    reading = _Reading(headers)
    found, complete = baggage.parse(reading.joined(names.BAGGAGE, baggage.HEADER_CHARS_MAX))
    if not complete:
        reading.ignore(names.BAGGAGE, "malformed")
    return allowed_baggage(found)


def baggage_from_environment(environ: Mapping[str, str] = os.environ) -> Baggage:
    """Baggage of the calling program, from the variable BAGGAGE; as `extract_baggage`."""
    return extract_baggage({names.BAGGAGE: environ.get(BAGGAGE_VARIABLE)})


def allowed_baggage(entries: Mapping[str, Any]) -> Baggage:
    """What of some baggage may travel; empty unless baggage is switched on."""
    if "baggage" not in _active.formats or not entries:
        return NOTHING
    found, complete = baggage.allowed(entries, _active.baggage_keys, _active.baggage_bytes_max)
    if not complete:
        _ignore(names.BAGGAGE, "too large")
    return found


# Headers, of which nothing is sure -----------------------------------------------------------------

_NAMES: Final[Mapping[Format, tuple[str, ...]]] = {
    "tracecontext": (names.TRACEPARENT, names.TRACESTATE),
    "b3": (b3.SINGLE,),
    "b3multi": b3.MULTI,
    "baggage": (names.BAGGAGE,),
}


class _Reading:
    """One look at the headers of a message or a request.

    Args:
        headers: Their names and values.
        count: Whether what is ignored is counted.
    """

    def __init__(self, headers: Mapping[str, Any], *, count: bool = True) -> None:
        self._headers = headers
        self._count = count

    def traceparent(self) -> TraceParent | None:
        text = self.single(names.TRACEPARENT)
        if not text:
            return None
        parent = parse_traceparent(text)
        if parent is None:
            self.ignore(names.TRACEPARENT, "malformed")
        return parent

    def tracestate(self) -> str:
        text = self.joined(names.TRACESTATE, TRACESTATE_CHARS_MAX)
        if not text:
            return ""
        members = list(filter(None, map(str.strip, text.split(","))))
        keys = {one.partition("=")[0] for one in members}
        if (
            len(keys) != len(members)
            or len(members) > TRACESTATE_MEMBERS_MAX
            or not all(map(_MEMBER.fullmatch, members))
        ):
            self.ignore(names.TRACESTATE, "malformed")
            return ""
        return ",".join(members)

    def b3_single(self) -> TraceParent | None:
        text = self.single(b3.SINGLE)
        if not text or text in b3.DECISIONS_ALONE:
            return None
        return self._parent(b3.SINGLE, b3.parse_single(text))

    def b3_multi(self) -> TraceParent | None:
        trace_id, span_id, sampled, flags = (
            self.single(name, b3.AS_WRITTEN_BY_OTHERS[name]) for name in b3.MULTI
        )
        if not trace_id and not span_id:
            return None
        return self._parent(b3.TRACE_ID, b3.parse_multi(trace_id, span_id, sampled, flags))

    def _parent(self, name: str, found: b3.B3 | None) -> TraceParent | None:
        if found is None:
            self.ignore(name, "malformed")
            return None
        return TraceParent(
            trace_id=found.trace_id,
            span_id=found.span_id,
            flags=_SAMPLED if found.sampled else 0,
            decided=found.sampled is not None,
        )

    def single(self, name: str, or_name: str = "") -> str:
        """The text of a header that may come once; empty where it is missing or ignored."""
        value = self._headers.get(name)
        if value is None and or_name:
            value = self._headers.get(or_name)
        if isinstance(value, str):  # nearly always
            if len(value) <= HEADER_CHARS_MAX:
                return value.strip()
            self.ignore(name, "too long")
            return ""
        texts = self._texts(name, value)
        if len(texts) > 1:
            self.ignore(name, "repeated")
            return ""
        if texts and len(texts[0]) > HEADER_CHARS_MAX:
            self.ignore(name, "too long")
            return ""
        return texts[0].strip() if texts else ""

    def joined(self, name: str, chars_max: int) -> str:
        """The texts of a header that may come several times; empty where one is ignored."""
        text = ",".join(self._texts(name, self._headers.get(name)))
        if len(text) > chars_max:
            self.ignore(name, "too long")
            return ""
        return text.strip()

    def _texts(self, name: str, value: object) -> list[str]:
        if value is None:
            return []
        found: list[str] = []
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, bytes):
                found.append(one.decode("latin-1"))
            elif isinstance(one, str):
                found.append(one)
            else:
                self.ignore(name, "not text")
                return []
        return found

    def ignore(self, name: str, reason: str) -> None:
        if self._count:
            _ignore(name, reason)


def _ignore(name: str, reason: str) -> None:
    """Count a header that is ignored; the first of its kind is logged, without its value."""
    kind = f"{name} {reason}"
    _ignored[kind] += 1
    if _ignored[kind] == 1:
        _log.warning("telemetry.header_ignored", header=name, reason=reason)
