"""`saga demo`: what a newcomer sees first has to work, also the second time.

The tests share a folder, so whichever comes second finds what the first has left.
"""

import re

import psutil
import pytest

from tests.e2e.saga_dev import Folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder for all runs."""
    return Folder(tmp_path_factory.mktemp("demo"))


def test_the_demo_shows_it_all(folder: Folder) -> None:
    """A completed order, an undone one, one that survives a SIGKILL, and the logs of one trace."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    done = folder.saga_alone("demo")
    assert done.code == 0, done.out + done.err
    assert len(re.findall(r"v1  [0-9a-f-]{36}  completed in ", done.out)) >= 2
    assert re.search(r"v1  [0-9a-f-]{36}  compensated in ", done.out)
    assert "UnreachableRegion" in done.out
    assert done.out.count("█") > 20
    assert done.out.count("compensate ") == 2
    assert "kill -9" in done.out
    assert "payment ended by SIGKILL" in done.out
    found = re.search(r"(\d+) lines of (\d+) processes", done.out)
    assert found
    assert int(found[2]) >= 3
    assert "\x1b" not in done.out
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before


def test_the_demo_tells_programs_what_came_of_it(folder: Folder) -> None:
    """Ids on one line; the orders are those of this run alone."""
    run = folder.saga_alone("demo", "--json")
    assert run.code == 0, run.err
    assert run.json["processes"] >= 3
    listed = folder.saga("list", "--json", env={"SAGA_HOME": str(folder.home / "demo")}).json
    assert {run.json[which] for which in ("completed", "compensated", "recovered")} == {
        saga["saga_id"] for saga in listed
    }
