"""Adaptive sampling, on a clock that is moved by hand."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from shared.telemetry import sampling, setup
from shared.telemetry.sampling import HEADROOM, NAMES_MAX, Adaptive
from tests.servers.otlp import OtlpReceiver
from tests.telemetry.conftest import StartTracing

TARGET = 100.0
CHILDREN = 4


class Host:
    """Processes of one host, a clock, and traces that begin at given rates."""

    def __init__(self, state: Path | None, processes: int = 1, target: float = TARGET) -> None:
        self.now = 1000.0
        self.processes = [Adaptive(target, state, lambda: self.now) for _ in range(processes)]
        self.random = Random(1)

    def run(self, rates: Mapping[str, float], seconds: int) -> Counter[str]:
        """Let traces begin, evenly mixed; returns how many of each name were kept."""
        kept: Counter[str] = Counter()
        for _ in range(seconds):
            arrivals = [
                name
                for name, rate in rates.items()
                for _ in range(int(rate) + (self.random.random() < rate % 1))
            ]
            self.random.shuffle(arrivals)
            for number, name in enumerate(arrivals):
                process = self.processes[number % len(self.processes)]
                kept[name] += process.decide(self.random.getrandbits(128), name)
                self.now += 1 / (len(arrivals) + 1)
            self.now = float(int(self.now) + 1)
        return kept


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the processes of a host count."""
    return tmp_path / "sampling"


@pytest.mark.parametrize("processes", [1, 5])
def test_ten_times_the_target_is_cut_to_it(state: Path, processes: int) -> None:
    """A flood gives the target, however many processes it is spread over."""
    host = Host(state, processes)
    host.run({"a": 1000}, 3)
    assert 0.9 * TARGET * 10 <= host.run({"a": 1000}, 10)["a"] <= 1.01 * TARGET * 10


@pytest.mark.parametrize("processes", [1, 5])
def test_a_tenth_of_the_target_is_kept_whole(state: Path, processes: int) -> None:
    """What is below the target loses nothing, from the first trace on."""
    host = Host(state, processes)
    assert {"a": 140, "b": 60} == host.run({"a": 7, "b": 3}, 20)


def test_a_flood_that_begins_at_once_is_cut_in_its_first_second(state: Path) -> None:
    """There is no second in which everything goes out."""
    host = Host(state)
    host.run({"a": 5}, 3)
    for _ in range(3):
        assert host.run({"a": 2000}, 1)["a"] <= TARGET * (1 + HEADROOM)


def test_what_is_kept_is_spread_over_the_second(state: Path) -> None:
    """Not the first hundred of each second: the choice is no bias."""
    host = Host(state)
    host.run({"a": 1000}, 2)
    first_half = 0
    for second in range(10):
        for number in range(1000):
            kept = host.processes[0].decide(host.random.getrandbits(128), "a")
            first_half += kept and number < 500
            host.now = 1002 + second + number / 1001
        host.now = float(1003 + second)
    assert 400 <= first_half <= 600


@pytest.mark.parametrize(
    "rates, expected",
    [
        ({"flood": 1000, "rare": 1}, {"flood": 99, "rare": 1}),
        ({"flood": 1000, "steady": 30, "rare": 2}, {"flood": 68, "steady": 30, "rare": 2}),
        ({"a": 200, "b": 300, "c": 800}, {"a": 33.3, "b": 33.3, "c": 33.3}),
        ({"a": 20, "b": 300, "c": 800}, {"a": 20, "b": 40, "c": 40}),
    ],
)
def test_each_name_gets_its_fair_share(
    state: Path, rates: dict[str, float], expected: dict[str, float]
) -> None:
    """Max-min: who asks for little gets it all, the others share what is left alike."""
    host = Host(state, 2)
    host.run(rates, 2)
    kept = host.run(rates, 10)
    for name, rate in expected.items():
        assert kept[name] / 10 == pytest.approx(rate, rel=0.15), kept


def test_a_rare_name_is_always_seen_beside_a_flood(state: Path) -> None:
    """Once in ten seconds, so that nobody expects it: it is seen each time."""
    host = Host(state)
    host.run({"flood": 1000}, 3)
    seen = 0
    for _ in range(10):
        host.run({"flood": 1000}, 2)
        seen += host.run({"flood": 1000, "rare": 1}, 1)["rare"]
    assert 10 == seen


def test_names_that_come_and_go_do_not_raise_the_mean(state: Path) -> None:
    """What unexpected names take over the target is taken off the next second."""
    host = Host(state)
    host.run({"flood": 1000}, 3)
    total = sum(
        host.run({"flood": 500} | {f"new-{second}-{n}": 1 for n in range(40)}, 1).total()
        for second in range(12)
    )
    assert total <= TARGET * (12 + HEADROOM)


def test_more_names_than_there_is_room_for(state: Path) -> None:
    """Span names made from ids are a mistake, but no trace is one too many."""
    host = Host(state, target=10)
    rates = {f"name-{n}": 1.0 for n in range(3 * NAMES_MAX)}
    host.run(rates, 2)
    assert 5 * 3 <= host.run(rates, 3).total() <= 10 * (3 + HEADROOM)


@given(
    rates=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40), min_size=1),
    target=st.integers(1, 30),
)
def test_the_target_is_never_exceeded_for_long(rates: dict[str, int], target: int) -> None:
    """Whatever the load: the mean over ten seconds is the target and a headroom at most."""
    host = Host(None, target=target)
    load = {name: float(rate) for name, rate in rates.items()}
    first = host.run(load, 1)
    kept = host.run(load, 4)
    assert (first + kept).total() <= target * (5 + HEADROOM)
    # In its first second a name has no more than an equal share.
    if sum(rates.values()) <= target:
        assert {name: 4 * rate for name, rate in rates.items() if rate} == +kept


def test_a_clock_that_begins_anew_begins_a_window(state: Path) -> None:
    """The file may outlive a reboot; the clock does not."""
    Host(state).run({"a": 1000}, 3)
    later = Host(state)
    later.now = 5.0
    assert 100 == later.run({"a": 100}, 1)["a"]


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 20_000, b"sagasmp1" + b"\xff" * 20_000])
def test_a_damaged_file_is_used_all_the_same(state: Path, content: bytes) -> None:
    """Nothing is raised, and after a moment the target is held."""
    state.write_bytes(content)
    host = Host(state)
    host.run({"a": 10}, 2)
    assert {"a": 50} == host.run({"a": 10}, 5)


def test_without_the_file_each_process_has_the_target(tmp_path: Path, lines: Any) -> None:
    """It degrades, and says so: a folder that cannot be made, a link that somebody planted."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path / "file" / "state", tmp_path / "link"):
        host = Host(path)
        assert host.run({"a": 1000}, 1)["a"] <= TARGET * (1 + HEADROOM)
    said = [line for line in lines() if line["event"] == "telemetry.sampling_not_shared"]
    assert 2 == len(said)
    assert "" == (tmp_path / "file").read_text()


def test_a_process_that_stopped_with_the_lock_blocks_nobody(state: Path) -> None:
    """Work never waits for telemetry."""
    adaptive = Adaptive(TARGET, state)
    code = (
        "import fcntl, sys\n"
        f"f = open({str(state)!r}, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert "held\n" == holder.stdout.readline()
        assert adaptive.decide(0, "a")
        holder.communicate()
    adaptive.close()
    assert adaptive.decide(0, "after the end")


def test_real_processes_share_the_target(state: Path) -> None:
    """Commands that live for a moment and forked children count in one file.

    As long as it takes: a process that loses the CPU with the lock in its hand makes others miscount.
    """
    code = (
        "import sys; from pathlib import Path; from random import Random\n"
        "from shared.telemetry import sampling; from shared.telemetry.sampling import Adaptive\n"
        "sampling._LOCK_TRIES_MAX = sys.maxsize\n"
        "adaptive = Adaptive(50, Path(sys.argv[1]), lambda: 1000.0); random = Random()\n"
        "print(sum(adaptive.decide(random.getrandbits(128), 'a') for _ in range(200)))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(CHILDREN)
    ]
    kept = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert 50 == sum(kept), kept


def test_the_file_is_the_users_own(state: Path) -> None:
    """Nobody else can read or write it."""
    Adaptive(TARGET, state).close()
    assert 0o600 == state.stat().st_mode & 0o777
    assert os.geteuid() == state.stat().st_uid


def test_spans_and_sagas_share_it_and_parents_decide(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, state: Path
) -> None:
    """Root spans of tasks and requests follow the same rule; a child follows its parent."""
    start_tracing(otlp_http, sampling_strategy="adaptive", sampling_target=5, sampling_state=state)
    adaptive = setup._process.adaptive
    assert adaptive is not None
    adaptive._clock = lambda: 1000.0
    tracer = trace.get_tracer("t")
    for number in range(20):
        with tracer.start_as_current_span("root"):
            tracer.start_span(f"child {number}").end()
    trace_id = "0" * 31 + "1"
    of_saga = [setup.should_sample(trace_id, name="saga place-order") for _ in range(5)]
    assert [True, False, False, False, False] == of_saga  # of the headroom
    assert setup.should_sample(trace_id, parent_sampled=True, name="saga place-order")
    assert not setup.should_sample(trace_id, parent_sampled=False, name="rare")
    assert setup.flush()
    spans = otlp_http.spans()
    assert 5 == sum(span.name == "root" for span in spans)
    assert 5 == sum(span.name.startswith("child") for span in spans)
    assert len({span.trace_id for span in spans}) == 5
    setup.shutdown()
    assert not setup.should_sample(trace_id, name="saga place-order")


def test_the_share_of_an_unknown_name_is_one_at_least() -> None:
    """A target of one trace a second is still a trace."""
    table = sampling._Table(bytearray(sampling._SIZE))
    assert table.decide(1, 7, 0.99, 1.0)
    assert not table.decide(1, 7, 0.0, 1.0)
