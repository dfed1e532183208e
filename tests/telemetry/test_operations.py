import pkgutil
from importlib import import_module

import opentelemetry.semconv._incubating.attributes as conventions
import opentelemetry.semconv.attributes as stable_conventions
import pytest
from opentelemetry.trace import SpanKind

from shared.telemetry import names, operations
from shared.telemetry.operations import Operation

OWN = ("saga.", "bus.", "websocket.", "http.request.id")


@pytest.mark.parametrize(
    "operation, name, kind, attributes",
    [
        (
            operations.command("CreateOrder"),
            "command CreateOrder",
            SpanKind.INTERNAL,
            {"bus.message.kind": "command", "bus.message.name": "CreateOrder"},
        ),
        (
            operations.query("GetOrder", {"order.id": "7"}),
            "query GetOrder",
            SpanKind.INTERNAL,
            {"bus.message.kind": "query", "bus.message.name": "GetOrder", "order.id": "7"},
        ),
        (
            operations.event("OrderCreated"),
            "event OrderCreated",
            SpanKind.INTERNAL,
            {"bus.message.kind": "event", "bus.message.name": "OrderCreated"},
        ),
        (
            operations.saga("place-order", saga_id="s-1", version=2),
            "saga place-order",
            SpanKind.INTERNAL,
            {"saga.name": "place-order", "saga.id": "s-1", "saga.version": 2},
        ),
        (
            operations.saga("place-order", step="charge", direction="compensation", attempt=1),
            "compensate charge",
            SpanKind.INTERNAL,
            {
                "saga.name": "place-order",
                "saga.step": "charge",
                "saga.direction": "compensation",
                "saga.attempt": 1,
            },
        ),
        (
            operations.payload("write", "s3", saga_id="s-1", digest="0123456789abcdef"),
            "write payload",
            SpanKind.CLIENT,
            {
                "saga.id": "s-1",
                "saga.payload.operation": "write",
                "saga.payload.system": "s3",
                "saga.payload.digest": "0123456789ab",
            },
        ),
        (
            operations.http_server(
                "get",
                path="/orders/7",
                route="/orders/{id}",
                scheme="https",
                query="full=1",
                address="shop.example",
                port=8443,
                client_address="192.0.2.1",
                user_agent="curl/8",
                protocol_version="1.1",
            ),
            "GET /orders/{id}",
            SpanKind.SERVER,
            {
                "http.request.method": "GET",
                "http.request.method_original": "get",
                "http.route": "/orders/{id}",
                "url.path": "/orders/7",
                "url.scheme": "https",
                "url.query": "full=1",
                "server.address": "shop.example",
                "server.port": 8443,
                "client.address": "192.0.2.1",
                "user_agent.original": "curl/8",
                "network.protocol.version": "1.1",
            },
        ),
        (
            operations.http_server("BREW", path="/pot"),
            "HTTP",
            SpanKind.SERVER,
            {
                "http.request.method": "_OTHER",
                "http.request.method_original": "BREW",
                "url.path": "/pot",
                "url.scheme": "http",
            },
        ),
        (
            operations.http_client("POST", "https://me:secret@api.example/v1/pay?x=1#top"),
            "POST",
            SpanKind.CLIENT,
            {
                "http.request.method": "POST",
                "url.full": "https://api.example/v1/pay?x=1#top",
                "url.scheme": "https",
                "server.address": "api.example",
                "server.port": 443,
            },
        ),
        (
            operations.http_client("GET", "http://[::1", template="/x/{y}", resend_count=1),
            "GET /x/{y}",
            SpanKind.CLIENT,
            {
                "http.request.method": "GET",
                "url.full": "http://[::1",
                "url.template": "/x/{y}",
                "http.request.resend_count": 1,
            },
        ),
        (
            operations.database(
                "postgresql",
                "SELECT",
                collection="orders",
                namespace="shop",
                query_text="SELECT * FROM orders WHERE id = %s",
                address="db",
                port=5432,
            ),
            "SELECT orders",
            SpanKind.CLIENT,
            {
                "db.system.name": "postgresql",
                "db.operation.name": "SELECT",
                "db.collection.name": "orders",
                "db.namespace": "shop",
                "db.query.text": "SELECT * FROM orders WHERE id = %s",
                "server.address": "db",
                "server.port": 5432,
            },
        ),
        (
            operations.database("sqlite", query_summary="SELECT orders JOIN lines"),
            "SELECT orders JOIN lines",
            SpanKind.CLIENT,
            {"db.system.name": "sqlite", "db.query.summary": "SELECT orders JOIN lines"},
        ),
        (operations.database("redis"), "redis", SpanKind.CLIENT, {"db.system.name": "redis"}),
        (
            operations.external("card-network", "authorize", system="grpc", address="c", port=1),
            "card-network/authorize",
            SpanKind.CLIENT,
            {
                "service.peer.name": "card-network",
                "rpc.method": "card-network/authorize",
                "rpc.system.name": "grpc",
                "server.address": "c",
                "server.port": 1,
            },
        ),
        (
            operations.send("payment", system="redis", message_id="m", conversation_id="s"),
            "send payment",
            SpanKind.PRODUCER,
            {
                "messaging.system": "redis",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": "payment",
                "messaging.message.id": "m",
                "messaging.message.conversation_id": "s",
            },
        ),
        (
            operations.process("payment", system="rabbitmq", attributes={"order.id": "7"}),
            "process payment",
            SpanKind.CONSUMER,
            {
                "messaging.system": "rabbitmq",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": "payment",
                "order.id": "7",
            },
        ),
        (
            operations.custom("price", {"order.id": "7"}),
            "price",
            SpanKind.INTERNAL,
            {"order.id": "7"},
        ),
    ],
)
def test_each_kind_has_its_name_and_attributes(
    operation: Operation, name: str, kind: SpanKind, attributes: dict[str, object]
) -> None:
    """What is known is an attribute by its agreed name; what is not known is left out."""
    assert (name, kind, attributes) == (operation.name, operation.kind, operation.attributes)


def test_more_attributes_make_another_operation() -> None:
    """An operation is a value: the one that is shared stays as it is."""
    shared = operations.custom("price", {"a": 1})
    assert {"a": 2, "b": 3} == shared.having({"a": 2, "b": 3}).attributes
    assert {"a": 1} == shared.attributes


def test_every_attribute_is_one_of_the_conventions() -> None:
    """The keys stand in the package that is generated from the conventions, not deprecated."""
    known: set[str] = set()
    for package in (conventions, stable_conventions):
        for module in pkgutil.iter_modules(package.__path__):
            loaded = import_module(f"{package.__name__}.{module.name}")
            known |= {value for value in vars(loaded).values() if isinstance(value, str)}
    ours = {
        value
        for name, value in vars(names).items()
        if isinstance(value, str) and "." in value and name.isupper()
        if not name.startswith("METRIC_")
    }
    assert "messaging.destination.name" in ours
    assert (
        set() == {key for key in ours if not key.startswith(OWN) and not key.endswith(".")} - known
    )
