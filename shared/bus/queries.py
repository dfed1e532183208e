"""The query bus: asks one service, and waits for the answer.

    class FindOrder(Query[OrderView], name="orders.find"):
        order_id: str

    bus = QueryBus(app)

    @bus.handler(FindOrder)                 # in the service `orders`
    def find_order(query: FindOrder) -> OrderView: ...

    view = bus.ask(FindOrder(order_id="o-1"), timeout=timedelta(seconds=2))    # an OrderView

A query must not change anything: nobody takes care that it is answered, and it may run twice.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

from typing_extensions import override

from shared import names
from shared.bus.answers import answers_of, close_answers
from shared.bus.envelope import message_headers
from shared.bus.handling import register
from shared.bus.policy import RetryPolicy
from shared.bus.registry import Bus, Handling
from shared.bus.tracing import asking, sending
from shared.clock import monotonic, utc_now
from shared.contract import Answer, Query, Wire, decoded_answer, encoded, wire_of
from shared.errors import DefinitionError, NobodyAnswered, QueryFailed
from shared.ids import new_saga_id
from shared.messages import Failed, Succeeded
from shared.settings import settings

TIMEOUT_DEFAULT: Final = timedelta(seconds=5)

Q = TypeVar("Q", bound=Query[Any])


class QueryBus(Bus):
    """Asks queries, and registers their handlers, for one Celery app.

    Args:
        app: Any Celery app; a worker of it handles what was registered.
    """

    @property
    def late_answers(self) -> int:
        """How many answers came to this process after their deadline; they were dropped."""
        return answers_of(self._app).late

    @override
    def close(self) -> None:
        """Give the connections of this process back, and delete its queue of answers."""
        close_answers(self._app)
        super().close()

    def ask(self, query: Query[Answer], *, timeout: timedelta = TIMEOUT_DEFAULT) -> Answer:
        """Ask, and block until the answer is there.

        Not from a handler whose own worker is the only one that could answer: it waits for itself.

        Args:
            query: Checked against its class.
            timeout: How long to wait.

        Returns:
            The answer, of the type that the query's class names.

        Raises:
            InputError: Names every field that is wrong; nothing was sent.
            DefinitionError: It is no query.
            QueryFailed: The handler failed or refused, or there is none.
            NobodyAnswered: No answer came in time; names the queue.
            DecodeError: The answer is not of the declared type.
            UnavailableError: The broker was away for too long.
        """
        wire = wire_of(type(query))
        if wire.kind != "query":
            raise DefinitionError(f"{wire.name!r} is no query.")
        body = encoded(query, settings().payload_bytes_max)
        ends = monotonic() + timeout.total_seconds()
        query_id = new_saga_id()
        answers = answers_of(self._app)
        headers = message_headers(wire, query_id)
        headers[names.SAGA_REPLY_TO] = answers.queue
        headers[names.SAGA_DEADLINE] = (utc_now() + timeout).isoformat()
        with asking(wire):
            waiting = answers.expect(query_id, ends - monotonic())
            try:
                with sending(self._app, wire.queue, headers):
                    self._registry.publisher.send(
                        wire.queue, body, headers, reply_to=answers.queue
                    )
                outcome = waiting.wait(ends - monotonic())
            finally:
                answers.forget(query_id)
            return self._result(query, wire, timeout, outcome)

    @staticmethod
    def _result(
        query: Query[Answer], wire: Wire, timeout: timedelta, outcome: Succeeded | Failed | None
    ) -> Answer:
        if outcome is None:
            raise NobodyAnswered(
                f"Nobody answered the query {wire.name!r} on queue {wire.queue!r} "
                f"within {timeout.total_seconds():g} s.",
                hint=f"Is a worker up that handles it? (celery -A … worker -Q {wire.queue})",
            )
        if isinstance(outcome, Failed):
            why = outcome.failure
            raise QueryFailed(
                f"The query {wire.name!r} failed: {why.kind}: {why.message}".rstrip(": "),
                kind=why.kind,
            )
        return cast("Answer", decoded_answer(type(query), outcome.output))

    def handler(
        self, query: type[Q], **options: Any
    ) -> Callable[[Callable[[Q], Any]], Callable[[Q], Any]]:
        """Register the handler of a query; what it returns is the answer.

        Args:
            query: Its class.
            options: Of its Celery task, for example ``time_limit=30``.

        Returns:
            A decorator that leaves the function as it is, for tests to call.

        Raises:
            DefinitionError: The app has a handler for it already, or it is no query.
        """
        wire = wire_of(query)
        if wire.kind != "query":
            raise DefinitionError(f"{query.__name__} is no query; it is a {wire.kind}.")

        def decorate(function: Callable[[Q], Any]) -> Callable[[Q], Any]:
            handling = Handling(
                kind="query",
                message=query,
                task=wire.name,
                queue=wire.queue,
                service=wire.queue,
                function=function,
                retry=RetryPolicy(attempts=1),
            )
            register(self._registry, handling, **options)
            return function

        return decorate
