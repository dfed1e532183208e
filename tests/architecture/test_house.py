"""The files around the code keep the promises that CONTRIBUTING.md makes."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.order import LONGEST_FIRST

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_files_that_begin_first_exist() -> None:
    """One that was renamed would silently have its turn at the end."""
    assert [] == [one for one in LONGEST_FIRST if not (ROOT / "tests" / one).is_file()]


def test_every_ignored_rule_has_its_reason() -> None:
    """Nothing is ignored without a comment on its line."""
    ignored = (ROOT / "pyproject.toml").read_text().split("\nignore = [", 1)[1].split("]", 1)[0]
    lines = [line for line in ignored.splitlines() if line.strip()]
    assert lines
    assert [] == [line for line in lines if "#" not in line]


def test_constraints_are_versions_only() -> None:
    """No host, no path, no project of our own, sorted: it installs anywhere."""
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert sorted(lines, key=str.lower) == lines


def test_every_dependency_is_constrained() -> None:
    """What is installed is what was tested."""
    constrained = {
        _canonical(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    project = PYPROJECT["project"]
    wanted = {
        _canonical(re.split(r"[\[><=; ]", dependency, maxsplit=1)[0])
        for dependency in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    # `dev` takes in the other extras by the name of the project itself.
    assert set() == wanted - constrained - {_canonical(project["name"])}


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "chaos"])
def test_make_knows_the_target(target: str) -> None:
    """The targets that the README names exist and make their own environment."""
    rule = re.search(rf"^{target}: (.*)$", MAKEFILE, re.MULTILINE)
    assert rule is not None
    assert rule[1] in {"$(RUNTIME)", "$(DEV)"}


@pytest.mark.parametrize("script", [".ci/run", "scripts/make-venv"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    """A script that lost its mode or has a syntax error is found here."""
    path = ROOT / script
    assert os.access(path, os.X_OK)
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", str(path)], check=True)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
