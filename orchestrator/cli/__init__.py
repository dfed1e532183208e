"""The `saga` command.

Each file holds commands that belong together; all of them import what is heavy only when they run,
so that `saga --help` answers at once.
"""

from orchestrator.cli.entry import main

__all__ = ["main"]
