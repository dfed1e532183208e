"""The pytest plugin: it prints a table where the kit was used, and is not there where it was not."""

import subprocess
import sys
from pathlib import Path

USES_IT = """
from orchestrator.sagas import PLACE_ORDER
from orchestrator.testing import assert_every_failure_is_undone

def test_it(): assert_every_failure_is_undone(PLACE_ORDER)
def test_other(): pass
"""
USES_IT_NOT = """
import sys
def test_nothing_of_the_product_is_imported():
    assert "orchestrator.pytest_plugin" in sys.modules
    assert not {name for name in sys.modules if name.startswith(("shared", "orchestrator.core"))}
"""


def pytest_says(folder: Path, test: str, *arguments: str) -> str:
    """Run pytest on a file elsewhere, as a user does."""
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_table_is_printed_over_several_processes(tmp_path: Path) -> None:
    """Once, by the process that collects the results."""
    said = pytest_says(tmp_path, USES_IT, "-n", "2")
    assert said.count("saga failure coverage") == 1
    assert said.count("place-order v1: ") == 1


def test_it_says_and_imports_nothing_where_the_kit_is_not_used(tmp_path: Path) -> None:
    """Pytest loads it in every project that has the product installed."""
    assert "saga failure coverage" not in pytest_says(tmp_path, USES_IT_NOT)
