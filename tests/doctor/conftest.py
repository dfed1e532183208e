"""Fixtures for the tests of `saga doctor`."""

from collections.abc import Iterable

from orchestrator.doctor.findings import Code, Finding, Severity
from tests.servers.otlp import otlp, otlp_grpc, otlp_http

__all__ = ["otlp", "otlp_grpc", "otlp_http"]


def bad(findings: Iterable[Finding]) -> list[tuple[Severity, Code | None]]:
    """What is not as it should be; each must say what to do."""
    found = [one for one in findings if one.severity is not Severity.OK]
    assert all(one.advice.endswith((".", ")")) and one.code for one in found), found
    return [(one.severity, one.code) for one in found]
