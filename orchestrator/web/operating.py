"""What operators ask over HTTP: about one saga, and about all sagas of a name."""

from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request

from orchestrator.asking import Operated
from orchestrator.client import Client
from orchestrator.core.limits import Limit
from orchestrator.core.state import ACTIVE
from orchestrator.reports import fork_report, operation_report, refusal_report
from orchestrator.search import Filter
from orchestrator.web.bodies import (
    ActBody,
    ForkBody,
    LimitBody,
    ReasonBody,
    RetryBody,
    SkipBody,
    read,
)
from shared.errors import InputError, NotAllowed, UnknownSaga

Answer = tuple[int, Any]

SAGAS_MAX: Final = 1_000
"""Sagas that one request pauses or resumes: other requests wait meanwhile, some seconds at most."""


class Operating:
    """The requests of operators; each method answers with a status and what is told.

    Args:
        client: Does it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def fork(self, request: Request, body: bytes) -> Answer:
        """Go on from a step of a saga that has ended."""
        given = read(body, ForkBody)
        saga_id = request.path_params["saga_id"]
        forked = self._client.fork(
            saga_id,
            given.from_step,
            input=given.input,
            key=given.key,
            reason=given.reason,
            by=given.by,
            dry_run=given.dry_run,
        )
        made = forked.created and not forked.dry_run
        return 201 if made else 200, fork_report(saga_id, given.from_step, forked)

    def retry(self, request: Request, body: bytes) -> Answer:
        """Make the next attempt now, or one more."""
        given = read(body, RetryBody)
        return _told(
            self._client.retry(
                request.path_params["saga_id"],
                given.step,
                payload=given.payload,
                reason=given.reason,
                by=given.by,
                dry_run=given.dry_run,
            )
        )

    def skip(self, request: Request, body: bytes) -> Answer:
        """Go on as if a step, or its undo, had been done."""
        given = read(body, SkipBody)
        return _told(
            self._client.skip(
                request.path_params["saga_id"],
                given.step,
                output=given.output,
                reason=given.reason,
                by=given.by,
                dry_run=given.dry_run,
            )
        )

    def act(self, act: Callable[..., Operated], request: Request, body: bytes) -> Answer:
        """Do to a saga what takes nothing but a reason."""
        given = read(body, ActBody)
        saga_id = request.path_params["saga_id"]
        return _told(act(saga_id, reason=given.reason, by=given.by, dry_run=given.dry_run))

    def limits(self, request: Request, _body: bytes) -> Answer:
        """The limits in force, of all sagas or of one name."""
        return 200, self._client.controls.limits(request.path_params.get("name"))

    def limit(self, request: Request, body: bytes) -> Answer:
        """Set a limit of a name, or take it back."""
        given = read(body, LimitBody)
        name, controls = request.path_params["name"], self._client.controls
        sets = given.in_flight is not None or bool(given.rate)
        if given.none + given.reset + sets != 1:
            raise InputError(
                "Give either in_flight and rate, or none, or reset.", hint="Nothing was changed."
            )
        if given.reset:
            controls.reset_limit(name, step=given.step, reason=given.reason, by=given.by)
        else:
            limit = Limit(in_flight=given.in_flight, rate=given.rate)
            controls.set_limit(name, limit, step=given.step, reason=given.reason, by=given.by)
        return 200, controls.limits(name)

    def pauses(self, _request: Request, _body: bytes) -> Answer:
        """The names that are paused."""
        return 200, [
            {"name": one.name, "reason": one.reason, "by": one.by, "at": one.at}
            for one in self._client.controls.pauses()
        ]

    def pause_name(self, request: Request, body: bytes) -> Answer:
        """Pause all sagas of a name, and those that start later."""
        given = read(body, ReasonBody)
        name = request.path_params["name"]
        # First what starts from now on, so that no saga can slip through.
        self._client.controls.pause(name, reason=given.reason, by=given.by)
        return self._each(name, self._client.pause, given, paused=False)

    def resume_name(self, request: Request, body: bytes) -> Answer:
        """Let them go on, and begin again."""
        given = read(body, ReasonBody)
        name = request.path_params["name"]
        self._client.controls.resume(name, reason=given.reason, by=given.by)
        return self._each(name, self._client.resume, given, paused=True)

    def _each(
        self, name: str, act: Callable[..., Operated], given: ReasonBody, *, paused: bool
    ) -> Answer:
        wanted = Filter(name=name, statuses=tuple(sorted(ACTIVE)), paused=paused)
        fits = [row.saga_id for row in self._client.find(wanted, SAGAS_MAX)]
        done = []
        for saga_id in fits:
            try:
                done.append(operation_report(act(saga_id, reason=given.reason, by=given.by)))
            except (NotAllowed, UnknownSaga) as error:  # it has ended meanwhile
                done.append(refusal_report(saga_id, error.message))
        return 202, {"name": name, "sagas": done, "more": len(fits) == SAGAS_MAX}


def _told(operated: Operated) -> Answer:
    return 200 if operated.dry_run else 202, operation_report(operated)
