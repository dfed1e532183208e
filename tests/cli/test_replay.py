"""`saga replay` as text."""

from datetime import timedelta

import msgspec

from orchestrator.cli.output import as_text
from orchestrator.cli.replay import _blocks
from orchestrator.replay import replay
from orchestrator.sagas import PLACE_ORDER
from orchestrator.testing import given


def test_what_differs_is_shown_event_by_event() -> None:
    """A line for each decision, and what it was and would be where it differs."""
    bench = given(PLACE_ORDER, order_id="o-1").run()
    definition, row, history = bench.client.story(bench.saga_id)
    first = msgspec.structs.replace(definition.steps[0], timeout=timedelta(hours=1))
    changed = msgspec.structs.replace(definition, steps=(first, *definition.steps[1:]))
    shown = as_text(
        _blocks("id", changed, history[0].at, replay(changed, history, row.state))
    ).splitlines()
    assert shown[0] == "place-order v1  id  12 events, 6 decisions: 1 would differ"
    assert shown[2].split()[-1] == "DIFFERS"
    assert shown[3].split()[-1] == "same"
    assert "event 1, start" in shown
    told = shown[shown.index("event 1, start") :]
    assert told[1] == "  same   saga_started"
    assert "2030-01-01T00:00:30Z" in told[2]
    assert "2030-01-01T01:00:00Z" in told[3]
