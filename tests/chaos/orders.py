"""Orders of all kinds, from a seed, and what may become of each."""

from random import Random
from typing import Any, Final, NamedTuple

TASKS: Final = ("inventory.reserve", "payment.charge", "shipping.arrange", "orders.confirm")

KINDS: Final[tuple[tuple[int, bool, dict[str, Any]], ...]] = (
    # How often, whether it may complete, and the input.
    (10, True, {}),
    (4, True, {"courier": "flaky"}),
    (3, True, {"email": "me@flaky.example"}),
    (3, True, {"sku": "table", "quantity": 3}),
    (4, False, {"region": "moon"}),
    (3, False, {"card": "4000000000000002"}),
    (3, False, {"amount_cents": 1_000_001}),
    (2, False, {"courier": "flaky", "amount_cents": 1_000_001}),
    (2, False, {"sku": "unicorn"}),
    (1, False, {"courier": "down"}),
    (1, True, {"sku": "chair"}),
)
"""None of them may get stuck."""


class Order(NamedTuple):
    """A saga to be.

    Attributes:
        key: Its business key.
        input: Its input.
        may_complete: Whether its input lets it.
        cancel: Whether it is cancelled right after its start.
    """

    key: str
    input: dict[str, Any]
    may_complete: bool
    cancel: bool


def orders(random: Random, count: int) -> list[Order]:
    """That many orders."""
    weights = [weight for weight, _, _ in KINDS]
    made = []
    for number in range(count):
        _, may_complete, kind = random.choices(KINDS, weights)[0]
        given = {"order_id": f"chaos-{number}", **kind}
        if random.random() < 0.3:
            given |= {"delay_in": random.choice(TASKS), "delay_seconds": random.choice([0.1, 0.5])}
        cancel = random.random() < 0.05
        made.append(Order(f"chaos-{number}", given, may_complete, cancel))
    return made
