"""The alert rules, by Prometheus's own tool: each fires when it should, and not otherwise."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.deploy.tools import ALERTS, PROMETHEUS, ROOT, RULES_FILE, program, run

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


class Case(NamedTuple):
    """Series as Prometheus would have scraped them every 30 s, and what fires after an hour.

    Attributes:
        alert: Which alert.
        series: Series and their values, in promtool's notation.
        fires: The labels of the alerts that fire, without name, state and severity.
    """

    alert: str
    series: dict[str, str]
    fires: tuple[str, ...] = ()


def durations(name: str, labels: str, fast: int, slow: int) -> dict[str, str]:
    """A histogram that grows by so many fast and slow values each time."""
    return {
        f'{name}_bucket{{{labels}, le="5.0"}}': f"0+{fast}x120",
        f'{name}_bucket{{{labels}, le="300.0"}}': f"0+{fast + slow}x120",
        f'{name}_bucket{{{labels}, le="+Inf"}}': f"0+{fast + slow}x120",
    }


STEP = 'saga_name="trip", saga_step="pay", saga_direction="action"'
STEP_LABELS = 'saga_direction="action", saga_name="trip", saga_step="pay"'

CASES = [
    Case("SagaNoOrchestrator", {"saga_coordinator_up": "1x60 _x60"}, ("",)),
    Case("SagaNoOrchestrator", {'saga_coordinator_up{instance="a"}': "0x120"}, ("",)),
    Case(
        "SagaNoOrchestrator",
        {
            'saga_coordinator_up{instance="a"}': "0x120",
            'saga_coordinator_up{instance="b"}': "1x120",
        },
    ),
    Case(
        "SagaOrchestratorHangs",
        {
            'saga_coordinator_up{job="saga", instance="a"}': "1x120",
            'saga_outbox_size{job="saga", instance="a"}': "0x90 _x30",
            'saga_coordinator_up{job="saga", instance="b"}': "1x120",
            'saga_outbox_size{job="saga", instance="b"}': "0x120",
        },
        ('instance="a", job="saga"',),
    ),
    Case(
        "SagaDependencyDown",
        {
            'saga_dependency_up{dependency="store"}': "1x110 0x10",
            'saga_dependency_up{dependency="broker"}': "1x120",
        },
        ('dependency="store"',),
    ),
    Case("SagaDependencyDown", {'saga_dependency_up{dependency="store"}': "1x119 0"}),
    Case("SagaTimersLate", {"saga_timers_lateness_seconds": "0x100 40x20"}, ("",)),
    Case("SagaTimersLate", {"saga_timers_lateness_seconds": "20x120"}),
    Case(
        "SagaTargetDown",
        {'up{job="saga-participants", instance="a"}': "0x120"},
        ('instance="a", job="saga-participants"',),
    ),
    Case("SagaTargetDown", {'up{job="other"}': "0x120"}),
    Case("SagaOutboxOld", {'saga_outbox_age_seconds{instance="a"}': "0x100 61+30x20"}, ("",)),
    Case("SagaOutboxOld", {'saga_outbox_age_seconds{instance="a"}': "4x120"}),
    Case(
        "SagaOutboxGrowing",
        # Two orchestrators on one store: the same rows, not twice as many.
        {
            'saga_outbox_size{instance="a"}': "0+20x120",
            'saga_outbox_size{instance="b"}': "0+20x120",
        },
        ("",),
    ),
    Case(
        "SagaOutboxGrowing",
        {'saga_outbox_size{instance="a"}': "600x120", 'saga_outbox_size{instance="b"}': "600x120"},
    ),
    Case("SagaOutboxGrowing", {"saga_outbox_size": "5000-20x120"}),
    Case("SagaDeadLetters", {"saga_dead_lettered_total": "0x110 1x10"}, ("",)),
    Case("SagaDeadLetters", {"saga_dead_letters": "3x110 4x10"}, ("",)),
    Case("SagaDeadLetters", {"saga_dead_letters": "3x120", "saga_dead_lettered_total": "3x120"}),
    Case(
        "SagaStuck",
        {
            'saga_in_flight{saga_name="trip", saga_status="stuck", instance="a"}': "0x100 2x20",
            'saga_in_flight{saga_name="trip", saga_status="stuck", instance="b"}': "0x100 2x20",
            'saga_in_flight{saga_name="order", saga_status="running"}': "9x120",
            'saga_in_flight{saga_name="order", saga_status="stuck"}': "0x120",
        },
        ('saga_name="trip"',),
    ),
    Case(
        "SagaStepErrors",
        {
            f'saga_step_attempts_total{{{STEP}, saga_outcome="succeeded"}}': "0+8x120",
            f'saga_step_attempts_total{{{STEP}, saga_outcome="timed_out"}}': "0+1x120",
            f'saga_step_attempts_total{{{STEP}, saga_outcome="failed"}}': "0+1x120",
        },
        (STEP_LABELS,),
    ),
    Case(
        "SagaStepErrors",
        # A participant that says no is no error.
        {
            f'saga_step_attempts_total{{{STEP}, saga_outcome="succeeded"}}': "0+19x120",
            f'saga_step_attempts_total{{{STEP}, saga_outcome="rejected"}}': "0+10x120",
            f'saga_step_attempts_total{{{STEP}, saga_outcome="failed"}}': "0+1x120",
        },
    ),
    Case(
        "SagaStepErrors",
        {f'saga_step_attempts_total{{{STEP}, saga_outcome="failed"}}': "0x118 1x2"},
    ),
    Case(
        "SagaCompensationRate",
        {
            'saga_compensations_total{saga_name="trip", saga_cause="failed"}': "0+1x120",
            'saga_compensations_total{saga_name="trip", saga_cause="deadline"}': "0+2x120",
            'saga_started_total{saga_name="trip"}': "0+10x120",
        },
        ('saga_name="trip"',),
    ),
    Case(
        "SagaCompensationRate",
        {
            'saga_compensations_total{saga_name="trip", saga_cause="failed"}': "0+1x120",
            'saga_started_total{saga_name="trip"}': "0+10x120",
        },
    ),
    Case(
        "SagaWorkerKilled",
        {'saga_participant_lost_total{saga_task="a.b"}': "1x110 2x10"},
        ('saga_task="a.b"',),
    ),
    Case("SagaWorkerKilled", {'saga_participant_lost_total{saga_task="a.b"}': "2x120"}),
    Case(
        "SagaSlow",
        durations("saga_duration_seconds", 'saga_name="trip", saga_status="completed"', 9, 1),
        ('saga_name="trip"',),
    ),
    Case(
        "SagaSlow",
        durations("saga_duration_seconds", 'saga_name="trip", saga_status="completed"', 99, 1),
    ),
    Case(
        "SagaSlow",
        durations("saga_duration_seconds", 'saga_name="trip", saga_status="compensated"', 1, 9),
    ),
    Case("SagaStepSlow", durations("saga_step_duration_seconds", STEP, 9, 1), (STEP_LABELS,)),
    Case("SagaStepSlow", durations("saga_step_duration_seconds", STEP, 99, 1)),
    Case(
        "SagaQueueWait",
        durations("saga_step_queue_wait_seconds", STEP, 9, 1),
        ('saga_name="trip", saga_step="pay"',),
    ),
    Case("SagaQueueWait", durations("saga_step_queue_wait_seconds", STEP, 99, 1)),
    Case(
        "SagaSpansLost",
        {
            'saga_spans_total{job="saga", state="dropped"}': "5x110 6x10",
            'saga_spans_total{job="saga", state="exported"}': "0+9x120",
        },
        ('job="saga"',),
    ),
    Case("SagaSpansLost", {'saga_spans_total{job="saga", state="exported"}': "0+9x120"}),
]


def as_promtool(number: int, case: Case) -> dict[str, Any]:
    """A case as promtool reads it."""
    severity = ALERTS[case.alert]["labels"]["severity"]
    known = f'alertname="{case.alert}", alertstate="firing", severity="{severity}"'
    return {
        "name": f"{number} {case.alert}",
        "interval": "30s",
        "input_series": [
            {"series": name, "values": values} for name, values in case.series.items()
        ],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{case.alert}", alertstate="firing"}}',
                "eval_time": "1h",
                "exp_samples": [
                    {"labels": f"ALERTS{{{', '.join(filter(None, [known, labels]))}}}", "value": 1}
                    for labels in case.fires
                ],
            }
        ],
    }


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    """The cases above, all in one run of ``promtool test rules``."""
    wanted = {
        "rule_files": [str(RULES_FILE)],
        "evaluation_interval": "1m",
        "tests": [as_promtool(number, case) for number, case in enumerate(CASES)],
    }
    file = tmp_path / "cases.yml"
    file.write_text(yaml.safe_dump(wanted))
    run(program("promtool", "prometheus"), "test", "rules", file)


def test_every_alert_has_cases_of_both_kinds() -> None:
    """One in which it fires, and, but for what is always wrong, one in which it does not."""
    assert ALERTS.keys() == {case.alert for case in CASES if case.fires}
    quiet = {case.alert for case in CASES if not case.fires}
    # In these cases some of the series fire and others do not.
    assert ALERTS.keys() - quiet == {"SagaOrchestratorHangs", "SagaStuck"}


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_says_what_it_means_and_what_to_do(name: str) -> None:
    """Severity, summary, description, and a section of the runbook with a command to look with."""
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook_url"} == alert["annotations"].keys()
    assert f"docs/runbook.md#{name.lower()}" == alert["annotations"]["runbook_url"]
    section = RUNBOOK.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    for part in ("**Means:**", "**Look:**", "**Do:**"):
        assert part in section, part
    assert "`saga " in section or "`celery " in section


def test_the_runbook_has_no_section_too_many() -> None:
    """Every alert of the runbook exists."""
    named = {
        line.removeprefix("## ") for line in RUNBOOK.splitlines() if line.startswith("## Saga")
    }
    assert ALERTS.keys() == named


def test_the_configurations_are_valid() -> None:
    """By the programs that read them."""
    run(program("promtool", "prometheus"), "check", "config", PROMETHEUS / "prometheus.yml")


def test_the_configuration_of_alertmanager_is_valid() -> None:
    """By its own tool; and what it silences exists."""
    file = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    run(program("amtool", "prometheus-alertmanager"), "check-config", file)
    text = file.read_text()
    assert "SagaNoOrchestrator" in text
