"""Span builders: what a span is about, for each kind of operation, as a value.

Names, kinds and attributes follow the OpenTelemetry semantic conventions 1.44.0. An attribute that
is not known is left out. All of them are given when the span is created, so that samplers see them:

    with span(operations.database("postgresql", "SELECT", collection="orders")):
        ...

https://opentelemetry.io/docs/specs/semconv/
"""

from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from opentelemetry.trace import SpanKind

from shared.ids import Direction
from shared.telemetry import names
from shared.telemetry.spans import NO_ATTRIBUTES, Attributes, AttributeValue

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

PAYLOAD_DIGEST_CHARS: Final = 12

BusMessageKind = Literal["command", "query", "event"]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What a span is about.

    Attributes:
        name: Low cardinality: what is done, never to which one.
        kind: CLIENT and PRODUCER have their other half in another process.
        attributes: What the span is created with.
    """

    name: str
    kind: SpanKind = SpanKind.INTERNAL
    attributes: Attributes = NO_ATTRIBUTES

    def having(self, attributes: Mapping[str, AttributeValue]) -> "Operation":
        """The same operation with more attributes; of two values for a key the new one counts."""
        return msgspec.structs.replace(self, attributes={**self.attributes, **attributes})


def custom(
    name: str, attributes: Attributes = NO_ATTRIBUTES, *, kind: SpanKind = SpanKind.INTERNAL
) -> Operation:
    """Anything else."""
    return Operation(name=name, kind=kind, attributes=dict(attributes))


# What a service is asked to do -------------------------------------------------------------------


def command(name: str, attributes: Attributes = NO_ATTRIBUTES) -> Operation:
    """A command that is being handled.

    Args:
        name: Its type, for example ``CreateOrder``.
        attributes: More of them.
    """
    return _bus_message("command", name, attributes)


def query(name: str, attributes: Attributes = NO_ATTRIBUTES) -> Operation:
    """A query that is being answered; as `command`."""
    return _bus_message("query", name, attributes)


def event(name: str, attributes: Attributes = NO_ATTRIBUTES) -> Operation:
    """An event that a subscriber is told of; as `command`."""
    return _bus_message("event", name, attributes)


def _bus_message(kind: BusMessageKind, name: str, attributes: Attributes) -> Operation:
    return Operation(
        name=names.bus_span(kind, name),
        attributes={
            names.BUS_MESSAGE_KIND: kind,
            names.BUS_MESSAGE_NAME: name,
            **attributes,
        },
    )


def saga(
    name: str,
    *,
    saga_id: str | None = None,
    version: int | None = None,
    step: str | None = None,
    direction: Direction = "action",
    attempt: int | None = None,
) -> Operation:
    """Work that belongs to a saga, or to one of its steps where `step` is given.

    The orchestrator's own spans come from a saga's history; this is for code around them.
    """
    return Operation(
        name=names.step_span(step, direction) if step else names.saga_span(name),
        attributes=_known(
            {
                names.SAGA_NAME: name,
                names.SAGA_ID: saga_id,
                names.SAGA_VERSION: version,
                names.SAGA_STEP: step,
                names.SAGA_DIRECTION: direction if step else None,
                names.SAGA_ATTEMPT: attempt,
            }
        ),
    )


# HTTP --------------------------------------------------------------------------------------------


def http_server(
    method: str,
    *,
    path: str,
    scheme: str = "http",
    route: str | None = None,
    query: str | None = None,
    address: str | None = None,
    port: int | None = None,
    client_address: str | None = None,
    user_agent: str | None = None,
    protocol_version: str | None = None,
) -> Operation:
    """A request that is being answered.

    Args:
        method: As it came; an unknown one becomes ``_OTHER``.
        path: ``/orders/7``; never in the span's name.
        scheme: ``http`` or ``https``.
        route: ``/orders/{order_id}``, where it is known already; else
            `names.http_span` names the span later.
        query: Without the question mark.
        address: Host that the client asked for.
        port: Port that the client asked for.
        client_address: Of the original client.
        user_agent: As it came.
        protocol_version: ``1.1``, ``2``.
    """
    return Operation(
        name=names.http_span(_known_method(method), route),
        kind=SpanKind.SERVER,
        attributes=_known(
            {
                **_method(method),
                names.URL_PATH: path,
                names.URL_SCHEME: scheme,
                names.URL_QUERY: query or None,
                names.HTTP_ROUTE: route,
                names.SERVER_ADDRESS: address,
                names.SERVER_PORT: port,
                names.CLIENT_ADDRESS: client_address,
                names.USER_AGENT_ORIGINAL: user_agent,
                names.NETWORK_PROTOCOL_VERSION: protocol_version,
            }
        ),
    )


def http_client(
    method: str, url: str, *, template: str | None = None, resend_count: int | None = None
) -> Operation:
    """A request that is being sent; each try of it is a span of its own.

    Args:
        method: An unknown one becomes ``_OTHER``.
        url: Absolute; a user name and a password in it are left out.
        template: ``/orders/{order_id}``, where the client knows it.
        resend_count: From 1 for the first repetition.
    """
    address, port, scheme, full = _parts(url)
    return Operation(
        name=names.http_span(_known_method(method), template),
        kind=SpanKind.CLIENT,
        attributes=_known(
            {
                **_method(method),
                names.URL_FULL: full,
                names.URL_SCHEME: scheme,
                names.URL_TEMPLATE: template,
                names.SERVER_ADDRESS: address,
                names.SERVER_PORT: port,
                names.HTTP_REQUEST_RESEND_COUNT: resend_count,
            }
        ),
    )


def _method(method: str) -> dict[str, AttributeValue | None]:
    known = _known_method(method)
    return {
        names.HTTP_REQUEST_METHOD: known,
        names.HTTP_REQUEST_METHOD_ORIGINAL: method if method != known else None,
    }


def _known_method(method: str) -> str:
    return method.upper() if method.upper() in names.HTTP_METHODS else names.METHOD_OTHER


def _parts(url: str) -> tuple[str | None, int | None, str | None, str]:
    """Address, port, scheme, and the URL without credentials; never raises for a wrong one."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None, None, None, url
    scheme = parts.scheme or None
    if "@" in parts.netloc:
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return host, port or _DEFAULT_PORTS.get(parts.scheme), scheme, url


# Databases and other services --------------------------------------------------------------------


def database(
    system: str,
    operation: str | None = None,
    *,
    collection: str | None = None,
    namespace: str | None = None,
    query_text: str | None = None,
    query_summary: str | None = None,
    address: str | None = None,
    port: int | None = None,
) -> Operation:
    """A call of a database.

    Args:
        system: ``postgresql``, ``sqlite``, ``redis``, ``mysql``, …
        operation: ``SELECT``, ``HGETALL``, …
        collection: Table.
        namespace: Database, and schema where there is one.
        query_text: With placeholders; values do not belong here.
        query_summary: ``SELECT orders``; names the span where it is given.
        address: Host.
        port: Port.
    """
    target = collection or namespace or address
    name = query_summary or " ".join(filter(None, (operation, target))) or system
    return Operation(
        name=name,
        kind=SpanKind.CLIENT,
        attributes=_known(
            {
                names.DB_SYSTEM_NAME: system,
                names.DB_OPERATION_NAME: operation,
                names.DB_COLLECTION_NAME: collection,
                names.DB_NAMESPACE: namespace,
                names.DB_QUERY_SUMMARY: query_summary,
                names.DB_QUERY_TEXT: query_text,
                names.SERVER_ADDRESS: address,
                names.SERVER_PORT: port,
            }
        ),
    )


def external(
    service: str,
    operation: str,
    *,
    system: str | None = None,
    address: str | None = None,
    port: int | None = None,
    attributes: Attributes = NO_ATTRIBUTES,
) -> Operation:
    """A call of another service by whatever protocol; HTTP has `http_client`.

    Args:
        service: ``service.name`` of the other side, or what it is called here: ``card-network``.
        operation: What it is asked for: ``authorize``.
        system: ``grpc``, ``jsonrpc``, … where it is a remote procedure call.
        address: Host.
        port: Port.
        attributes: More of them.
    """
    return Operation(
        name=f"{service}/{operation}",
        kind=SpanKind.CLIENT,
        attributes={
            **_known(
                {
                    names.SERVICE_PEER_NAME: service,
                    names.RPC_METHOD: f"{service}/{operation}",
                    names.RPC_SYSTEM_NAME: system,
                    names.SERVER_ADDRESS: address,
                    names.SERVER_PORT: port,
                }
            ),
            **attributes,
        },
    )


def payload(operation: str, system: str, *, saga_id: str, digest: str) -> Operation:
    """A value of the payload store that is read, written or copied.

    Args:
        operation: ``read``, ``write`` or ``copy``.
        system: What keeps it: ``file``, ``s3``, …
        saga_id: Whose value it is.
        digest: Its name; `PAYLOAD_DIGEST_CHARS` of it are kept.
    """
    return Operation(
        name=names.payload_span(operation),
        kind=SpanKind.CLIENT,
        attributes={
            names.SAGA_ID: saga_id,
            names.PAYLOAD_OPERATION: operation,
            names.PAYLOAD_SYSTEM: system,
            names.PAYLOAD_DIGEST: digest[:PAYLOAD_DIGEST_CHARS],
        },
    )


# Messaging ---------------------------------------------------------------------------------------


def send(
    destination: str,
    *,
    system: str,
    message_id: str | None = None,
    conversation_id: str | None = None,
    attributes: Attributes = NO_ATTRIBUTES,
) -> Operation:
    """A message that is being published; the span's context belongs into its headers.

    Args:
        destination: Queue.
        system: The broker, as `names.messaging_system` gives it: ``redis``, ``rabbitmq``.
        message_id: Task id.
        conversation_id: Id of the saga, or of whatever the message is part of.
        attributes: More of them.
    """
    return Operation(
        name=names.send_span(destination),
        kind=SpanKind.PRODUCER,
        attributes={
            **_messaging(names.OPERATION_SEND, destination, system, message_id, conversation_id),
            **attributes,
        },
    )


def process(
    destination: str,
    *,
    system: str,
    message_id: str | None = None,
    conversation_id: str | None = None,
    attributes: Attributes = NO_ATTRIBUTES,
) -> Operation:
    """A message that is being handled; as `send`."""
    return Operation(
        name=names.process_span(destination),
        kind=SpanKind.CONSUMER,
        attributes={
            **_messaging(
                names.OPERATION_PROCESS, destination, system, message_id, conversation_id
            ),
            **attributes,
        },
    )


def _messaging(
    operation: str,
    destination: str,
    system: str,
    message_id: str | None,
    conversation_id: str | None,
) -> dict[str, AttributeValue]:
    return _known(
        {
            names.MESSAGING_SYSTEM: system,
            names.MESSAGING_OPERATION_NAME: operation,
            names.MESSAGING_OPERATION_TYPE: operation,
            names.MESSAGING_DESTINATION_NAME: destination,
            names.MESSAGING_MESSAGE_ID: message_id,
            names.MESSAGING_CONVERSATION_ID: conversation_id,
        }
    )


def _known(attributes: Mapping[str, Any]) -> dict[str, AttributeValue]:
    return {key: value for key, value in attributes.items() if value is not None}
