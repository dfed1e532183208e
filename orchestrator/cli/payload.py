"""`saga payload`: the input of a saga, or what a step has returned, whole."""

import sys
from typing import Annotated

import typer

from orchestrator.cli import session
from orchestrator.cli.options import Json, SagaId


def payload(
    saga_id: SagaId,
    step: Annotated[
        str, typer.Argument(metavar="[STEP]", help="Whose output; the input without it.")
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="The undo data of the step.")] = False,
    as_json: Json = False,
) -> None:
    """Print the input of a saga or the output of a step as JSON, large values too.

    `saga show` only says how large those are that are in the payload store. Here they are fetched,
    and nothing is hidden or cut: secrets in them are printed as they are.
    """
    from shared import codec

    with session.reading() as client:
        value = client.payload(saga_id, step, undo=undo)
    sys.stdout.buffer.write(codec.encode(value) + b"\n")
    sys.stdout.flush()
