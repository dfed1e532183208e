import pytest

from shared import names as wire
from shared.telemetry import names


def test_span_names() -> None:
    """The names that docs/tracing.md gives; those of messaging are ``{operation} {destination}``."""
    assert "saga place-order" == names.saga_span("place-order")
    assert "saga.start place-order" == names.start_span("place-order")
    assert "step charge" == names.step_span("charge", "action")
    assert "compensate charge" == names.step_span("charge", "compensation")
    assert "send payment" == names.send_span("payment")
    assert "process payment" == names.process_span("payment")


@pytest.mark.parametrize(
    "url, system",
    [
        ("redis://:secret@h:6379/0", "redis"),
        ("rediss://h", "redis"),
        ("sentinel://h:26379;sentinel://i:26379", "redis"),
        ("redis+socket:///run/redis.sock", "redis"),
        ("amqp://guest@h//", "rabbitmq"),
        ("pyamqp://h", "rabbitmq"),
        ("amqps://h", "rabbitmq"),
        ("sqs://", "aws_sqs"),
        ("filesystem://", "filesystem"),
        ("memory://", "memory"),
    ],
)
def test_the_broker_has_its_agreed_name(url: str, system: str) -> None:
    """``messaging.system`` is a well-known value where there is one."""
    assert system == names.messaging_system(url)


def test_each_header_of_a_saga_becomes_an_attribute() -> None:
    """Headers, attributes and log keys name the same things."""
    assert {header.replace("saga_", "saga.") for header in names.SAGA_ATTRIBUTES} == set(
        names.SAGA_ATTRIBUTES.values()
    )
    in_lines = set(names.SAGA_ATTRIBUTES) - {wire.SAGA_VERSION}
    assert set(names.LOG_SAGA_KEYS) == in_lines | {wire.SAGA_MESSAGE}
