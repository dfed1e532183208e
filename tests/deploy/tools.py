"""The programs of Prometheus; a missing one skips on a laptop and fails on CI."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.servers.fixtures import missing

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES_FILE = PROMETHEUS / "saga-alerts.yml"
RULES: dict[str, Any] = yaml.safe_load(RULES_FILE.read_text())
ALERTS: dict[str, Any] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]
}


def program(*names: str) -> str:
    """The path of a program that goes by one of these names."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or missing(f"no {names[0]}: install the package {names[-1]}")


def run(*command: str | Path) -> str:
    """Run to the end; a failure shows what was said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout
