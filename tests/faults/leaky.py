"""A saga whose input is made of secrets, for the service `leaky_app`."""

from datetime import timedelta

import msgspec

from orchestrator.core.definition import NOTHING_TO_UNDO, Retry, Saga, Step

PASSWORD = "hunter2-correct-horse"
CARD = "4111 1111 1111 1111"
EMAIL_USER = "jane.doe"
EMAIL = f"{EMAIL_USER}@example.com"
PHONE = "+81 90-1234-5678"
API_KEY = "sk_live_4eC39HqLyjWDarjtT1zdp7dc"

SECRETS = (PASSWORD, CARD, CARD.replace(" ", ""), EMAIL_USER, PHONE, API_KEY)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What both steps take."""

    email: str
    password: str
    card: str


LEAKY = Saga(
    name="leaky",
    version=1,
    input=Account,
    steps=(
        Step("check", action="leaky.check", compensation=NOTHING_TO_UNDO),
        Step(
            "pay",
            action="leaky.pay",
            compensation=NOTHING_TO_UNDO,
            timeout=timedelta(seconds=30),
            retry=Retry(attempts=1),
        ),
    ),
)
