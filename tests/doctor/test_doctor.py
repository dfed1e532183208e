"""`saga doctor` as a command, on a real broker, a real store and a real worker."""

import json
import re
from pathlib import Path
from typing import Any

from orchestrator.doctor.findings import Code
from shared.embedded import free_port
from tests.faults.conftest import make_stack
from tests.faults.stack import ROOT, MakeStack, Stack
from tests.servers.otlp import OtlpReceiver
from tests.servers.process import kill_tree
from tests.waiting import wait_until

__all__ = ["make_stack"]


def _examined(stack: Stack) -> tuple[int, Any]:
    process = stack.saga("doctor", "--json")
    out, err = process.communicate(timeout=60)
    assert err == ""
    return process.returncode, json.loads(out)


def _wrong(report: Any) -> set[str]:
    return {one["code"] for one in report["findings"] if one["severity"] == "wrong"}


def test_a_sick_system_and_the_same_one_when_it_is_well(
    make_stack: MakeStack, otlp_http: OtlpReceiver
) -> None:
    """Faults of every part at once, each found by trying; then they are mended, one by one."""
    on = {"OTEL_SDK_DISABLED": "false"}
    stack = make_stack(
        **on,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        SAGA_VISIBILITY_TIMEOUT="PT10S",
    )
    with stack:
        (stack.home / "saga.db").unlink()
        code, report = _examined(stack)
        assert code == 1
        assert not report["ok"]
        assert _wrong(report) == {
            "exporter-unreachable",
            "visibility-timeout",
            "no-worker",
            "store-schema",
        }

        well = {
            **on,
            **otlp_http.environment,
            "SAGA_VISIBILITY_TIMEOUT": "PT5M",
        }
        stack._env.update(well)
        stack.saga("db", "upgrade").communicate(timeout=60)
        # Told to give messages back sooner than a step may take, and one participant is missing.
        stack.orchestrator(SAGA_VISIBILITY_TIMEOUT="PT20S")
        stack.participants(queues=("inventory", "payment", "orders", "notifications"))
        wait_until(lambda: stack.logged("orchestrator@test ready."), timeout=30)
        wait_until(lambda: stack.logged("participants@test ready."), timeout=30)
        code, report = _examined(stack)
        assert code == 1
        assert _wrong(report) == {"queue-without-worker", "visibility-timeout-others"}
        (missing,) = (one for one in report["findings"] if one["code"] == "queue-without-worker")
        assert missing["details"] == {
            "queue": "shipping",
            "steps": ["place-order/arrange-shipping"],
        }
        assert report["recovery"]["by"] == "redelivery"
        assert report["recovery"]["seconds"] == 1 + 1 + 20 + 5

        stack.participants("shipping", queues=("shipping",))
        kill_tree(stack.processes.pop("orchestrator"))
        stack.orchestrator("orchestrator-2")
        wait_until(lambda: stack.logged("shipping@test ready."), timeout=30)
        wait_until(lambda: stack.logged("orchestrator-2@test ready."), timeout=30)
        code, report = _examined(stack)
        assert _wrong(report) == set()
        assert (code, report["ok"]) == (0, True)
        assert any(span.name == "saga.doctor" for span in otlp_http.spans())


def test_every_finding_has_a_section_in_the_guide() -> None:
    """Named by its code, and none that does not exist."""
    guide = Path(ROOT / "docs" / "troubleshooting.md").read_text()
    assert set(re.findall(r"^### `([\w-]+)`", guide, re.MULTILINE)) == {one.value for one in Code}
