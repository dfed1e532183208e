"""The HTTP API as an ASGI application.

    GET  /sagas                      ?status=&name=&key=&step=&error=&attempts=&retrying=&paused=
                                     &unreadable=&older_than=&limit=&after=         list
    POST /sagas/{name}               {"input": {}, "key": "", "not_before": ""}     start
    GET  /sagas/{saga_id}                                                           look
    GET  /sagas/{saga_id}/payload    ?step=&undo=                                   input, output
    POST /sagas/{saga_id}/cancel     {"reason": ""}
    POST /sagas/{saga_id}/fork       {"from_step": "", "input": null, "key": "", "reason": ""}
    POST /sagas/{saga_id}/pause, resume, resolve, compensate        {"reason": ""}
    POST /sagas/{saga_id}/retry      {"reason": "", "step": "", "payload": null}
    POST /sagas/{saga_id}/skip       {"reason": "", "step": "", "output": null}
    POST /sagas/{saga_id}/signals    {"name": "", "data": null}
    POST /completions                {"token": "", "output": null, "undo": null}
    POST /failures                   {"token": "", "kind": "", "message": "",
                                      "retryable": true, "rejected": false}
    GET  /limits, /names/{name}/limits                                              look
    POST /names/{name}/limits        {"reason": "", "step": "", "in_flight": 0, "rate": "",
                                      "none": false, "reset": false}
    GET  /pauses                                                                    look
    POST /names/{name}/pause, resume {"reason": ""}
    GET  /health

Answers are JSON. An error is ``{"error": {"type", "message", "hint", "problems"}}`` with the status
that the error carries (`shared.errors`). Every request but ``/health`` needs the header
``Authorization: Bearer <token>`` where a token is set. A request is traced, and the saga that it
starts continues its trace.
"""

import hmac
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.asking import Operated
from orchestrator.client import Client
from orchestrator.core.events import tag_of
from orchestrator.reports import start_report
from orchestrator.web.bodies import (
    CancelBody,
    CompletionBody,
    FailureBody,
    SignalBody,
    StartBody,
    read,
)
from orchestrator.web.listing import Listing
from orchestrator.web.operating import Operating
from shared.errors import InputError, PayloadTooLarge, SagaError
from shared.telemetry.http import AsgiTracing

BODY_BYTES_SPARE: Final = 4096
"""What a request may have around its payload."""


class Unauthorized(SagaError):
    """The request has no token, or a wrong one."""

    http_status = 401


Handler = Callable[[Request], Awaitable[Response]]
Handle = Callable[[Request, bytes], tuple[int, Any]]


def make_api(client: Client, *, payload_bytes_max: int, token: str = "") -> AsgiTracing:
    """Make the application.

    Args:
        client: Asked by one request at a time, since it is not for several threads.
        payload_bytes_max: Largest input, output or signal; a larger body is refused unread.
        token: What requests must carry; empty lets everybody in, so only on loopback.
    """
    api = _Api(client, payload_bytes_max + BODY_BYTES_SPARE, token)
    of = Operating(client)
    acts: dict[str, Handle] = {
        "cancel": api.cancel,
        "signals": api.signal,
        "fork": of.fork,
        "retry": of.retry,
        "skip": of.skip,
        "pause": partial(of.act, client.pause),
        "resume": partial(of.act, client.resume),
        "resolve": partial(of.act, client.resolve),
        "compensate": partial(of.act, client.compensate),
    }
    gets: dict[str, Handle] = {
        "/sagas": Listing(client).sagas,
        "/sagas/{saga_id}": api.show,
        "/sagas/{saga_id}/payload": api.payload,
        "/limits": of.limits,
        "/names/{name}/limits": of.limits,
        "/pauses": of.pauses,
    }
    posts: dict[str, Handle] = {
        "/sagas/{name}": api.start,
        **{f"/sagas/{{saga_id}}/{name}": handle for name, handle in acts.items()},
        "/completions": api.complete,
        "/failures": api.fail,
        "/names/{name}/limits": of.limit,
        "/names/{name}/pause": of.pause_name,
        "/names/{name}/resume": of.resume_name,
    }
    routes = [
        Route("/health", api.answering(api.health, authorized=False), methods=["GET"]),
        *(Route(path, api.answering(handle), methods=["GET"]) for path, handle in gets.items()),
        *(Route(path, api.answering(handle), methods=["POST"]) for path, handle in posts.items()),
    ]
    unknown: Any = {404: _unknown, 405: _unknown}
    return AsgiTracing(Starlette(routes=routes, exception_handlers=unknown))


async def _unknown(request: Request, error: HTTPException) -> Response:
    """Answer a path or a method that there is not, in the form of every other error."""
    described = _described(
        SagaError(
            f"The API has no {request.method} {request.url.path}.",
            hint="docs/http-api.md lists its requests.",
        )
    )
    answer = _json(error.status_code, described)
    answer.headers.update(error.headers or {})
    return answer


class _Api:
    def __init__(self, client: Client, body_bytes_max: int, token: str) -> None:
        self._client = client
        self._body_bytes_max = body_bytes_max
        self._token = token
        self._one_at_a_time = threading.Lock()

    def answering(self, handle: Handle, *, authorized: bool = True) -> Handler:
        """An endpoint that reads the body, asks in a thread, and answers with JSON."""

        async def endpoint(request: Request) -> Response:
            try:
                if authorized:
                    self._authorize(request)
                body = await self._body(request)
                status, value = await run_in_threadpool(self._ask, handle, request, body)
            except SagaError as error:
                return _json(error.http_status, _described(error))
            return _json(status, value)

        return endpoint

    def health(self, _request: Request, _body: bytes) -> tuple[int, Any]:
        self._client.check()
        return 200, {"status": "ok"}

    def start(self, request: Request, body: bytes) -> tuple[int, Any]:
        given = read(body or b"{}", StartBody)
        started = self._client.start(
            request.path_params["name"],
            given.input,
            key=given.key,
            not_before=given.not_before,
        )
        return 201 if started.created else 200, start_report(started)

    def show(self, request: Request, _body: bytes) -> tuple[int, Any]:
        return 200, self._client.view(request.path_params["saga_id"])

    def payload(self, request: Request, _body: bytes) -> tuple[int, Any]:
        asked = request.query_params
        step, undo = asked.get("step", ""), asked.get("undo", "false")
        if undo not in {"true", "false"}:
            raise InputError(f"undo is true or false, not {undo!r}.")
        saga_id = request.path_params["saga_id"]
        return 200, self._client.payload(saga_id, step, undo=undo == "true")

    def cancel(self, request: Request, body: bytes) -> tuple[int, Any]:
        given = read(body, CancelBody)
        saga_id = request.path_params["saga_id"]
        state = self._client.cancel(saga_id, reason=given.reason, by=given.by).state
        return 202, {
            "saga_id": saga_id,
            "trace_id": state.trace.trace_id,
            "status": state.status,
        }

    def signal(self, request: Request, body: bytes) -> tuple[int, Any]:
        given = read(body, SignalBody)
        saga_id = request.path_params["saga_id"]
        return 202, _told(self._client.signal(saga_id, given.name, given.data, by=given.by))

    def complete(self, _request: Request, body: bytes) -> tuple[int, Any]:
        given = read(body, CompletionBody)
        return 202, _told(self._client.complete(given.token, given.output, undo=given.undo))

    def fail(self, _request: Request, body: bytes) -> tuple[int, Any]:
        given = read(body, FailureBody)
        told = self._client.fail(
            given.token,
            given.kind,
            given.message,
            retryable=given.retryable,
            rejected=given.rejected,
        )
        return 202, _told(told)

    def _ask(
        self,
        handle: Handle,
        request: Request,
        body: bytes,
    ) -> tuple[int, Any]:
        with self._one_at_a_time:
            return handle(request, body)

    def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {self._token}"
        if self._token and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise Unauthorized(
                "The request has no valid token.",
                hint="Send the header Authorization: Bearer with the value of SAGA_HTTP_TOKEN.",
            )

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._body_bytes_max:
                raise PayloadTooLarge(
                    f"The body is larger than {self._body_bytes_max} bytes.",
                    hint="Send a reference instead of the data, or raise SAGA_PAYLOAD_BYTES_MAX, "
                    "or SAGA_CLAIM_CHECK_BYTES_MAX where there is a payload store.",
                )
        return bytes(body)


def _told(told: Operated) -> dict[str, Any]:
    state = told.row.state
    return {
        "saga_id": state.saga_id,
        "trace_id": state.trace.trace_id,
        "status": state.status,
        "events": [tag_of(event) for event in told.events],
    }


def _described(error: SagaError) -> dict[str, Any]:
    return {
        "error": {
            "type": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "problems": list(getattr(error, "problems", ())),
        }
    }


def _json(status: int, value: Any) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
