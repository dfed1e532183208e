import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans as encode_officially
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind

from shared.telemetry.otlp_file import OtlpFile, encode_spans
from shared.telemetry.span_export import Emitted
from tests.telemetry.records import record, rich_record


def spans_of_the_sdk() -> list[ReadableSpan]:
    """Spans as the SDK records them, with all that it can add."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "x", "n": 1}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("scope", "1.2", "https://schema", {"a": 1})
    with tracer.start_as_current_span("outer", kind=SpanKind.CONSUMER) as outer:
        outer.set_attributes({"s": "é", "b": False, "i": -7, "f": 1e-9, "l": (1, 2), "e": ()})
        link = Link(outer.get_span_context(), {"k": "v"})
        with (
            pytest.raises(ValueError, match="why"),
            tracer.start_as_current_span("inner", links=[link], kind=SpanKind.SERVER),
        ):
            raise ValueError("why")
    provider.get_tracer("another").start_span("client", kind=SpanKind.CLIENT).end()
    provider.shutdown()
    return list(exporter.get_finished_spans())


def emitted() -> list[ReadableSpan]:
    """Spans as `setup.emit` makes them."""
    resource = Resource.create({"service.name": "orchestrator"})
    return [Emitted(one, resource) for one in (record(), rich_record())]


def normal(request: Any) -> Any:
    """The same request without empty lists and objects, which are the default."""
    if isinstance(request, dict):
        values = {key: normal(value) for key, value in request.items()}
        return {key: value for key, value in values.items() if value not in ([], {})}
    return [normal(one) for one in request] if isinstance(request, list) else request


@pytest.mark.parametrize("make", [spans_of_the_sdk, emitted])
def test_it_writes_what_the_official_exporter_writes(
    make: Callable[[], list[ReadableSpan]],
) -> None:
    """Our encoder is faster, not different."""
    spans = make()
    expected = json.loads(encode_officially(spans).to_json())
    assert normal(expected) == normal(json.loads(encode_spans(spans)))
    assert len(spans) > 1


def test_lines_are_appended(tmp_path: Path) -> None:
    """A process id that comes back continues the file of the older process."""
    for line in (b"one", b"two"):
        file = OtlpFile(tmp_path / "new" / "folder", "svc-1", 1000)
        file.write(line)
        file.close()
    assert b"one\ntwo\n" == (tmp_path / "new" / "folder" / "svc-1.jsonl").read_bytes()


def test_a_new_file_begins_where_one_is_large(tmp_path: Path) -> None:
    """No line is cut, none is lost, and a restart goes on with the newest file."""
    for _ in range(2):
        file = OtlpFile(tmp_path, "svc-1", bytes_max=8)
        for _ in range(3):
            file.write(b"12345")
        file.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert {"svc-1.jsonl": 12, "svc-1.1.jsonl": 12, "svc-1.2.jsonl": 12} == sizes


def test_a_service_name_is_made_safe_for_a_file(tmp_path: Path) -> None:
    """A name with a slash must not leave the folder."""
    file = OtlpFile(tmp_path, "../a b/c-1", 1000)
    file.write(b"x")
    file.close()
    assert [tmp_path / ".._a_b_c-1.jsonl"] == list(tmp_path.iterdir())
