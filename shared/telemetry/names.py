"""The vocabulary: span names, attribute keys, metrics, log keys. They stand here only.

Attributes follow the OpenTelemetry semantic conventions, version 1.44.0, where they have a name for
the thing (a test compares the keys with the package that is generated from them); spans of messaging
are named ``{operation} {destination}``.
"""

from typing import Final
from urllib.parse import urlsplit

from shared import names as wire
from shared.ids import Direction

# Attributes of a bus's messages; the conventions have none for what a message is to its service --

BUS_MESSAGE_KIND: Final = "bus.message.kind"
"""``command``, ``query`` or ``event``."""
BUS_MESSAGE_NAME: Final = "bus.message.name"
"""Its type: ``orders.create`` on the buses, ``CreateOrder`` where code names its own."""

BUS_ATTRIBUTES: Final = {
    wire.SAGA_MESSAGE: BUS_MESSAGE_NAME,
    wire.SAGA_MESSAGE_KIND: BUS_MESSAGE_KIND,
}
"""Which header of a bus's message becomes which attribute."""

# Attributes of sagas -------------------------------------------------------------------------

SAGA_ID: Final = "saga.id"
SAGA_NAME: Final = "saga.name"
SAGA_VERSION: Final = "saga.version"
SAGA_STEP: Final = "saga.step"
SAGA_DIRECTION: Final = "saga.direction"
SAGA_ATTEMPT: Final = "saga.attempt"
SAGA_PARENT_ID: Final = "saga.parent.id"
"""On the spans of a sub-saga: the saga that it belongs to."""
SAGA_CHILD_ID: Final = "saga.child.id"
"""On the span of a step that is a saga: that saga."""
SAGA_FORKED_FROM: Final = "saga.forked_from.id"
"""On the spans of a fork: the saga that it was forked from."""
SAGA_ORIGIN_ID: Final = "saga.origin.id"
"""On the span of the undo of a copied step: the saga whose effect is undone."""
SAGA_OUTCOME: Final = "saga.outcome"
"""How an attempt, a step or a wait ended: ``succeeded``, ``rejected``, ``failed``, ``timed_out``."""
SAGA_STATUS: Final = "saga.status"
"""How a saga ended: ``completed``, ``compensated``, ``stuck``, ``resolved``."""
SAGA_RECONSTRUCTED: Final = "saga.trace.reconstructed"
"""True on spans that were built from the history of a saga that was not sampled."""

SAGA_ATTRIBUTES: Final = {
    wire.SAGA_ID: SAGA_ID,
    wire.SAGA_NAME: SAGA_NAME,
    wire.SAGA_VERSION: SAGA_VERSION,
    wire.SAGA_STEP: SAGA_STEP,
    wire.SAGA_DIRECTION: SAGA_DIRECTION,
    wire.SAGA_ATTEMPT: SAGA_ATTEMPT,
}
"""Which header of a message becomes which attribute."""

# Attributes of the payload store; the conventions have none for stores of objects in general -----

PAYLOAD_OPERATION: Final = "saga.payload.operation"
"""``read``, ``write`` or ``copy``."""
PAYLOAD_SYSTEM: Final = "saga.payload.system"
"""What keeps it: ``file``, ``s3``, ``gs``, …"""
PAYLOAD_DIGEST: Final = "saga.payload.digest"
"""The first characters of the name of a value, as errors give it."""
PAYLOAD_SIZE: Final = "saga.payload.size"
"""Bytes of its file."""

# Attributes of messaging ---------------------------------------------------------------------

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_CONVERSATION_ID: Final = "messaging.message.conversation_id"

OPERATION_SEND: Final = "send"
OPERATION_PROCESS: Final = "process"

# Attributes of HTTP (semantic conventions, HTTP is stable since 1.23.0) -------------------------

HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_REQUEST_METHOD_ORIGINAL: Final = "http.request.method_original"
HTTP_REQUEST_RESEND_COUNT: Final = "http.request.resend_count"
HTTP_REQUEST_HEADER: Final = "http.request.header."
HTTP_RESPONSE_HEADER: Final = "http.response.header."
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
URL_FULL: Final = "url.full"
URL_PATH: Final = "url.path"
URL_QUERY: Final = "url.query"
URL_SCHEME: Final = "url.scheme"
URL_TEMPLATE: Final = "url.template"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
CLIENT_ADDRESS: Final = "client.address"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"
NETWORK_PROTOCOL_NAME: Final = "network.protocol.name"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
USER_AGENT_ORIGINAL: Final = "user_agent.original"

HTTP_REQUEST_ID: Final = "http.request.id"
"""Ours: the ``x-request-id`` that was answered."""
WEBSOCKET_CLOSE_CODE: Final = "websocket.close_code"
"""Ours: the code that the socket was closed with (RFC 6455, section 7.4)."""

HTTP_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
"""Those of RFC 9110, and PATCH and QUERY; any other could be made up by whoever calls."""
METHOD_OTHER: Final = "_OTHER"
CLIENT_DISCONNECTED: Final = "client_disconnected"
"""``error.type`` of a request whose client went away before it had the whole answer."""
RESPONSE_INCOMPLETE: Final = "response_incomplete"
"""``error.type`` of a request that the application did not answer to the end."""

# Attributes of databases and of other services -----------------------------------------------

DB_SYSTEM_NAME: Final = "db.system.name"
DB_NAMESPACE: Final = "db.namespace"
DB_COLLECTION_NAME: Final = "db.collection.name"
DB_OPERATION_NAME: Final = "db.operation.name"
DB_QUERY_SUMMARY: Final = "db.query.summary"
DB_QUERY_TEXT: Final = "db.query.text"
SERVICE_PEER_NAME: Final = "service.peer.name"
RPC_SYSTEM_NAME: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"

# Attributes of code --------------------------------------------------------------------------

CODE_FUNCTION_NAME: Final = "code.function.name"

# Attributes of errors ------------------------------------------------------------------------

ERROR_TYPE: Final = "error.type"
EXCEPTION_EVENT: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"

# Attributes of the resource ------------------------------------------------------------------

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
DEPLOYMENT_ENVIRONMENT: Final = "deployment.environment.name"

INSTRUMENTATION_SCOPE: Final = "saga"

# Metrics -------------------------------------------------------------------------------------
# As OpenTelemetry names them. Prometheus sees `saga.step.attempts` as `saga_step_attempts_total`.

METRIC_STARTED: Final = "saga.started"
METRIC_COMPLETED: Final = "saga.completed"
METRIC_COMPENSATED: Final = "saga.compensated"
METRIC_STUCK: Final = "saga.stuck"
METRIC_COMPENSATIONS: Final = "saga.compensations"
METRIC_DURATION: Final = "saga.duration"
METRIC_STEP_ATTEMPTS: Final = "saga.step.attempts"
METRIC_STEP_RETRIES: Final = "saga.step.retries"
METRIC_STEP_DURATION: Final = "saga.step.duration"
METRIC_STEP_QUEUE_WAIT: Final = "saga.step.queue_wait"
METRIC_BATCH_MESSAGES: Final = "saga.batch.messages"
METRIC_BATCH_DURATION: Final = "saga.batch.duration"
METRIC_COMMANDS_PUBLISHED: Final = "saga.commands.published"
METRIC_PUBLISH_FAILURES: Final = "saga.publish.failures"
METRIC_STORE_CONFLICTS: Final = "saga.store.conflicts"
METRIC_DEAD_LETTERED: Final = "saga.dead_lettered"
METRIC_RECONNECTS: Final = "saga.reconnects"
METRIC_COORDINATOR_UP: Final = "saga.coordinator.up"
METRIC_DEPENDENCY_UP: Final = "saga.dependency.up"
METRIC_IN_FLIGHT: Final = "saga.in_flight"
METRIC_AWAITING_ROOM: Final = "saga.awaiting_room"
METRIC_NAME_PAUSED: Final = "saga.name_paused"
METRIC_TIMERS_LATE: Final = "saga.timers.late"
METRIC_TIMERS_LATENESS: Final = "saga.timers.lateness"
METRIC_OUTBOX_SIZE: Final = "saga.outbox.size"
METRIC_OUTBOX_AGE: Final = "saga.outbox.age"
METRIC_DEAD_LETTERS: Final = "saga.dead_letters"
METRIC_PARTICIPANT_DURATION: Final = "saga.participant.duration"
METRIC_PARTICIPANT_LOST: Final = "saga.participant.lost"
METRIC_PAYLOAD_DURATION: Final = "saga.payload.duration"
METRIC_PAYLOAD_SIZE: Final = "saga.payload.size"
METRIC_BUS_RETRIES: Final = "saga.bus.retries"
METRIC_BUS_LATE_ANSWERS: Final = "saga.bus.late_answers"
METRIC_SPANS: Final = "saga.spans"
METRIC_SPANS_QUEUED: Final = "saga.spans.queued"
METRIC_LOG_RECORDS: Final = "saga.log_records"
METRIC_HTTP_DURATION: Final = "http.server.request.duration"
METRIC_PROCESSES: Final = "saga.processes"

SAGA_CAUSE: Final = "saga.cause"
"""Why a saga turned back: ``rejected``, ``failed``, ``timed_out``, ``cancelled``, ``deadline``."""
SAGA_TASK: Final = "saga.task"
DEPENDENCY: Final = "dependency"
STATE: Final = "state"

# Keys of a log line --------------------------------------------------------------------------

LOG_TIMESTAMP: Final = "timestamp"
LOG_LEVEL: Final = "level"
LOG_EVENT: Final = "event"
LOG_LOGGER: Final = "logger"
LOG_SERVICE: Final = "service"
LOG_HOSTNAME: Final = "hostname"
LOG_PID: Final = "pid"
LOG_PROCESS: Final = "process"
LOG_TRACE_ID: Final = "trace_id"
LOG_SPAN_ID: Final = "span_id"
LOG_REQUEST_ID: Final = "request_id"
LOG_SAGA_ID: Final = "saga_id"
LOG_SAGA_NAME: Final = "saga_name"
LOG_SAGA_STEP: Final = "saga_step"
LOG_SAGA_DIRECTION: Final = "saga_direction"
LOG_SAGA_ATTEMPT: Final = "saga_attempt"
LOG_SAGA_MESSAGE: Final = "saga_message"
LOG_TASK_ID: Final = "task_id"
LOG_TASK_NAME: Final = "task_name"
LOG_EXCEPTION: Final = "exception"
LOG_KEY: Final = "key"
"""The business key, on the line that tells of a start."""

LOG_SAGA_KEYS: Final = (
    LOG_SAGA_ID,
    LOG_SAGA_NAME,
    LOG_SAGA_STEP,
    LOG_SAGA_DIRECTION,
    LOG_SAGA_ATTEMPT,
    LOG_SAGA_MESSAGE,
)

_SYSTEMS: Final = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "pyamqp": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "sentinel": "redis",
    "sqs": "aws_sqs",
}

# Span names ----------------------------------------------------------------------------------


DOCTOR_SPAN: Final = "saga.doctor"
"""What `saga doctor` sends to see whether spans arrive."""


def saga_span(saga_name: str) -> str:
    """Name of the root span of a saga."""
    return f"saga {saga_name}"


def start_span(saga_name: str) -> str:
    """Name of the short span that makes a saga in flight visible."""
    return f"saga.start {saga_name}"


def step_span(step: str, direction: Direction) -> str:
    """Name of the span of a step: from its first dispatch to its last outcome."""
    return f"step {step}" if direction == "action" else f"compensate {step}"


def room_span(name: str) -> str:
    """Name of the span of a wait for room within a limit that sagas share.

    Args:
        name: The step whose limit it is, or the saga where it is the limit of its name.
    """
    return f"await room {name}"


def payload_span(operation: str) -> str:
    """Name of the span of a value of the payload store that is read, written or copied."""
    return f"{operation} payload"


def ask_span(query: str) -> str:
    """Name of the span of a query in the program that asks: from the question to the answer."""
    return f"ask {query}"


def send_span(queue: str) -> str:
    """Name of a PRODUCER span."""
    return f"{OPERATION_SEND} {queue}"


def process_span(queue: str) -> str:
    """Name of a CONSUMER span."""
    return f"{OPERATION_PROCESS} {queue}"


def http_span(method: str, route: str | None = None) -> str:
    """Name of the SERVER span of a request.

    Args:
        method: ``http.request.method``; `METHOD_OTHER` is shown as ``HTTP``.
        route: Path template of the framework, never the path itself; None where it is unknown.
    """
    shown = "HTTP" if method == METHOD_OTHER else method
    return f"{shown} {route}" if route else shown


def background_span(method: str, route: str | None = None) -> str:
    """Name of the span of work that failed after its request was answered."""
    return f"background {http_span(method, route)}"


def bus_span(kind: str, message: str) -> str:
    """Name of the span of a command, a query or an event in its service."""
    return f"{kind} {message}"


def messaging_system(broker_url: str) -> str:
    """The real broker behind a Celery broker URL, as ``messaging.system`` wants it.

    Returns:
        ``redis``, ``rabbitmq``, ``aws_sqs``, or the URL's scheme where there is no agreed name.
    """
    scheme = urlsplit(broker_url).scheme.partition("+")[0]
    return _SYSTEMS.get(scheme, scheme)
