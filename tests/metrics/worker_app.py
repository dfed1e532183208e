"""A Celery app for the tests: a task with a metric of its own, and the same task as a step."""

import os
from typing import Any

from shared.celery_app import make_app
from shared.settings import settings
from shared.telemetry.metrics import counter, gauge
from workers.sdk import install

app = make_app("tests.metrics.worker_app", service="shop", settings=settings)
install(app)


@app.task(name="shop.sell")
def sell(**_: Any) -> int:
    """Sell one."""
    counter("shop.sold").add(1, {"region": "eu"})
    gauge("shop.level", rule="max").set(os.getpid())
    return os.getpid()
