"""Which files of tests begin first, where several processes share them."""

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent

LONGEST_FIRST: Final = (
    "core/test_walk.py",
    "workers/test_kills.py",
    "e2e/test_cli.py",
    "workers/test_pools.py",
    "e2e/test_dev.py",
    "e2e/test_errands.py",
    "workers/test_rabbitmq.py",
    "e2e/test_demo.py",
    "faults/test_kills.py",
    "faults/test_servers_away.py",
    "faults/test_copies.py",
    "faults/test_traces.py",
    "faults/test_third_party.py",
    "faults/test_trip.py",
    "integration/test_rooms.py",
    "deploy/test_prometheus.py",
    "bus/test_services.py",
    "simulation/test_planted.py",
    "core/test_diagram.py",
    "kit/test_plugin.py",
    "guide/test_documents.py",
)
"""Files that take ten seconds or more: one that began last would keep the others waiting."""


def turn_of(path: Path) -> int:
    """When the tests of a file have their turn; those that are not mentioned come after the others."""
    name = path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)
