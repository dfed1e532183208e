"""What is said of the payload store: spans to a real receiver, and measurements."""

from datetime import timedelta
from pathlib import Path

import pytest

from shared.errors import PayloadMissing
from shared.telemetry import names, setup
from shared.telemetry.metrics.catalog import PAYLOAD_DURATION, PAYLOAD_SIZE
from shared.telemetry.metrics.registry import Registry
from shared.telemetry.tracing import span
from tests.core.test_claims import LARGE, claims_in
from tests.metrics.conftest import registry
from tests.servers.otlp import OtlpReceiver
from tests.telemetry.conftest import StartTracing

__all__ = ["registry"]


def test_every_value_that_comes_and_goes_has_a_span(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, tmp_path: Path
) -> None:
    """Below that of whoever asks, with its size; a value that is missing is an error."""
    start_tracing(otlp_http)
    claims = claims_in(tmp_path / "claims")
    with span("step"):
        kept = claims.kept({"a": LARGE}, "s-1", "It")
        claims.fetch(kept, "s-1")
        claims.copy(kept, "s-1", "s-2")
        with pytest.raises(PayloadMissing):
            claims.fetch(kept, "s-3")
    claims.fetch(kept, "s-1")  # nobody has a span: it would be a trace of its own
    assert setup.flush(timedelta(seconds=5))
    step, *found = sorted(otlp_http.spans(), key=lambda one: one.start_ns)
    assert {one.parent_id for one in found} == {step.span_id}
    told = [
        (one.name, one.kind, one.attributes["saga.id"], one.attributes.get("error.type"))
        for one in found
    ]
    assert told == [
        ("write payload", "client", "s-1", None),
        ("read payload", "client", "s-1", None),
        ("copy payload", "client", "s-2", None),
        ("read payload", "client", "s-3", "shared.errors.PayloadMissing"),
    ]
    written = found[0].attributes
    (file,) = (one for one in (tmp_path / "claims" / "s-1").iterdir())
    assert written["saga.payload.size"] == file.stat().st_size
    assert written["saga.payload.system"] == "file"
    assert file.name.startswith(str(written["saga.payload.digest"]))
    assert found[3].status == "error"


def test_durations_and_sizes_are_measured(registry: Registry, tmp_path: Path) -> None:
    """Also where there is no span; what failed by the kind of its error."""
    claims = claims_in(tmp_path / "claims")
    kept = claims.kept({"a": LARGE}, "s-1", "It")
    claims.fetch(kept, "s-1")
    with pytest.raises(PayloadMissing):
        claims.fetch(kept, "s-2")
    operation = names.PAYLOAD_OPERATION
    counted = {
        tuple(sorted(labels)): sum(one.counts) for labels, one in PAYLOAD_DURATION._series.items()
    }
    missing = ("error.type", "shared.errors.PayloadMissing")
    assert counted == {
        ((operation, "write"),): 1,
        ((operation, "read"),): 1,
        (missing, (operation, "read")): 1,
    }
    sizes = {
        dict(labels)[operation]: sum(one.counts) for labels, one in PAYLOAD_SIZE._series.items()
    }
    assert sizes == {"write": 1, "read": 1}
