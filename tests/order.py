"""Which files of tests begin first, where several processes share them."""

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent

LONGEST_FIRST: Final = (
    "telemetry/test_workers.py",
    "workers/test_kills.py",
    "core/test_walk.py",
    "e2e/test_cli.py",
    "workers/test_pools.py",
    "e2e/test_dev.py",
    "e2e/test_errands.py",
    "workers/test_rabbitmq.py",
    "e2e/test_demo.py",
    "faults/test_kills.py",
    "contracts/test_transport.py",
    "workers/test_barrier.py",
    "core/test_random_sagas.py",
    "faults/test_servers_away.py",
    "faults/test_copies.py",
    "faults/test_traces.py",
    "faults/test_third_party.py",
    "faults/test_trip.py",
    "integration/test_rooms.py",
    "integration/test_transport_worker.py",
    "metrics/test_workers.py",
    "integration/test_transport_redelivery.py",
    "bus/test_sagas.py",
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
