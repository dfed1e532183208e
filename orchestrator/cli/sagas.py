"""`saga list`, `saga show`, `saga cancel`."""

from orchestrator.cli import output, session
from orchestrator.cli.filters import (
    AttemptsOption,
    ErrorOption,
    KeyOption,
    NameOption,
    OlderThanOption,
    PausedOption,
    RetryingOption,
    StatusOption,
    StepOption,
    UnreadableOption,
    filter_of,
)
from orchestrator.cli.options import Json, Limit, Reason, SagaId, user
from shared.clock import utc_now


def list_sagas(
    status: StatusOption = None,
    name: NameOption = None,
    key: KeyOption = None,
    step: StepOption = "",
    error: ErrorOption = "",
    attempts: AttemptsOption = 0,
    retrying: RetryingOption = False,
    paused: PausedOption = False,
    unreadable: UnreadableOption = False,
    older_than: OlderThanOption = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List sagas, newest first.

    All options narrow the list. Status, name and key are looked up; the others are read out of the
    sagas that are left, so give a status with them where there are many.
    """
    from orchestrator.cli import render

    wanted = filter_of(
        status=status,
        name=name,
        key=key,
        step=step,
        error=error,
        attempts=attempts,
        retrying=retrying,
        paused=paused,
        unreadable=unreadable,
        older_than=older_than,
    )
    with session.reading() as client:
        found = client.summaries(wanted, limit).sagas
        pauses = [] if as_json else client.controls.pauses()
    for pause in pauses:
        if name in {None, pause.name}:
            output.note(render.pause_line(pause, utc_now()))
    if as_json:
        output.show_json(found)
    elif found:
        output.show([render.sagas_table(found, utc_now())])
    else:
        output.note("There are no sagas yet." if wanted.is_empty else "No saga matches.")
    if len(found) == limit and not as_json:
        output.note(f"These are the newest {limit}; --limit shows more.")


def show(saga_id: SagaId, as_json: Json = False) -> None:
    """Show a saga with its time line.

    Its steps, what happened when and how long it took, and what happens next.
    """
    from orchestrator.cli import render

    with session.reading() as client:
        view = client.view(saga_id)
    if as_json:
        output.show_json(view)
    else:
        output.show(render.saga_blocks(view, utc_now()))


def cancel(
    saga_id: SagaId,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Ask that a saga be undone.

    The step in flight ends, then everything is compensated. After the pivot of the saga it is
    refused.
    """
    with session.acting() as client:
        row = client.cancel(saga_id, reason=reason, by=user())
    state = row.state
    if as_json:
        output.show_json(
            {"saga_id": saga_id, "trace_id": state.trace.trace_id, "status": state.status}
        )
    else:
        output.show([output.line(f"{saga_id}  the cancel is stored; it is {state.status}")])
