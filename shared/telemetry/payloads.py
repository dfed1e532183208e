"""How the payload store is doing: a span and two measurements for each value that is read, written or copied.

A span belongs to whoever asks: to the step of a participant, to a request, to a span of the caller.
Where there is none, as in an orchestrator, it would be a trace of its own that says nothing: then
only the measurements are taken.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from opentelemetry import trace

from shared.clock import monotonic
from shared.telemetry import names, operations
from shared.telemetry.current import error_type
from shared.telemetry.metrics.catalog import PAYLOAD_DURATION, PAYLOAD_SIZE
from shared.telemetry.spans import AttributeValue
from shared.telemetry.tracing import span

PayloadOperation = Literal["read", "write", "copy"]


class Access:
    """One value, on its way.

    Attributes:
        size_bytes: Of its file; None while nobody knows.
    """

    size_bytes: int | None = None


@contextmanager
def access(
    operation: PayloadOperation, system: str, saga_id: str, digest: str
) -> Iterator[Access]:
    """Measure what is done with a value; what goes wrong is recorded, and goes on.

    Args:
        operation: What is done.
        system: What keeps it: ``file``, ``s3``, …
        saga_id: Whose value it is; of a copy, who gets it.
        digest: Name of the value.
    """
    found, begun_at = Access(), monotonic()
    labels: dict[str, AttributeValue] = {names.PAYLOAD_OPERATION: operation}
    try:
        if trace.get_current_span().get_span_context().is_valid:
            about = operations.payload(operation, system, saga_id=saga_id, digest=digest)
            with span(about) as current:
                yield found
                if found.size_bytes is not None:
                    current.set_attribute(names.PAYLOAD_SIZE, found.size_bytes)
        else:
            yield found
    except Exception as error:
        labels[names.ERROR_TYPE] = error_type(error)
        raise
    finally:
        PAYLOAD_DURATION.record(monotonic() - begun_at, labels)
    if found.size_bytes is not None:
        PAYLOAD_SIZE.record(found.size_bytes, {names.PAYLOAD_OPERATION: operation})
