"""`saga demo`: what the product does, in well under a minute and without a second terminal."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.dev import TICK_S, participants
from orchestrator.cli.lock import LOCK_FILE, locked
from orchestrator.cli.look import spans_of, trace_head
from orchestrator.cli.options import Json
from orchestrator.cli.stopping import Stopping
from shared.clock import monotonic, pause, utc_now
from shared.errors import SagaError

if TYPE_CHECKING:
    from orchestrator.cli.stack import Stack
    from orchestrator.client import Client
    from orchestrator.log_files import LogLine
    from orchestrator.trace_files import Span
    from orchestrator.views import SagaView

SAGA: Final = "place-order"
COMPLETED: Final = {"order_id": "demo-1", "sku": "lamp", "quantity": 2}
UNDONE: Final = {"order_id": "demo-2", "sku": "lamp", "region": "moon"}
KILLED: Final = {
    "order_id": "demo-3",
    "sku": "table",
    "delay_in": "payment.charge",
    "delay_seconds": 1.0,
}
VICTIM: Final = "payment"
PROCESSES_MIN: Final = 3

_FOLDER: Final = "demo"
_READY_WITHIN_S: Final = 60.0
_ENDED_WITHIN_S: Final = 60.0
_SPANS_WITHIN_S: Final = 4.0
_REDELIVERY_AFTER: Final = timedelta(seconds=2)
"""Short, to be watched: the steps of the example take a second at most."""


def demo(
    home: Annotated[
        Path | None,
        typer.Option(help="Folder for all of it; by default a fresh .saga/demo."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run three orders and look at them.

    One succeeds, one is undone, and the worker of the third is killed. It starts what `saga dev` starts, shows each order with its trace, finds one trace id in the
    logs of all processes, and ends everything.
    """
    from orchestrator.cli.stack import REDELIVERY_AFTER, Stack
    from shared.settings import settings

    folder = home or _fresh(settings().home / _FOLDER)
    os.environ["SAGA_HOME"] = str(folder)
    settings.cache_clear()
    taking_part = participants("workers", "", settings())
    after = min(_REDELIVERY_AFTER, REDELIVERY_AFTER)
    say = output.note if as_json else _say
    with Stopping() as stopping, Stack(settings(), taking_part, say, after) as stack:
        report = _Demo(stack, stopping, quiet=as_json).run()
    if as_json:
        output.show_json(report)
    else:
        _say("", "Everything has ended. What is left of it can be looked at:")
        _say(f"  SAGA_HOME={folder} saga list")


class _Demo:
    """The demonstration on a running stack."""

    def __init__(self, stack: "Stack", stopping: Stopping, *, quiet: bool) -> None:
        self._stack = stack
        self._stopping = stopping
        self._quiet = quiet

    def run(self) -> dict[str, Any]:
        """Show it all.

        Returns:
            What came of it, for programs.

        Raises:
            SagaError: Something did not end as it should.
        """
        started_at = monotonic()
        self._show(
            output.line(output.Piece(f"{name:<14}", "bold"), value)
            for name, value in self._stack.parts()
        )
        self._until(lambda: not self._stack.not_ready, _READY_WITHIN_S, self._starting)
        self._show([output.line(f"Ready after {monotonic() - started_at:.1f} s.")])
        with session.acting() as client:
            completed = self._completed(client)
            undone = self._undone(client)
            killed = self._killed(client)
            processes = self._logs(completed)
        return {
            "completed": completed.saga_id,
            "compensated": undone.saga_id,
            "recovered": killed.saga_id,
            "trace_id": completed.trace_id,
            "processes": processes,
        }

    def _completed(self, client: "Client") -> "SagaView":
        self._title("1. An order that succeeds")
        view = self._order(client, COMPLETED, "completed")
        self._tell(client, view)
        return view

    def _undone(self, client: "Client") -> "SagaView":
        self._title("2. An order that is undone: nobody delivers to the moon")
        view = self._order(client, UNDONE, "compensated")
        self._tell(client, view)
        return view

    def _killed(self, client: "Client") -> "SagaView":
        from orchestrator.cli.logline import log_line
        from orchestrator.log_files import read_logs

        self._title("3. The payment worker is killed while it charges a card")
        saga_id = self._start(client, KILLED)

        def charging(lines: "Sequence[LogLine]") -> bool:
            return any(
                line.fields.get("service") == VICTIM
                and line.fields.get("saga_id") == saga_id
                and line.fields.get("event") == "step.started"
                for line in lines
            )

        self._until_seen(charging, "the card is being charged")
        victim = self._stack.child(VICTIM)
        self._show([output.line(output.Piece(f"$ kill -9 {victim.pid}", "bold"))])
        victim.signal(SIGKILL)
        view = self._ended(client, saga_id, "completed")
        self._command(f"saga logs {saga_id} | grep {VICTIM}")
        self._show(
            log_line(one.fields)
            for one in read_logs([self._stack.log_dir], saga_id=saga_id)
            if one.fields.get("service") == VICTIM
        )
        self._command(f"saga trace {saga_id}")
        self._waterfall(client, view)
        return view

    def _logs(self, view: "SagaView") -> int:
        from orchestrator.cli.logline import log_line
        from orchestrator.log_files import read_logs

        self._title("4. One trace id in the logs of every process")
        folder = self._stack.log_dir
        lines = read_logs([folder], trace_id=view.trace_id)
        self._command(f"grep -c {view.trace_id} {_short(folder)}/*.jsonl")
        files: dict[Path, int] = {}
        for line in lines:
            files[line.file] = files.get(line.file, 0) + 1
        self._show(output.line(f"{_short(file)}:{count}") for file, count in files.items())
        self._command(f"saga logs {view.saga_id}")
        self._show(log_line(line.fields) for line in lines)
        processes = len({(line.fields.get("service"), line.fields.get("pid")) for line in lines})
        self._show([output.line(f"{len(lines)} lines of {processes} processes.")])
        if processes < PROCESSES_MIN:
            raise SagaError(f"The trace id is in the logs of {processes} processes only.")
        return processes

    # Parts ----------------------------------------------------------------------------------

    def _order(self, client: "Client", given: dict[str, Any], wanted: str) -> "SagaView":
        return self._ended(client, self._start(client, given), wanted)

    def _start(self, client: "Client", given: dict[str, Any]) -> str:
        self._command(f"saga start {SAGA} --input '{json.dumps(given)}' --wait")
        return client.start(SAGA, given).row.saga_id

    def _ended(self, client: "Client", saga_id: str, wanted: str) -> "SagaView":
        from orchestrator.cli import render
        from orchestrator.views import outcome_of

        self._until(
            lambda: outcome_of(client.row(saga_id).state.status) is not None,
            _ENDED_WITHIN_S,
            lambda: f"saga {saga_id} did not end",
        )
        view = client.view(saga_id)
        error = render.error_line(view)
        self._show([render.headline(view, utc_now()), *([error] if error else [])])
        if view.outcome != wanted:
            raise SagaError(
                f"Saga {saga_id} should have ended {wanted}, but is {view.status}.",
                hint=f"The logs are in {self._stack.log_dir}.",
            )
        return view

    def _tell(self, client: "Client", view: "SagaView") -> None:
        from orchestrator.cli import render

        self._command(f"saga show {view.saga_id}")
        self._show(render.saga_blocks(view, utc_now()))
        self._command(f"saga trace {view.saga_id}")
        self._waterfall(client, view)

    def _waterfall(self, client: "Client", view: "SagaView") -> None:
        from orchestrator.cli.waterfall import waterfall

        def spans() -> "list[Span]":
            return spans_of(client, view.trace_id, [view.saga_id])

        # Each process hands its spans over in batches; what is missing then is projected.
        deadline = monotonic() + _SPANS_WITHIN_S
        while any(one.projected for one in spans()) and monotonic() < deadline:
            self._advance()
        found = spans()
        self._show(trace_head(view.trace_id, found))
        self._show(waterfall(found, output.width()))

    def _until(
        self, true: Callable[[], bool], within_s: float, complaint: Callable[[], str]
    ) -> None:
        deadline = monotonic() + within_s
        while not true():
            self._advance()
            if monotonic() > deadline:
                raise SagaError(
                    f"After {within_s:g} s {complaint()}.",
                    hint=f"The logs are in {self._stack.log_dir}.",
                )

    def _until_seen(self, seen: "Callable[[Sequence[LogLine]], bool]", what: str) -> None:
        deadline = monotonic() + _ENDED_WITHIN_S
        while not seen(self._advance()):
            if monotonic() > deadline:
                raise SagaError(f"It was not seen that {what}.")

    def _advance(self) -> "Sequence[LogLine]":
        """Keep the processes running for a moment."""
        if self._stopping.asked:
            raise KeyboardInterrupt
        lines = self._stack.tick()
        pause(TICK_S / 2)
        return lines

    def _starting(self) -> str:
        return f"these have not started: {', '.join(sorted(self._stack.not_ready))}"

    def _title(self, text: str) -> None:
        self._show([(), output.line(output.Piece(text, "bold underline"))])

    def _command(self, text: str) -> None:
        self._show([(), output.line(output.Piece(f"$ {text}", "bold"))])

    def _show(self, blocks: "Iterator[output.Block] | Sequence[output.Block]") -> None:
        if not self._quiet:
            output.show(blocks)


def _fresh(folder: Path) -> Path:
    """The folder, emptied of what an earlier demo has left there."""
    with locked(folder):
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != LOCK_FILE:
                left.unlink()
    return folder


def _say(*lines: str) -> None:
    output.show(output.line(one) for one in lines)


def _short(path: Path) -> Path:
    try:
        return path.absolute().relative_to(Path.cwd())
    except ValueError:
        return path
