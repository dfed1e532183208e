"""Options that several commands have."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, also for errors.")]
SagaId = Annotated[str, typer.Argument(metavar="ID", help="Id of the saga.")]
SagaOrTrace = Annotated[
    str, typer.Argument(metavar="ID", help="Id of a saga or of a trace, or a traceparent.")
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Most to show, newest first.")]
