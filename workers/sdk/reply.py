"""Sends the outcome of an attempt to the orchestrator."""

from typing import Any, Final

from celery import Celery
from celery.utils.nodenames import anon_nodename
from kombu import Exchange, Queue

from shared import names
from shared.codec import task_body
from shared.ids import command_id
from shared.messages import Execution, Outcome, Reply
from workers.sdk.command import StepCommand

_PERSISTENT: Final = 2
_CONFIRM: Final = "confirm_publish"
_RETRY: Final = {
    # About ten seconds: longer than a broker's restart, shorter than a step's usual timeout.
    "max_retries": 14,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 1,
}


def send_reply(
    app: Celery[Any],
    command: StepCommand,
    outcome: Outcome,
    execution: Execution | None = None,
) -> None:
    """Publish the reply; when this returns the broker has it.

    Raises:
        kombu.exceptions.OperationalError: The broker was away for too long.
    """
    reply = Reply(
        saga_id=command.saga_id,
        step=command.step,
        direction=command.direction,
        attempt=command.attempt,
        outcome=outcome,
        execution=execution,
    )
    _confirm_on_rabbitmq(app)
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish(
            task_body(reply),
            exchange="",
            routing_key=command.reply_to,
            content_type="application/json",
            content_encoding="utf-8",
            headers=_headers(command),
            delivery_mode=_PERSISTENT,
            # RabbitMQ drops what goes to a queue that does not exist: no orchestrator may have run.
            declare=[_queue(command.reply_to)],
            retry=True,
            retry_policy=_RETRY,
            correlation_id=_id_of(command),
        )


def _headers(command: StepCommand) -> dict[str, Any]:
    """The headers of Celery's protocol 2, which any Celery tool can read, and the saga's."""
    task_id = _id_of(command)
    headers: dict[str, Any] = {
        "lang": "py",
        "task": names.REPLY_TASK,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{...}",
        "origin": anon_nodename(),
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        names.SAGA_ID: command.saga_id,
        names.SAGA_NAME: command.saga_name,
        names.SAGA_STEP: command.step,
        names.SAGA_DIRECTION: command.direction,
        names.SAGA_ATTEMPT: command.attempt,
    }
    if command.traceparent:
        headers[names.TRACEPARENT] = command.traceparent
    return headers


def _id_of(command: StepCommand) -> str:
    sent = command_id(command.saga_id, command.step, command.direction, command.attempt)
    return f"{sent}:reply"


def _queue(name: str) -> Queue:
    # Not `app.amqp.queues[name]`: that adds the queue to those that this app's own worker consumes.
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


def _confirm_on_rabbitmq(app: Celery[Any]) -> None:
    options = app.conf.broker_transport_options
    if _CONFIRM not in options and str(app.conf.broker_write_url).startswith(("amqp", "pyamqp")):
        app.conf.broker_transport_options = {**options, _CONFIRM: True}
