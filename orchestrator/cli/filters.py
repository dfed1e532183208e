"""Options that say which sagas are meant, for lists and for what is done to many at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shared.clock import utc_now
from shared.durations import given_duration

if TYPE_CHECKING:
    from orchestrator.search import Filter

StatusOption = Annotated[
    list[str] | None,
    typer.Option(
        "--status",
        help="running, compensating, stuck, completed, compensated, resolved; or active, "
        "final. May be given several times.",
    ),
]
NameOption = Annotated[str | None, typer.Option("--name", help="Sagas of this name.")]
KeyOption = Annotated[str | None, typer.Option("--key", help="Sagas with this business key.")]
StepOption = Annotated[
    str,
    typer.Option("--step", help="At this step: in flight, waiting for an attempt, or gone wrong."),
]
ErrorOption = Annotated[
    str, typer.Option("--error", metavar="KIND", help="With a failure of this kind.")
]
AttemptsOption = Annotated[
    int, typer.Option("--attempts", min=0, help="At a step with at least so many attempts.")
]
RetryingOption = Annotated[
    bool, typer.Option("--retrying", help="Waiting for the next attempt of a step.")
]
PausedOption = Annotated[bool, typer.Option("--paused", help="Paused by an operator.")]
UnreadableOption = Annotated[
    bool,
    typer.Option("--unreadable", help="That cannot be read, and so were put aside; says why."),
]
OlderThanOption = Annotated[
    str | None,
    typer.Option(
        "--older-than",
        metavar="DURATION",
        help="Unchanged for so long: 15m, 12h, 30d or ISO 8601.",
    ),
]


def filter_of(
    *,
    status: Sequence[str] | None = None,
    name: str | None = None,
    key: str | None = None,
    step: str = "",
    error: str = "",
    attempts: int = 0,
    retrying: bool = False,
    paused: bool = False,
    unreadable: bool = False,
    older_than: str | None = None,
) -> "Filter":
    """The filter that the options describe.

    Raises:
        InputError: A status or a duration is none, or two do not go together.
    """
    from orchestrator.search import Filter, statuses_of

    since = None
    if older_than is not None:
        since = utc_now() - given_duration(older_than, "--older-than")
    return Filter(
        statuses=tuple(statuses_of(status or ())),
        name=name,
        key=key,
        step=step,
        error=error,
        attempts=attempts,
        retrying=retrying,
        paused=paused or None,
        unreadable=unreadable,
        unchanged_since=since,
    )
