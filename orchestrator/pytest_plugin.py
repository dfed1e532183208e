"""Prints what `assert_every_failure_is_undone` has exercised, after the tests.

pytest loads it by itself (entry point ``pytest11``). It says nothing, and imports nothing of the
product, where no test has used the kit. ``-p no:saga`` switches it off.
"""

import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

_REPORTS: Final = "orchestrator.testing.coverage"
_WORKER: Final = "saga_coverage"

_from_workers: list[str] = []


def pytest_sessionfinish(session: Any) -> None:
    """In a process of pytest-xdist: hand the tables to the one that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER] = [*_tables()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of the processes of pytest-xdist, if that is used, has ended."""
    _from_workers.extend(getattr(node, "workeroutput", {}).get(_WORKER, ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print them."""
    tables = [*_from_workers, *_tables()]
    if tables:
        terminalreporter.section("saga failure coverage")
        for table in tables:
            terminalreporter.write_line(table)
            terminalreporter.write_line("")


def _tables() -> Iterator[str]:
    coverage = sys.modules.get(_REPORTS)
    for report in coverage.reports if coverage is not None else ():
        yield report.table()
