"""A participant without our SDK: an ordinary Celery app, run by `celery -A … worker`."""

import os
from typing import Any

from celery import Celery, Task

app = Celery("participant", broker=os.environ.get("TEST_BROKER_URL"))
app.conf.update(
    broker_transport=os.environ.get("TEST_BROKER_TRANSPORT") or None,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)


@app.task(name="inventory.reserve", bind=True)
def reserve(self: Task[Any, Any], order_id: str) -> None:
    """Answer with what the command's headers say."""
    request: Any = self.request
    app.send_task(
        "saga.reply",
        kwargs={
            "saga_id": request.saga_id,
            "step": request.saga_step,
            "direction": request.saga_direction,
            "attempt": request.saga_attempt,
            "outcome": {"type": "succeeded", "output": {"order_id": order_id, "id": request.id}},
        },
        queue=request.saga_reply_to,
    )
