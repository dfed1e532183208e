"""`saga explain`: why a saga is where it is."""

from typing import Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json, SagaId
from shared.clock import utc_now
from shared.errors import ConfigurationError


def explain(
    saga_id: SagaId,
    ask: Annotated[
        bool, typer.Option("--ask/--no-ask", help="Ask the workers which queues they consume.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say in one paragraph why a saga is not moving.

    What it waits for and until when, who has to act, and which worker is missing.
    """
    from orchestrator.explain import explain as explained

    with session.reading() as client:
        definition, row, history = client.story(saga_id)
        awaited, pauses = client.controls.awaited(row), client.controls.pauses()
        below = client.below(row)
    consumed = _consumed() if ask and not row.state.status.final else None
    text = explained(
        definition,
        row,
        history,
        utc_now(),
        consumed=consumed,
        awaited=awaited,
        pauses=pauses,
        below=below,
    )
    if as_json:
        state = row.state
        output.show_json(
            {
                "saga_id": saga_id,
                "trace_id": state.trace.trace_id,
                "status": state.status,
                "explanation": text,
                "workers_asked": consumed is not None,
            }
        )
    else:
        output.show([output.line(text)])


def _consumed() -> frozenset[str] | None:
    from orchestrator.bootstrap import make_celery
    from orchestrator.transport.consumers import consumed_queues

    try:
        session.settings().celery_broker_url  # noqa: B018 - asks whether there is one
    except ConfigurationError:
        return None
    return consumed_queues(make_celery(session.settings))
