from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from celery import Celery
from kombu import Queue
from typing_extensions import override

from orchestrator.ports import Transport
from orchestrator.transport.celery import CeleryTransport
from orchestrator.transport.memory import InboundMessage, MemoryBroker, MemoryTransport
from orchestrator.transport.task_message import body_of, headers_of
from shared import names
from shared.broker_transport import transport_for
from shared.codec import encode
from shared.embedded import PrivateRedis, free_port
from tests.contracts.transport_contract import (
    Arrived,
    BlockingContract,
    NetworkContract,
    TransportContract,
    World,
)
from tests.servers.rabbitmq import RabbitServer


class MemoryWorld(World):
    """A broker in this process."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    @override
    def transport(self) -> Transport:
        return MemoryTransport(self.broker)

    @override
    def arrived(self, queue: str) -> list[Arrived]:
        arrived = []
        for held in self.broker.take_commands():
            if held.item.queue == queue:
                self.broker.settle_command(held)
                args, kwargs, _ = msgspec.json.decode(body_of(held.item))
                headers = headers_of(held.item, "test")
                arrived.append(Arrived(headers, args, kwargs, held.item.id, "application/json"))
        self.broker.participants_died()
        return arrived

    @override
    def send(self, task: str, kwargs: dict[str, Any], **options: Any) -> None:
        headers = {"task": task, "id": "task-1"} | options.get("headers", {})
        self.send_body(encode([[], kwargs, {}]), headers, "application/json")

    @override
    def send_body(self, body: bytes, headers: dict[str, Any], content_type: str) -> None:
        self.broker.send_raw(
            InboundMessage(
                task=headers.get("task", ""),
                task_id=headers.get("id", ""),
                body=body,
                content_type=content_type,
                headers=headers,
            )
        )

    @override
    def stop(self) -> None:
        self.broker.available = False

    @override
    def start(self) -> None:
        self.broker.available = True


class CeleryWorld(World):
    """A real broker, a Celery client without our SDK, and a kombu consumer."""

    def __init__(
        self,
        url: str,
        options: dict[str, Any],
        stop: Callable[[], object],
        start: Callable[[], object],
        *,
        own_transports: bool = True,
    ) -> None:
        self._url = url
        self._options = options
        self._stop = stop
        self._start = start
        self._own_transports = own_transports
        self._apps: list[Celery] = []
        self._made: list[CeleryTransport] = []
        self._client = self._app()

    @override
    def transport(self) -> Transport:
        made = CeleryTransport(self._app(), own_transports=self._own_transports)
        self._made.append(made)
        return made

    @override
    def arrived(self, queue: str) -> list[Arrived]:
        with self._client.connection_for_read() as connection, connection.channel() as channel:
            bound = Queue(queue).bind(channel)
            bound.queue_declare()
            arrived = []
            while message := bound.get(accept=["json"]):
                args, kwargs, _ = message.decode()
                arrived.append(
                    Arrived(
                        message.headers,
                        args,
                        kwargs,
                        message.properties.get("correlation_id"),
                        str(message.content_type),
                    )
                )
                message.ack()
            return arrived

    @override
    def send(self, task: str, kwargs: dict[str, Any], **options: Any) -> None:
        # Not from the pool, which kombu shares between apps of the same URL: no test inherits a
        # connection that another one broke.
        with self._client.connection_for_write() as connection:
            self._client.send_task(
                task, kwargs=kwargs, queue=names.REPLIES_QUEUE, connection=connection, **options
            )

    @override
    def send_body(self, body: bytes, headers: dict[str, Any], content_type: str) -> None:
        with self._client.connection_for_write() as connection:
            queue = Queue(names.REPLIES_QUEUE).bind(connection.default_channel)
            queue.queue_declare()
            # Not `Producer.publish`: it would compress where the header says so.
            channel: Any = connection.default_channel
            message = channel.prepare_message(
                body, None, content_type, "utf-8", headers, {"delivery_mode": 2}
            )
            channel.basic_publish(message, exchange="", routing_key=names.REPLIES_QUEUE)

    @override
    def stop(self) -> None:
        self._stop()

    @override
    def start(self) -> None:
        self._start()

    def close(self) -> None:
        for transport in self._made:
            transport.close()
        for app in self._apps:
            app.close()

    def _app(self) -> Celery:
        app = Celery("test", broker=self._url, set_as_current=False)
        app.conf.broker_transport_options = dict(self._options)
        app.conf.broker_transport = transport_for(self._url) if self._own_transports else None
        app.conf.task_default_queue = "nobody"
        self._apps.append(app)
        return app


def dead_transport(url: str) -> CeleryTransport:
    """A transport to a broker that is not there."""
    app = Celery("test", broker=url, set_as_current=False)
    return CeleryTransport(app, unavailable_after=timedelta(seconds=1))


class TestMemory(TransportContract):
    @pytest.fixture
    def world(self) -> World:
        return MemoryWorld()


class TestRedis(TransportContract, BlockingContract, NetworkContract):
    own = True

    @pytest.fixture
    def world(self, redis_server: PrivateRedis, redis_url: str) -> Iterator[World]:
        world = CeleryWorld(
            redis_url, {}, redis_server.stop, redis_server.start, own_transports=self.own
        )
        yield world
        redis_server.start()
        world.close()

    @pytest.fixture
    def dead(self) -> Transport:
        return dead_transport(f"redis://:s3cret@127.0.0.1:{free_port()}/0")


class TestRedisThroughPlainKombu(TestRedis):
    own = False


class TestRabbitMQ(TransportContract, BlockingContract, NetworkContract):
    @pytest.fixture
    def world(self, rabbitmq_server: RabbitServer, rabbitmq_url: str) -> Iterator[World]:
        world = CeleryWorld(rabbitmq_url, {}, rabbitmq_server.stop, rabbitmq_server.start)
        yield world
        rabbitmq_server.start()
        world.close()

    @pytest.fixture
    def dead(self) -> Transport:
        return dead_transport(f"amqp://guest:s3cret@127.0.0.1:{free_port()}//")


class TestFilesystem(TransportContract, BlockingContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        messages, away = tmp_path / "messages", tmp_path / "away"
        messages.mkdir()
        options = {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(tmp_path / "control"),
            "polling_interval": 0.01,
        }
        world = CeleryWorld(
            "filesystem://", options, lambda: messages.rename(away), lambda: away.rename(messages)
        )
        yield world
        world.close()
