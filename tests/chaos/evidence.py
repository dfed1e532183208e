"""What became of the orders: by the store, and by the books of the participants."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from orchestrator.client import Client
from orchestrator.core.state import Status
from shared.settings import Settings
from tests.chaos.orders import Order
from workers.examples.ledger import audit, effects, standing
from workers.examples.service import SERVICES

ENDED_WELL: Final = {Status.COMPLETED, Status.COMPENSATED}


def violations(
    client: Client, started: Mapping[str, Order], using: Settings
) -> tuple[list[str], Counter[str]]:
    """Everything that is wrong, one sentence each, and how the sagas ended."""
    found: list[str] = []
    ends: Counter[str] = Counter()
    for saga_id, order in started.items():
        status = client.row(saga_id).state.status
        ends[str(status)] += 1
        what = f"saga {saga_id} ({order.input})"
        if status not in ENDED_WELL:
            found.append(f"{what} is {status}")
        elif status is Status.COMPENSATED:
            left = standing(saga_id, using=using)
            if left:
                found.append(f"{what} is compensated, and leaves {left}")
        else:
            if not order.may_complete:
                found.append(f"{what} is completed, and should not be")
            done = [one.service for one in effects(saga_id, using=using)]
            if Counter(done) != Counter(SERVICES):
                found.append(f"{what} is completed, with effects in {done}")
    found += audit(using=using)
    return found, ends
