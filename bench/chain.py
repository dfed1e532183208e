"""Plain Celery: five no-op tasks, with contrib's instrumentation if ``BENCH_TRACED`` is 1."""

import os
from typing import Any

from celery import Celery, chain, signals
from opentelemetry.instrumentation.celery import CeleryInstrumentor

from bench import done, names
from shared.telemetry import setup
from shared.telemetry.config import tracing_config

app: Celery[Any] = Celery("bench.chain", broker=names.broker())
app.conf.update(
    task_ignore_result=True,
    task_default_queue=names.QUEUE,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="bench.bare")
def bare() -> None:
    """Do nothing."""


@app.task(name="bench.last")
def last(number: str) -> None:
    """Say that everything before is done."""
    done.tell(os.getpid(), number)


@app.task(name="bench.step")
def step(number: str) -> str:
    """Do nothing and hand on."""
    return number


def chained(number: int) -> Any:
    """The five tasks as a chain."""
    return chain(step.s(str(number)), *(step.s() for _ in range(names.STEPS - 2)), last.s())


if names.traced():
    setup.start("chain", tracing_config("chain", home=names.home()))
    CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]

    @signals.worker_process_shutdown.connect(weak=False)
    def _shutdown(**_: Any) -> None:
        setup.shutdown()
