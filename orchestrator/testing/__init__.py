"""A kit for the tests of those who define sagas: no broker, no database, no waiting.

    from orchestrator.testing import given, rejects

    def test_a_declined_card_releases_the_stock() -> None:
        run = given(PLACE_ORDER, order_id="o-1").step("charge-payment", rejects("CardDeclined"))
        run.expect("compensated", undone=["reserve-inventory"], never=["arrange-shipping"])

The engine is the real one; store, broker and participants are in memory, and the clock stands still
until somebody moves it. `assert_every_failure_is_undone` drives a definition through every single
failure. See docs/testing.md.
"""

from orchestrator.testing.answers import fails, late, rejects, succeeds, times_out, twice
from orchestrator.testing.bench import Bench
from orchestrator.testing.coverage import Coverage
from orchestrator.testing.failures import assert_every_failure_is_undone
from orchestrator.testing.scenario import Scenario, given

__all__ = [
    "Bench",
    "Coverage",
    "Scenario",
    "assert_every_failure_is_undone",
    "fails",
    "given",
    "late",
    "rejects",
    "succeeds",
    "times_out",
    "twice",
]
