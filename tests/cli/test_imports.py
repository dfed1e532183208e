"""What a command loads: a person waits for it."""

import subprocess
import sys

import pytest

HEAVY = ("celery", "kombu", "redis", "psycopg", "alembic", "starlette")


@pytest.mark.parametrize("module", ["orchestrator.cli.app", "orchestrator.bootstrap"])
def test_what_only_reads_a_local_store_loads_no_client_of_a_server(module: str) -> None:
    """They take longer to load than everything else together."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "sqlalchemy" in loaded or module == "orchestrator.cli.app"
    assert set() == loaded & {*HEAVY}
