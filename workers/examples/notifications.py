"""Notifications: after the point of no return, so it is tried until it succeeds."""

from typing import TypedDict

from workers.examples.ledger import Ledger, linger, reference
from workers.examples.service import app, ledger_url
from workers.sdk import Participant, Reject, StepContext

participant = Participant(app, ledger_url("notifications"))
ledger = Ledger("notifications")


class Message(TypedDict):
    """A message that was sent."""

    message_id: str


@participant.action("notifications.send")
def send(
    context: StepContext,
    order_id: str,
    email: str,
    delay_in: str = "",
    delay_seconds: float = 0,
) -> Message:
    """Send the confirmation; a mailbox at ``flaky.example`` does not answer the first attempt."""
    if "@" not in email:
        raise Reject("InvalidAddress", f"{email!r} is no address.")
    message_id = reference(context, "msg")
    ledger.book(context, "sent", order_id, 1, message_id)
    linger(context, delay_in, delay_seconds)
    if email.endswith("@flaky.example") and context.attempt == 1:
        raise ConnectionError("The mail server does not answer.")
    return {"message_id": message_id}
