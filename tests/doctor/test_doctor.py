"""`saga doctor` as a command, on a real broker, a real store and a real worker."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.cli.entry import run
from orchestrator.doctor.findings import Code
from shared.embedded import free_port
from shared.settings import settings
from tests.faults.conftest import make_stack
from tests.faults.stack import ROOT, MakeStack, Stack
from tests.servers.otlp import OtlpReceiver
from tests.servers.process import kill_tree
from tests.waiting import wait_until

__all__ = ["make_stack"]

SOLO = ("-P", "solo")


@pytest.fixture
def examined(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Stack], tuple[int, Any]]]:
    """Run the command in this process, with the environment of a stack."""

    def examine(stack: Stack) -> tuple[int, Any]:
        for name, value in stack._env.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()
        code = run(["doctor", "--json"])
        out, err = capfd.readouterr()
        assert err == ""
        return code, json.loads(out)

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield examine
    root.handlers[:] = before
    root.setLevel(level)
    settings.cache_clear()


def _wrong(report: Any) -> set[str]:
    return {one["code"] for one in report["findings"] if one["severity"] == "wrong"}


def test_a_sick_system_and_the_same_one_when_it_is_well(
    make_stack: MakeStack,
    otlp_http: OtlpReceiver,
    examined: Callable[[Stack], tuple[int, Any]],
) -> None:
    """Faults of every part at once, each found by trying; then they are mended."""
    stack = make_stack(
        OTEL_SDK_DISABLED="false",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        SAGA_VISIBILITY_TIMEOUT="PT10S",
    )
    with stack:
        store = stack.home / "saga.db"
        aside = store.rename(stack.home / "aside.db")
        code, report = examined(stack)
        assert (code, report["ok"]) == (1, False)
        assert _wrong(report) == {
            "exporter-unreachable",
            "visibility-timeout",
            "no-worker",
            "store-schema",
        }

        aside.rename(store)
        stack._env.update({**otlp_http.environment, "SAGA_VISIBILITY_TIMEOUT": "PT5M"})
        stack.orchestrator()
        # Told to give messages back sooner than a step may take, and one of them is missing.
        some = ("inventory", "payment", "orders", "notifications")
        stack.participants("some", *SOLO, queues=some, SAGA_VISIBILITY_TIMEOUT="PT20S")
        _wait_for(stack, "orchestrator", "some")
        code, report = examined(stack)
        assert code == 1
        assert _wrong(report) == {"queue-without-worker", "visibility-timeout-others"}
        (missing,) = (one for one in report["findings"] if one["code"] == "queue-without-worker")
        assert missing["details"] == {
            "queue": "shipping",
            "steps": ["place-order/arrange-shipping"],
        }
        assert report["recovery"]["by"] == "redelivery"
        assert report["recovery"]["seconds"] == 1 + 1 + 20 + 5

        kill_tree(stack.processes.pop("some"))
        stack.participants("all", *SOLO)
        _wait_for(stack, "all")
        code, report = examined(stack)
        assert _wrong(report) == set()
        assert (code, report["ok"]) == (0, True)
        assert any(span.name == "saga.doctor" for span in otlp_http.spans())


def _wait_for(stack: Stack, *names: str) -> None:
    for name in names:
        wait_until(lambda name=name: stack.logged(f"{name}@test ready."), timeout=40)  # type: ignore[misc]  # bound now


def test_every_finding_has_a_section_in_the_guide() -> None:
    """Named by its code, and none that does not exist."""
    guide = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert set(re.findall(r"^### `([\w-]+)`", guide, re.MULTILINE)) == {one.value for one in Code}
