"""A participant that knows the task of `unanswered` that nobody knew before it was deployed."""

from typing import Any

from celery import Celery

from shared.settings import settings
from workers.sdk import install

app: Celery[Any] = Celery("answering", broker=settings().broker_url, set_as_current=False)
install(app)


@app.task(name="payment.nobody_knows")
def nobody_knew() -> str:
    """Answer at last."""
    return "known"
