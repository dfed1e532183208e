"""Entry point: arguments in, exit code out; every error that is expected becomes one sentence."""

import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import typer

from orchestrator.cli import failures
from shared.errors import SagaError

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells count."""

READER_GONE: Final = 141
"""128 + SIGPIPE: what `saga list | head` would end with if the signal had its way."""


def main() -> NoReturn:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Returns:
        The exit code.
    """
    from orchestrator.cli.app import make_app

    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no block characters shows question marks, not a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # both are text files
    try:
        code = make_app()(list(arguments), prog_name="saga", standalone_mode=False)
        sys.stdout.flush()
    except SagaError as error:
        failures.report(error, as_json=as_json)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:  # a folder that cannot be written, a disk that is full
        failures.report(_as_saga_error(error), as_json=as_json)
        return SagaError.exit_code
    except SystemExit as ended:
        # Typer answers a broken pipe by itself, with 1.
        if isinstance(ended.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    except Exception as error:
        # What is not a wrong use of the command is a bug, and keeps its traceback.
        if not failures.is_wrong_use(error):
            raise
        return failures.report_wrong_use(error, as_json=as_json)
    return int(code or 0)


def _as_saga_error(error: OSError) -> SagaError:
    where = f": {error.filename}" if error.filename else ""
    return SagaError(f"{error.strerror or error}{where}.")


def _reader_gone() -> int:
    # The interpreter flushes standard output once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return READER_GONE
