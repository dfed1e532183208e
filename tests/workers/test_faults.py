import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared import faults

CODE = (
    "import sys\n"
    "from shared import faults\n"
    "faults.reach('in-action', 'payment.charge')\n"
    "faults.reach('orchestrator:after-commit-before-publish')\n"
    "sys.stdout.write('alive')\n"
)


def run(**environment: str) -> int:
    """Reach two points in a process of its own; returns its exit code."""
    return subprocess.run(
        [sys.executable, "-c", CODE], env=environment, check=False, capture_output=True
    ).returncode


def test_nothing_happens_unless_asked_for() -> None:
    """Without the variable a point is an empty function."""
    assert run() == 0
    assert faults.reach is faults._inert


@pytest.mark.parametrize(
    "fault",
    [
        "in-action",
        "in-action@payment.charge",
        "orchestrator:after-commit-before-publish",
        "elsewhere, in-action@payment.charge",
    ],
)
def test_process_dies_once_at_its_point(tmp_path: Path, fault: str) -> None:
    """SIGKILL at the first pass, by whichever process gets there; from then on nothing."""
    environment = {"SAGA_FAULT": fault, "SAGA_FAULT_DIR": str(tmp_path / "faults")}
    assert run(**environment) == -signal.SIGKILL
    assert run(**environment) == 0
    assert faults.fired(tmp_path / "faults") == {fault.rpartition(" ")[2]}


def test_other_details_pass(tmp_path: Path) -> None:
    """A fault for one task leaves the others alone."""
    assert run(SAGA_FAULT="in-action@shipping.arrange", SAGA_FAULT_DIR=str(tmp_path)) == 0


def test_without_a_memory_it_happens_every_time() -> None:
    """A poison task: no folder, no end."""
    assert run(SAGA_FAULT="in-action") == run(SAGA_FAULT="in-action") == -signal.SIGKILL
