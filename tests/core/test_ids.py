"""Identifiers: random where something begins, derived everywhere else."""

import time
import uuid
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shared import ids

texts = st.text(max_size=40)


def test_a_saga_id_is_a_uuid_of_version_7() -> None:
    """Version and variant stand where RFC 9562 wants them, and the time comes first."""
    before = time.time_ns() // 1_000_000
    value = uuid.UUID(ids.new_saga_id())
    after = time.time_ns() // 1_000_000
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert before <= value.int >> 80 <= after


def test_saga_ids_differ_within_a_millisecond() -> None:
    """74 bits are random."""
    assert len({ids.new_saga_id() for _ in range(1_000)}) == 1_000


def test_saga_ids_of_later_milliseconds_sort_later() -> None:
    """As text too: so they are indexed."""
    made = []
    for _ in range(3):
        made.append(ids.new_saga_id())
        millisecond = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == millisecond:
            pass
    assert all(earlier < later for earlier, later in pairwise(made))


@given(texts)
def test_a_start_that_is_delivered_twice_has_one_saga_id(task_id: str) -> None:
    """It is derived from the message's id, and is a UUID like every other."""
    derived = ids.saga_id_from(task_id)
    assert derived == ids.saga_id_from(task_id)
    assert uuid.UUID(derived).version == 5


def test_starts_of_different_messages_have_different_saga_ids() -> None:
    """Nothing of the message's id is lost."""
    assert len({ids.saga_id_from(f"task-{number}") for number in range(100)}) == 100


def test_trace_and_span_ids_have_the_form_of_w3c_trace_context() -> None:
    """Lower-case hexadecimal digits, and not all zero."""
    for made, digits in ((ids.new_trace_id(), 32), (ids.new_span_id(), 16)):
        assert len(made) == digits
        assert int(made, 16) > 0
        assert made == made.lower()


@given(st.lists(texts, min_size=1, max_size=4))
def test_a_derived_span_id_depends_on_its_parts_alone(parts: list[str]) -> None:
    """The same after a restart, and another for another part."""
    span_id = ids.derived_span_id(*parts)
    assert span_id == ids.derived_span_id(*parts)
    assert len(span_id) == 16
    assert int(span_id, 16)
    assert span_id != ids.derived_span_id(*parts, "send")


def test_a_derived_span_id_keeps_its_parts_apart() -> None:
    """``ab, c`` is not ``a, bc``."""
    assert ids.derived_span_id("ab", "c") != ids.derived_span_id("a", "bc")


def test_a_span_id_never_is_all_zero() -> None:
    """Zero means "no span" (W3C Trace Context)."""
    assert ids._nonzero(bytes(8)) == bytes(7) + b"\x01"


def test_the_idempotency_key_is_the_same_for_every_attempt_and_the_command_id_is_not() -> None:
    """The attempt is the fencing token beside the key."""
    assert ids.idempotency_key("s", "a", "action") == "s:a:action"
    assert ids.command_id("s", "a", "action", 2) == "s:a:action:2"
