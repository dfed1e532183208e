"""Whether the broker is there, keeps what it is given, and gives back what a dead worker had.

Redis is asked by INFO, which managed services allow too. RabbitMQ's queues are declared again as
Celery would declare them, where they exist: the broker refuses what differs, in its own words.
"""

from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from kombu import Connection, Queue
from kombu.utils.url import maybe_sanitize_url

from orchestrator.doctor.findings import Code, Finding, advise, good, wrong
from shared.broker_transport import BROKER_ERRORS

CHECK: Final = "broker"
CONNECT_SECONDS: Final = 3
MEMORY_FULL: Final = 0.8

RABBITMQ_CONSUMER_TIMEOUT: Final = timedelta(minutes=30)
"""RabbitMQ's default; AMQP has no way to ask for it."""

_PRECONDITION_FAILED: Final = 406
_NOT_FOUND: Final = 404


def shown(url: str) -> str:
    """A broker's URL without its password."""
    return ";".join(str(maybe_sanitize_url(one)) for one in url.split(";"))


def unreachable(url: str, error: BaseException) -> Finding:
    """The broker cannot be reached."""
    why = " ".join(str(error).split()) or type(error).__name__
    return wrong(
        CHECK,
        Code.BROKER_UNREACHABLE,
        f"The broker {shown(url)} cannot be reached: {why.rstrip('.')}.",
        "Start it, or set SAGA_BROKER_URL to where it is.",
    )


def check_redis(url: str) -> Iterator[Finding]:
    """Memory, persistence, role."""
    options = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": CONNECT_SECONDS}
    try:
        # kombu's way to it: its URLs say more than a Redis client understands.
        with Connection(url, transport_options=options) as connection:
            channel: Any = connection.channel()  # tries once
            info: Any = channel.client.info()
    except (*BROKER_ERRORS, ValueError) as error:
        yield unreachable(url, error)
        return
    yield good(CHECK, f"Redis {info.get('redis_version')} answers at {shown(url)}.")
    if info.get("role") == "slave":
        yield wrong(
            CHECK,
            Code.REDIS_REPLICA,
            "This Redis is a replica: it refuses what is written to it.",
            "Set SAGA_BROKER_URL to the master.",
        )
    yield from _redis_memory(info)
    yield from _redis_persistence(info)


def check_other(url: str) -> Iterator[Finding]:
    """A broker that nothing more is known about: whether it answers."""
    try:
        with Connection(url) as connection:
            connection.connect()
    except KeyError as error:  # of kombu's list of transports
        yield wrong(
            CHECK,
            Code.SETTING,
            f"SAGA_BROKER_URL={shown(url)}: {error.args[0]}.",
            "Write redis://host:6379/0 or amqp://host:5672//.",
        )
    except (*BROKER_ERRORS, ValueError) as error:
        yield unreachable(url, error)
    else:
        yield good(CHECK, f"The broker {shown(url)} answers.")


def _redis_memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy = str(info.get("maxmemory_policy", ""))
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    details: dict[str, Any] = {"maxmemory_policy": policy, "maxmemory": most, "used_memory": used}
    limit = f"at {most} bytes" if most else "as soon as it gets a memory limit"
    if policy.startswith("allkeys"):
        yield wrong(
            CHECK,
            Code.REDIS_EVICTS,
            f"Redis throws queues away when memory runs short: {policy}, {limit}.",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf; a broker has to refuse rather "
            "than to forget.",
            **details,
        )
    elif policy != "noeviction":
        yield advise(
            CHECK,
            Code.REDIS_EVICTS,
            f"Redis may throw keys with an expiry away when memory runs short: {policy}. Queues have "
            "none, so they stay.",
            "CONFIG SET maxmemory-policy noeviction, unless the database is shared with a cache.",
            **details,
        )
    else:
        yield good(CHECK, "Redis evicts nothing.", **details)
    if most and used > MEMORY_FULL * most:
        yield advise(
            CHECK,
            Code.REDIS_MEMORY,
            f"Redis uses {used / most:.0%} of its memory limit; at the limit it refuses messages.",
            "Raise maxmemory, or find out which queue grows: redis-cli --bigkeys.",
            **details,
        )


def _redis_persistence(info: Mapping[str, Any]) -> Iterator[Finding]:
    if int(info.get("aof_enabled", 0)):
        bad = info.get("aof_last_write_status", "ok") != "ok"
        if bad:
            yield wrong(
                CHECK,
                Code.REDIS_PERSISTENCE,
                "Redis cannot write its append-only file.",
                "See its log: the disk may be full.",
            )
        else:
            yield good(CHECK, "Redis writes an append-only file.")
        return
    yield advise(
        CHECK,
        Code.REDIS_PERSISTENCE,
        "Redis writes no append-only file: a restart of it loses messages. A lost command costs its "
        "step one time-out and one attempt, a lost reply likewise.",
        "redis-server --appendonly yes --appendfsync everysec; snapshots (save) lose minutes.",
        last_save=info.get("rdb_last_save_time"),
    )


def check_visibility(
    ours: timedelta, longest: timedelta, where: str, others: Mapping[str, float]
) -> Iterator[Finding]:
    """Whether Redis gives a message back while its step still runs.

    Args:
        ours: Visibility timeout of the settings.
        longest: Longest step timeout of the known definitions.
        where: Which step that is.
        others: Seconds that running workers, of whatever app, have been told, by their name.
    """
    details: dict[str, Any] = {
        "visibility_timeout_s": ours.total_seconds(),
        "longest_step_s": longest.total_seconds(),
        "step": where,
    }
    advice = (
        f"Set SAGA_VISIBILITY_TIMEOUT above {_seconds(2 * longest)}, for the orchestrator and for all "
        "workers, or shorten the step's timeout."
    )
    if ours < longest:
        yield wrong(
            CHECK,
            Code.VISIBILITY_TIMEOUT,
            f"Redis gives a message to another worker after {_seconds(ours)}, while {where} may take "
            f"{_seconds(longest)}: it would run twice at the same time.",
            advice,
            **details,
        )
    elif ours < 2 * longest:
        yield advise(
            CHECK,
            Code.VISIBILITY_TIMEOUT,
            f"The visibility timeout, {_seconds(ours)}, is less than twice the longest step, {where} "
            f"with {_seconds(longest)}: a message that a worker has fetched also waits for the one "
            "that runs.",
            advice,
            **details,
        )
    else:
        yield good(
            CHECK,
            f"The visibility timeout, {_seconds(ours)}, is longer than the longest step, {where} with "
            f"{_seconds(longest)}.",
            **details,
        )
    shorter = {
        name: seconds for name, seconds in others.items() if seconds < longest.total_seconds()
    }
    if shorter:
        named = ", ".join(f"{name} ({seconds:g} s)" for name, seconds in sorted(shorter.items()))
        yield wrong(
            CHECK,
            Code.VISIBILITY_TIMEOUT_OTHERS,
            f"Workers on this Redis have a shorter visibility timeout than {where}: {named}. The "
            "shortest one counts for all messages, since all share one list of those in hand.",
            "Give all of them the same broker_transport_options['visibility_timeout'], or give the "
            "other app a database, or unacked_key, unacked_index_key and unacked_mutex_key, of its own.",
            workers=shorter,
            **details,
        )


def check_rabbitmq(
    url: str, queues: Collection[Queue], longest: timedelta, where: str
) -> Iterator[Finding]:
    """Queues as they are declared, and how long RabbitMQ waits for an acknowledgement.

    Args:
        url: Of the broker.
        queues: As the app declares them.
        longest: Longest step timeout of the known definitions.
        where: Which step that is.
    """
    try:
        with Connection(url, connect_timeout=CONNECT_SECONDS) as connection:
            transport: Any = connection.connect()  # tries once
            properties: Any = transport.server_properties
            version = properties.get("version", "")
            yield good(CHECK, f"RabbitMQ {version} answers at {shown(url)}.")
            for queue in queues:
                yield from _rabbitmq_queue(connection, queue)
    except BROKER_ERRORS as error:
        yield unreachable(url, error)
        return
    limit = RABBITMQ_CONSUMER_TIMEOUT
    if longest >= limit:
        yield wrong(
            CHECK,
            Code.RABBITMQ_CONSUMER_TIMEOUT,
            f"RabbitMQ closes a channel that has not acknowledged a message for {_seconds(limit)} (its "
            f"default), while {where} may take {_seconds(longest)}: the step would be sent again.",
            "Raise consumer_timeout (milliseconds) in rabbitmq.conf, or shorten the step's timeout.",
        )
    else:
        yield good(
            CHECK,
            f"The longest step, {where} with {_seconds(longest)}, is shorter than RabbitMQ's default "
            f"consumer timeout of {_seconds(limit)}; AMQP cannot say whether it was changed.",
        )


def _rabbitmq_queue(connection: Connection, queue: Queue) -> Iterator[Finding]:
    errors = connection.channel_errors
    try:
        with connection.channel() as channel:
            queue(channel).queue_declare(passive=True)
    except errors as error:
        if getattr(error, "reply_code", None) != _NOT_FOUND:
            raise
        return  # it is made when somebody needs it
    try:
        with connection.channel() as channel:
            queue(channel).queue_declare()
    except errors as error:
        if getattr(error, "reply_code", None) != _PRECONDITION_FAILED:
            raise
        yield wrong(
            CHECK,
            Code.RABBITMQ_QUEUE,
            f"The queue {queue.name} is not as it is declared here, so workers cannot consume it: "
            f"{getattr(error, 'reply_text', error)}.",
            "Stop its workers, delete the queue when it is empty, and start them again; all who "
            "declare it have to agree on durable and on x-queue-type.",
            queue=queue.name,
        )
    else:
        yield good(CHECK, f"The queue {queue.name} is durable, as it is declared here.")


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
