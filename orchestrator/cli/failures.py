"""Errors as people and as programs read them: on standard error, never a traceback.

With ``--json`` it is one object: ``{"error": {"type", "message", "hint", "problems"}}``.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer

from shared.errors import SagaError

_CLICK_EXCEPTION: Final = typer.BadParameter.__mro__[2]
"""``ClickException`` of the click that typer uses: newer versions carry their own copy."""


def report(error: SagaError, *, as_json: bool) -> None:
    """Say what went wrong and what to do next."""
    problems = getattr(error, "problems", ())
    _say(type(error).__name__, error.message, error.hint, problems, as_json=as_json)


def is_wrong_use(error: Exception) -> bool:
    """Whether the command line itself is wrong: an unknown option, a missing argument."""
    return isinstance(error, _CLICK_EXCEPTION)


def report_wrong_use(error: Any, *, as_json: bool) -> int:
    """Say what is wrong with the command line; returns the exit code."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "saga"
    message = error.format_message().rstrip()
    # `saga` alone shows its help, and has nothing to add.
    if message and type(error).__name__ != "NoArgsIsHelpError":
        _say("UsageError", message, f"See `{command} --help`.", (), as_json=as_json)
    else:
        error.show()
    return int(error.exit_code)


def _say(kind: str, message: str, hint: str, problems: Sequence[str], *, as_json: bool) -> None:
    from shared.telemetry.redaction import redacted

    described = redacted(
        {"type": kind, "message": message, "hint": hint, "problems": list(problems)}
    )
    if as_json:
        print(json.dumps({"error": described}, ensure_ascii=False), file=sys.stderr)
        return
    print(f"error: {described['message']}", file=sys.stderr)
    if hint:
        print(f"hint: {described['hint']}", file=sys.stderr)
