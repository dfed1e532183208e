"""What `saga dev` tells the processes that it runs."""

from pathlib import Path

import pytest

from orchestrator.cli.stack import ORCHESTRATOR, Participants, Stack
from shared.settings import Settings


@pytest.mark.parametrize(
    "port, expected",
    [
        (9464, {"orchestrator": "9464", "inventory": "9465", "payment": "9466"}),
        (0, {"orchestrator": None, "inventory": None, "payment": None}),
        (None, {"orchestrator": None, "inventory": None, "payment": None}),
    ],
)
def test_each_process_has_a_metrics_port_of_its_own(
    port: int | None, expected: dict[str, str | None], tmp_path: Path
) -> None:
    """The one that was asked for would be taken for all but the first; a free one is free for all."""
    settings = Settings(home=tmp_path, metrics_port=port)
    stack = Stack(settings, Participants("workers", ["inventory", "payment"]), print)
    found = {name: stack._environment(name).get("SAGA_METRICS_PORT") for name in expected}
    assert expected == found
    assert ORCHESTRATOR in expected
