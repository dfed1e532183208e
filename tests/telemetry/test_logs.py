import logging
import os
import re
import threading
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import structlog
from opentelemetry import trace
from typing_extensions import override

from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.settings import settings as read_settings
from shared.telemetry import logs
from shared.telemetry.log_file import old_files
from shared.telemetry.logs import saga_context
from tests.servers.otlp import OtlpReceiver
from tests.telemetry.conftest import StartTracing
from tests.telemetry.records import ROOT_ID, TRACE_ID
from tests.waiting import wait_until

Lines = Callable[[], list[dict[str, object]]]

HEADERS = {
    "saga_id": "0199-1",
    "saga_name": "place-order",
    "saga_step": "charge-payment",
    "saga_direction": "action",
    "saga_attempt": 2,
    "saga_reply_to": "saga.replies",
    "traceparent": f"00-{TRACE_ID}-{ROOT_ID}-03",
}
CONTEXT = {
    "saga_id": "0199-1",
    "saga_name": "place-order",
    "saga_step": "charge-payment",
    "saga_direction": "action",
    "saga_attempt": 2,
    "trace_id": TRACE_ID,
    "span_id": ROOT_ID,
}
TASK_ID = "0199-1:charge-payment:action:2"
TASK = {"id": TASK_ID, "name": "payment.charge", "runtime": 0.1}

log = structlog.stdlib.get_logger("tests.log")


def test_a_line_says_when_who_and_where(lines: Lines) -> None:
    """Each line is one JSON object with the same first keys."""
    before = datetime.now(UTC)
    log.info("saga.started", name="place-order", number=3)
    after = datetime.now(UTC)
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(line["timestamp"]))
    assert before <= datetime.fromisoformat(str(line["timestamp"])) <= after
    assert {
        "level": "info",
        "event": "saga.started",
        "logger": "tests.log",
        "service": "test-service",
        "pid": os.getpid(),
        "process": "MainProcess",
        "name": "place-order",
        "number": 3,
    } == {key: value for key, value in line.items() if key not in {"timestamp", "hostname"}}
    assert ["timestamp", "level", "event", "logger", "service"] == list(line)[:5]


def test_lines_of_libraries_look_alike(lines: Lines) -> None:
    """Standard logging and warnings take the same way, arguments filled in."""
    logging.getLogger("some.library").warning("took %d of %s", 3, "five")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", stacklevel=1)
    library, warning = lines()
    assert ("took 3 of five", "some.library", "warning") == (
        library["event"],
        library["logger"],
        library["level"],
    )
    assert "old thing" in str(warning["event"])
    assert "py.warnings" == warning["logger"]
    assert library.keys() == warning.keys()


def test_the_context_is_on_every_line_inside_and_on_none_outside(lines: Lines) -> None:
    """Bound once at the border of a task, it reaches our lines and those of libraries."""
    with saga_context(HEADERS):
        log.info("ours")
        logging.getLogger("library").info("theirs")
        with saga_context({"saga_attempt": 3}):
            log.info("nested")
        log.info("back")
    log.info("outside")
    ours, theirs, nested, back, outside = lines()
    for line in (ours, theirs, back):
        assert CONTEXT == {key: line.get(key) for key in CONTEXT}
    assert CONTEXT | {"saga_attempt": 3} == {key: nested.get(key) for key in CONTEXT}
    assert not CONTEXT.keys() & outside.keys()
    assert "saga_reply_to" not in ours


@pytest.mark.parametrize("bad", ["", "garbage", 7, None])
def test_a_bad_traceparent_costs_the_trace_alone(lines: Lines, bad: object) -> None:
    """The saga is still named."""
    with saga_context(HEADERS | {"traceparent": bad}):
        log.info("x")
    (line,) = lines()
    assert "0199-1" == line["saga_id"]
    assert "trace_id" not in line


def test_the_recording_span_wins(
    lines: Lines, otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """Inside a span a line carries that span; a span that is not recorded changes nothing."""
    start_tracing(otlp_http)
    tracer = trace.get_tracer("t")
    with saga_context(HEADERS), tracer.start_as_current_span("x") as span:
        log.info("recorded")
        with trace.use_span(trace.NonRecordingSpan(span.get_span_context())):
            log.info("not recorded")
    context = span.get_span_context()
    recorded, other = lines()
    assert (
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
    ) == (recorded["trace_id"], recorded["span_id"])
    assert (TRACE_ID, ROOT_ID) == (other["trace_id"], other["span_id"])


def test_the_context_of_a_line_follows_every_change(
    lines: Lines, otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """Another span, another binding, a span that has ended: each shows on the next line."""
    start_tracing(otlp_http)
    tracer = trace.get_tracer("t")
    expected: list[tuple[object, object]] = []

    def say(span_id: object, step: object) -> None:
        log.info("said twice")
        log.info("said twice")
        expected.extend([(span_id, step)] * 2)

    say(None, None)
    with saga_context(HEADERS), tracer.start_as_current_span("outer") as outer:
        outer_id = trace.format_span_id(outer.get_span_context().span_id)
        say(outer_id, "charge-payment")
        with tracer.start_as_current_span("inner") as inner:
            inner_id = trace.format_span_id(inner.get_span_context().span_id)
            say(inner_id, "charge-payment")
            with saga_context({"saga_step": "other"}):
                say(inner_id, "other")
        say(outer_id, "charge-payment")
        outer.end()
        say(ROOT_ID, "charge-payment")
    say(None, None)
    said = [line for line in lines() if line["event"] == "said twice"]
    assert expected == [(line.get("span_id"), line.get("saga_step")) for line in said]


def test_threads_do_not_share_a_context(lines: Lines) -> None:
    """What one task binds is not on the lines of another."""
    bound, logged = threading.Event(), threading.Event()

    def other() -> None:
        bound.wait(5)
        log.info("other")
        logged.set()

    thread = threading.Thread(target=other)
    thread.start()
    with saga_context(HEADERS):
        bound.set()
        assert logged.wait(5)
    thread.join()
    (line,) = lines()
    assert "saga_id" not in line


def test_an_exception_is_text_in_one_line(lines: Lines) -> None:
    """A traceback does not break the format, whoever logs it."""
    try:
        raise ValueError("why\nnot")
    except ValueError:
        log.exception("ours")
        logging.getLogger("library").exception("theirs")
    for line in lines():
        assert str(line["exception"]).startswith("Traceback (most recent call last):\n")
        assert str(line["exception"]).endswith("ValueError: why\nnot")


def test_celerys_lines_about_a_task_name_it_and_its_saga(lines: Lines) -> None:
    """The main process logs about tasks that run elsewhere; their saga was remembered."""
    logs.remember_task(TASK_ID, HEADERS)
    celery = logging.getLogger("celery.app.trace")
    celery.info("Task %(name)s[%(id)s] succeeded", TASK, extra={"data": TASK})
    celery.info("Task %(name)s[%(id)s] again", TASK)
    celery.error("Hard time limit (%ss) exceeded for %s[%s]", 3, TASK["name"], TASK_ID)
    for line in lines()[:2]:
        assert TASK["name"] == line["task_name"]
    for line in lines():
        assert CONTEXT | {"task_id": TASK_ID} == {
            key: line.get(key) for key in (*CONTEXT, "task_id")
        }
    assert "Task payment.charge[0199-1:charge-payment:action:2] succeeded" == lines()[0]["event"]


def test_a_line_about_another_task_does_not_take_the_context(lines: Lines) -> None:
    """A thread that works for one saga may log about the task of another."""
    logs.remember_task("other", {"saga_id": "0199-2"})
    with saga_context(HEADERS):
        logging.getLogger("c").info("%(name)s %(id)s", {"id": "other", "name": "n"})
    (line,) = lines()
    assert ("0199-2", "other") == (line["saga_id"], line["task_id"])


def test_the_memory_for_tasks_is_bounded(lines: Lines) -> None:
    """The oldest is forgotten."""
    for number in range(logs.TASKS_REMEMBERED_MAX + 1):
        logs.remember_task(f"t{number}", HEADERS)
    for task_id in ("t0", "t1"):
        logging.getLogger("c").info("%(name)s %(id)s", {"id": task_id, "name": "n"})
    assert [None, "0199-1"] == [line.get("saga_id") for line in lines()]


def test_values_without_a_json_form_still_make_a_line(lines: Lines) -> None:
    """Paths, sets, errors, lone surrogates and broken objects: the line is never lost."""

    class Broken:
        @override
        def __str__(self) -> str:
            raise RuntimeError("no text")

    log.info("odd", path=Path("/x"), error=ValueError("v"), when=datetime(2026, 1, 1, tzinfo=UTC))
    log.info("surrogate", text="\udc80", key={1: 2})
    log.info("broken", value=Broken())
    odd, surrogate, broken = lines()
    assert ("/x", "v") == (odd["path"], odd["error"])
    assert "surrogate" == surrogate["event"]
    assert "<Broken whose text raises RuntimeError>" == broken["value"]


def test_the_level_is_kept(lines: Lines) -> None:
    """What is below it costs nothing and is not written."""
    log.debug("hidden")
    logging.getLogger("library").debug("hidden")
    assert [] == lines()


def test_a_forked_child_writes_to_the_same_file(lines: Lines) -> None:
    """Lines of parent and child never mix, and each carries its own process id."""
    count, text = 300, "x" * 5000
    child = os.fork()
    for _ in range(count):
        log.info("child" if not child else "parent", text=text)
    if not child:
        os._exit(0)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = lines()
    assert {("child", child): count, ("parent", os.getpid()): count} == {
        key: sum((line["event"], line["pid"]) == key for line in found)
        for key in {(line["event"], line["pid"]) for line in found}
    }


def test_a_file_that_was_moved_away_is_followed(lines: Lines, tmp_path: Path) -> None:
    """As logrotate does it; deleted works, too."""
    log.info("first")
    path = tmp_path / "test-service.jsonl"
    path.rename(tmp_path / "old.jsonl")
    log.info("second")
    assert ["second"] == [line["event"] for line in lines()]
    path.unlink()
    log.info("third")
    assert ["third"] == [line["event"] for line in lines()]


def test_lines_can_go_to_a_file_descriptor(
    lines: Lines, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output for services, standard error for commands; text for people."""
    logs.configure("svc", level="WARNING")
    log.warning("on stdout")
    log.info("below the level")
    logs.configure("svc", fd=2, json=False)
    with saga_context(HEADERS):
        log.info("on stderr", a=1)
    out, err = capfd.readouterr()
    assert ("on stdout", "svc") == tuple(
        msgspec.json.decode(out, type=dict[str, object])[key] for key in ("event", "service")
    )
    assert "on stderr" in err
    assert "0199-1" in err
    assert not err.startswith("{")


def test_lines_can_go_to_a_file_and_to_standard_output(
    lines: Lines, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """For people on the one, and as JSON in the other, so that it can be searched."""
    settings = Settings(log_dir=tmp_path, log_stdout=True, log_format="console")
    logs.configure_from(settings, "test-service")
    log.info("to both", a=1)
    (line,) = lines()
    assert ("to both", 1) == (line["event"], line["a"])
    out, _ = capfd.readouterr()
    assert "to both" in out
    assert not out.startswith("{")


def test_a_full_disk_is_said_once_and_so_is_its_end(
    lines: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback for each line would fill what is left, and say nothing to anybody."""
    full = tmp_path / "full.jsonl"
    full.symlink_to("/dev/full")
    logs.configure("svc", file=full)
    log = structlog.stdlib.get_logger("a")
    log.info("one")
    log.info("two")
    full.unlink()
    log.info("three")
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == [
        "Log lines cannot be written, and are lost until they can",
        "Log lines can be written again; 2 were lost.",
    ]
    assert "three" in full.read_text()


def test_the_settings_say_when_a_file_is_put_aside(lines: Lines, tmp_path: Path) -> None:
    """Everything that is logged is in one of the files."""
    settings = Settings(log_dir=tmp_path, log_file_bytes_max=1000, log_files_max=2)
    logs.configure_from(settings, "test-service", level="INFO")
    for number in range(20):
        log.info("a line", number=number)
    path = tmp_path / "test-service.jsonl"
    assert path.stat().st_size <= 1000
    assert old_files(path)
    wait_until(lambda: len(old_files(path)) == 2)
    wait_until(lambda: "log-rotation" not in [one.name for one in threading.enumerate()])


@pytest.mark.parametrize(
    "variable, value, allowed",
    [
        ("SAGA_LOG_FORMAT", "xml", "'json' or 'console'"),
        ("SAGA_LOG_FILE_BYTES_MAX", "-1", "greater than or equal to 0"),
        ("SAGA_LOG_ROTATE_EVERY", "daily", "duration"),
        ("SAGA_LOG_FILES_MAX", "many", "integer"),
    ],
)
def test_a_wrong_setting_is_named(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its value and what is allowed."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable}='{value}'.*{allowed}"):
        read_settings.__wrapped__()


def test_where_no_log_file_can_be_written_the_setting_is_named(tmp_path: Path) -> None:
    """And what was set up before stays."""
    taken = tmp_path / "a-file"
    taken.touch()
    before = logging.getLogger().handlers[:]
    for settings, file, setting in (
        (Settings(log_dir=taken), None, f"SAGA_LOG_DIR={taken}"),
        (Settings(), taken / "worker.log", f"--logfile {taken}/worker.log"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            logs.configure_from(settings, "svc", file=file)
        assert str(caught.value).startswith(f"{setting}: no log file can be written there: ")
    assert before == logging.getLogger().handlers


def test_secrets_stay_out_of_lines_of_any_making(
    lines: Callable[[], list[dict[str, object]]],
) -> None:
    """In events, fields, arguments, stacks and exceptions; ours, the library's and warnings'."""
    word = "hunter2"  # not in a line of the source that a stack would show
    log = structlog.stdlib.get_logger("ours")
    log.info("login password=%s", word, customer={"token": word, "name": "jane"}, n=1)
    logging.getLogger("a.library").warning("POST ?api_key=%s", word, stack_info=True)
    try:
        raise ValueError(f"secret: '{word}'")
    except ValueError:
        log.exception("failed", password=word)
        logging.getLogger("a.library").exception("failed with token=%s", word)
    first, second, third, fourth = lines()
    assert word not in repr(lines())
    assert ("login password=[redacted]", {"token": "[redacted]", "name": "jane"}, 1) == (
        first["event"],
        first["customer"],
        first["n"],
    )
    assert "POST ?api_key=[redacted]" == second["event"]
    assert "ValueError: secret: '[redacted]'" in str(third["exception"])
    assert "failed with token=[redacted]" == fourth["event"]
