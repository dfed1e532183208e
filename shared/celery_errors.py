"""A wrong configuration under the ``celery`` command: one sentence, no traceback."""

import sys

import click

from shared.errors import ConfigurationError


class _Shown(click.ClickException):
    exit_code = ConfigurationError.exit_code


def as_shown(error: ConfigurationError) -> Exception:
    """The error itself, or, under the ``celery`` command, what it shows as one sentence."""
    command = sys.modules.get("celery.bin.celery")
    context = click.get_current_context(silent=True)
    if command is None or context is None or context.find_root().command is not command.celery:
        return error
    return _Shown(str(error))
