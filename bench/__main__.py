"""``python -m bench``: the table, and ``bench/results.json``."""

import argparse
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from bench.measure import SYSTEMS, Result

BUSY: Final = 0.7
"""Load average from which on the figures say more about the neighbours."""

PLAIN_WIDTH: Final = 120
"""Of what is printed to no terminal: no name is cut."""

RESULTS: Final = Path(__file__).parent / "results.json"


def main() -> int:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--sagas", type=int, default=1500, help="at saturation, for each system")
    parser.add_argument("--samples", type=int, default=500, help="sagas one at a time")
    parser.add_argument("--quick", action="store_true", help="a fifth of both")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, help="some systems; writes no file")
    parser.add_argument(
        "--million",
        nargs="?",
        type=int,
        const=1_000_000,
        metavar="N",
        help="instead: running sagas beside N finished ones, a million by default",
    )
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    if given.million:
        from bench.million import run

        run(console, given.million)
        return 0
    part = 5 if given.quick else 1
    busy = os.getloadavg()[0]
    if busy > BUSY:
        console.print(f"The machine is busy (load {busy:.1f}): compare nothing.", style="yellow")
    results: list[Result] = []
    for system in given.only or SYSTEMS:
        console.print(f"[dim]{system} …[/dim]", highlight=False)
        found = _measured(system, given.sagas // part, given.samples // part)
        if found is None:
            console.print(f"{system} failed, see above", style="red")
            return 1
        results.append(found)
    _show(console, results)
    _compare(console, results)
    if not given.only:
        encoded = msgspec.json.format(msgspec.json.encode([_rounded(one) for one in results]))
        RESULTS.write_bytes(encoded + b"\n")
    return 0


def _measured(system: str, sagas: int, samples: int) -> Result | None:
    sizes = ["--sagas", str(sagas), "--samples", str(samples)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.measure", system, *sizes],
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        return None
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Result)


def _show(console: Console, results: list[Result]) -> None:
    columns = ("system", "store", "broker", "traced", "sagas/s", "CPU ms/saga", "p50 ms", "p99 ms")
    table = Table(box=box.SIMPLE, title=f"Five no-op steps, {machine()}")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:4] else "right")
    for one in results:
        table.add_row(
            one.system,
            one.store or "–",
            one.broker,
            "yes" if one.traced else "no",
            f"{one.sagas_per_s:.0f}",
            f"{one.cpu_ms_per_saga:.1f}",
            *("–" if it is None else f"{it:.1f}" for it in (one.p50_ms, one.p99_ms)),
        )
    console.print(table)


def _compare(console: Console, results: list[Result]) -> None:
    """The product beside what a team with Celery has already: a chain, with and without its log."""
    chains = [one for one in results if one.traced and one.system.startswith("celery.chain")]
    mine = [one for one in results if one.p50_ms and one.system.startswith("this product")]
    if not (chains and mine):
        return
    table = Table(box=box.SIMPLE, title="Times the traced chain's")
    table.add_column("system", no_wrap=True)
    table.add_column("store")
    for chain in chains:
        log = chain.system.partition(", ")[2] or "log at WARNING"
        table.add_column(f"rate,\n{log}", justify="right")
        table.add_column(f"p50,\n{log}", justify="right")
    for one in mine:
        ratios = [
            f"{ratio:.2f}"
            for chain in chains
            for ratio in (
                one.sagas_per_s / chain.sagas_per_s,
                (one.p50_ms or 0.0) / (chain.p50_ms or 1.0),
            )
        ]
        table.add_row(one.system, one.store, *ratios)
    console.print(table)


def machine() -> str:
    """Date and machine, for the head of a table."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} × {_cpu()}, {memory:.0f} GiB, "
        f"Python {platform.python_version()}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _rounded(one: Result) -> Result:
    numbers = {
        name: value if value is None else round(value, 2)
        for name in ("sagas_per_s", "cpu_ms_per_saga", "p50_ms", "p99_ms")
        for value in [getattr(one, name)]
    }
    return msgspec.structs.replace(one, **numbers)


if __name__ == "__main__":
    sys.exit(main())
