"""Who runs: the workers on the broker, what they consume, what they know, how they are set up.

They are asked as `celery inspect` asks. A participant that does not answer control messages (solo
pools in the middle of a step, other languages) cannot be seen, and the findings say so.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from celery import Celery

from orchestrator.core.definition import Definition
from orchestrator.doctor.findings import Code, Finding, advise, good, wrong
from shared.names import ORCHESTRATOR_QUEUE

CHECK: Final = "workers"
ANSWER_SECONDS: Final = 1.0

_NO_HARD_LIMIT: Final = ("solo", "threads", "eventlet")
"""Pools that cannot end a task that hangs; gevent ends one that waits."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that has answered.

    Attributes:
        queues: Which queues it consumes.
        tasks: Names of the tasks that it knows; None where it did not say.
        conf: Its configuration, as far as it told.
        pool: ``prefork``, ``threads``, ``gevent``, ``solo`` …; empty where it did not say.
    """

    name: str
    queues: frozenset[str] = frozenset()
    tasks: frozenset[str] | None = None
    conf: Mapping[str, Any] = {}
    pool: str = ""


def ask_workers(app: Celery[Any]) -> list[Running]:
    """The workers that answer on the app's broker, whatever app is theirs."""
    inspect = app.control.inspect(timeout=ANSWER_SECONDS)
    queues: Mapping[str, Any] = inspect.active_queues() or {}
    if not queues:
        return []
    # Whom to wait for is known now: each question ends with the last answer.
    asked = app.control.inspect(
        destination=list(queues), timeout=ANSWER_SECONDS, limit=len(queues)
    )
    tasks: Mapping[str, Any] = asked.registered() or {}
    stats: Mapping[str, Any] = asked.stats() or {}
    confs: Mapping[str, Any] = asked.conf() or {}
    return [
        Running(
            name=name,
            queues=frozenset(str(queue.get("name")) for queue in found or ()),
            tasks=_names_of(tasks.get(name)),
            conf=confs.get(name) or {},
            pool=_pool_of(stats.get(name) or {}),
        )
        for name, found in sorted(queues.items())
    ]


def check_workers(
    workers: Collection[Running], definitions: Iterable[Definition], system: str
) -> Iterator[Finding]:
    """Whether somebody runs for each step, and whether they lose what they have in hand."""
    if not workers:
        yield wrong(
            CHECK,
            Code.NO_WORKER,
            f"No worker answers on this broker within {ANSWER_SECONDS:g} s.",
            "Start the orchestrator (`celery -A orchestrator worker`) and the participants, or "
            "`saga dev`; a worker on another broker has another SAGA_BROKER_URL.",
        )
        return
    names = ", ".join(one.name for one in workers)
    yield good(CHECK, f"{len(workers)} workers answer: {names}.", workers=[*workers])
    if not any(ORCHESTRATOR_QUEUE in one.queues for one in workers):
        yield wrong(
            CHECK,
            Code.NO_ORCHESTRATOR,
            "No orchestrator answers: sagas are stored, and nothing moves them.",
            "Start `celery -A orchestrator worker`.",
        )
    yield from _check_queues(workers, definitions)
    for worker in workers:
        if ORCHESTRATOR_QUEUE not in worker.queues:
            yield from _check_worker(worker, system)


def visibility_timeouts(workers: Iterable[Running]) -> dict[str, float]:
    """Seconds after which each worker gives back what another one has in hand, where it told."""
    found: dict[str, float] = {}
    for worker in workers:
        options = worker.conf.get("broker_transport_options")
        seconds = options.get("visibility_timeout") if isinstance(options, Mapping) else None
        if isinstance(seconds, int | float):
            found[worker.name] = float(seconds)
    return found


def _check_queues(
    workers: Collection[Running], definitions: Iterable[Definition]
) -> Iterator[Finding]:
    needed: dict[str, dict[str, str]] = {}
    for definition in definitions:
        for step in definition.steps:
            if not step.task:
                continue  # it only waits: nobody has to work for it
            where = f"{definition.name}/{step.name}"
            tasks = needed.setdefault(step.queue, {})
            tasks.setdefault(step.task, where)
            if step.undo_task:
                tasks.setdefault(step.undo_task, where)
    for queue, tasks in sorted(needed.items()):
        consumers = [one for one in workers if queue in one.queues]
        steps = ", ".join(sorted(set(tasks.values())))
        if not consumers:
            yield wrong(
                CHECK,
                Code.QUEUE_WITHOUT_WORKER,
                f"No worker that answers consumes the queue {queue}: {steps} would wait until they "
                "time out.",
                f"Start a worker with -Q {queue}, on this broker.",
                queue=queue,
                steps=sorted(set(tasks.values())),
            )
            continue
        unknown = {
            task: [
                one.name for one in consumers if one.tasks is not None and task not in one.tasks
            ]
            for task in tasks
        }
        missing = {task: names for task, names in unknown.items() if names}
        if missing:
            task, names = next(iter(missing.items()))
            yield wrong(
                CHECK,
                Code.TASK_UNKNOWN,
                f"{', '.join(names)} consumes the queue {queue} and does not know "
                f"{', '.join(sorted(missing))}: {tasks[task]} leaves its saga stuck there as TaskUnknown.",
                "Register the task in that app, or import its module there; a worker of another app "
                "must not consume this queue.",
                queue=queue,
                tasks=missing,
            )
        else:
            yield good(CHECK, f"The queue {queue} has {_count(consumers)}.", queue=queue)


def _check_worker(worker: Running, system: str) -> Iterator[Finding]:
    conf = worker.conf
    if conf and not (conf.get("task_acks_late") and conf.get("task_reject_on_worker_lost")):
        yield advise(
            CHECK,
            Code.ACKS_EARLY,
            f"{worker.name} runs without task_acks_late and task_reject_on_worker_lost: a task whose "
            "process dies is lost. Steps of the SDK and of install(app) do it right all the same.",
            "Set both in that app, if it takes part without the SDK or has other tasks that must not "
            "be lost.",
            worker=worker.name,
        )
    prefetch = conf.get("worker_prefetch_multiplier")
    if system == "redis" and isinstance(prefetch, int) and prefetch != 1:
        yield advise(
            CHECK,
            Code.PREFETCH,
            f"{worker.name} fetches {prefetch or 'any number of'} messages for each process ahead: "
            "they wait there while the visibility timeout runs.",
            "Set worker_prefetch_multiplier=1 in that app.",
            worker=worker.name,
        )
    limit = conf.get("task_time_limit")
    if limit and worker.pool in _NO_HARD_LIMIT:
        yield advise(
            CHECK,
            Code.POOL,
            f"{worker.name} has task_time_limit={limit}, which its pool {worker.pool} cannot enforce.",
            "Use the prefork pool, or give the calls inside the task time-outs of their own.",
            worker=worker.name,
        )
    elif not limit and worker.pool == "prefork" and conf:
        yield advise(
            CHECK,
            Code.POOL,
            f"{worker.name} has no time limit: a step that hangs occupies its process for ever.",
            "Set task_time_limit above the longest step's timeout: the process is replaced then.",
            worker=worker.name,
        )


def _names_of(registered: Any) -> frozenset[str] | None:
    # With attributes it says ``inventory.reserve [rate_limit=…]``.
    if not isinstance(registered, list | tuple):
        return None
    return frozenset(str(one).partition(" ")[0] for one in registered)


def _pool_of(stats: Mapping[str, Any]) -> str:
    pool = stats.get("pool")
    implementation = str(pool.get("implementation", "")) if isinstance(pool, Mapping) else ""
    module = implementation.partition(":")[0].rpartition(".")[2]
    return {"thread": "threads"}.get(module, module)


def _count(consumers: Collection[Running]) -> str:
    return "a worker" if len(consumers) == 1 else f"{len(consumers)} workers"
