"""A service that says everything it should keep to itself, in every way there is."""

import logging

import structlog
from celery import Task
from opentelemetry import baggage

from shared.celery_app import make_app
from shared.settings import settings
from shared.telemetry import operations
from shared.telemetry.tracing import span
from tests.faults.leaky import API_KEY, PHONE
from workers.sdk import install

app = make_app("tests.faults.leaky_app", service="leaky", settings=settings)
install(app)
log = structlog.stdlib.get_logger("tests.leaky")


@app.task(name="leaky.check")
def check(email: str) -> dict[str, str]:
    """Say to the log who pays."""
    log.info("checked", email=email, tenant=baggage.get_baggage("tenant"))
    return {"checked": email}


@app.task(name="leaky.pay")
def pay(email: str, password: str, card: str) -> None:
    """Say everything, then fail with it."""
    log.info("paying", customer={"password": password, "card": card}, phone=PHONE)
    logging.getLogger("a.library").warning("POST https://u:%s@bank/?token=%s", password, API_KEY)
    operation = operations.http_client("POST", f"https://bank.example/?api_key={API_KEY}")
    with span(operation, {"user.email": email, "note": f"call {PHONE}", "db.password": password}):
        raise ValueError(f"no login for {email} with password={password!r} and card {card}")


@app.task(name="leaky.again", bind=True, max_retries=1)
def again(self: "Task[..., None]") -> None:
    """An ordinary task that asks for itself once."""
    log.info("again", tenant=baggage.get_baggage("tenant"))
    if not self.request.retries:
        raise self.retry(countdown=0)
