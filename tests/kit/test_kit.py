"""`orchestrator.testing`, used as its users do; docs/testing.md has more of it, which runs too."""

import gc
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import structlog

from orchestrator import journal, testing
from orchestrator.core.definition import (
    Input,
    Item,
    Literal,
    Output,
    Saga,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.state import Phase, Status
from orchestrator.sagas import BOOK_TRAVEL, COLLECT_PAYMENT, PLACE_ORDER
from orchestrator.testing import (
    assert_every_failure_is_undone,
    fails,
    given,
    late,
    rejects,
    succeeds,
    times_out,
    twice,
)
from orchestrator.testing.coverage import reports
from orchestrator.testing.examples import example_input
from shared.errors import ConfigurationError, InputError, SagaError
from shared.telemetry import setup
from tests.core.builders import NOTHING_TO_UNDO, Order, Retry, saga, step
from workers.sdk.outcome import Reject, StepResult

PARALLEL = saga(
    step("a", after=()),
    step("b", after=()),
    step("c", after=("a", "b"), pivot=True, compensation=None),
    step("d", compensation=None, retry=Retry.forever()),
)


@pytest.fixture(autouse=True)
def _kept_for_the_summary() -> Iterator[None]:
    """After the tests only the table of the product's example is printed."""
    yield
    kept = [one for one in reports if one.saga == PLACE_ORDER.name and not one.problems]
    reports[:] = kept[-1:]


def test_the_public_names_are_these() -> None:
    """Few, and sorted."""
    assert sorted(testing.__all__) == testing.__all__
    assert all(hasattr(testing, name) for name in testing.__all__)


def test_a_declined_card_releases_the_stock() -> None:
    """As it stands in the docstring of the package."""
    run = given(PLACE_ORDER, order_id="o-1").step("charge-payment", rejects("CardDeclined"))
    bench = run.expect(
        "compensated",
        done=[],
        undone=["reserve-inventory"],
        never=["arrange-shipping", "confirm-order"],
        attempts={"charge-payment": 1},
        cause="CardDeclined",
    )
    assert bench.phase("charge-payment") is Phase.REJECTED
    assert bench.state.input["order_id"] == "o-1"


def test_all_goes_well_without_a_script() -> None:
    """Steps return what others refer to, approvals are given, and time passes by itself."""
    definition = Saga(
        name="test",
        version=1,
        input=Order,
        steps=(
            step("quote"),
            step(
                "approval",
                action=WaitFor("approve", approval=True),
                compensation=None,
                timeout=timedelta(days=1),
            ),
            step("later", action=Sleep(lasts=timedelta(days=3)), compensation=None),
            step("until", action=Sleep(until=Output("quote", "valid.from")), compensation=None),
            step("book", payload={"price": Output("quote", "price"), "vat": Literal(25)}),
        ),
    )
    bench = given(definition).expect("completed", done=["quote", "book"])
    assert bench.participants.calls[-1].payload == {"price": "quote.price", "vat": 25}
    assert bench.now - testing.bench.BEGIN >= timedelta(days=3)


def test_what_was_not_expected_is_told_with_the_history() -> None:
    """All that differs at once."""
    with pytest.raises(AssertionError) as caught:
        given(PARALLEL).step("b", rejects("no")).expect(
            "completed", undone=["b"], attempts={"a": 2}, cause="deadline", never=["a"]
        )
    told = str(caught.value)
    assert "status: expected completed, found compensated" in told
    assert "undone: expected ['b'], found ['a']" in told
    assert "attempts: expected {'a': 2}, found {'a': 1}" in told
    assert "cause: expected 'deadline', found ['no', 'rejected']" in told
    assert "never begun: expected ['a'], found []" in told
    assert "step_rejected b" in told


def test_a_step_that_is_misspelled_is_named() -> None:
    """Else a script that is never used would prove nothing."""
    with pytest.raises(ConfigurationError, match=r"no step 'chrage'.*reserve-inventory"):
        given(PLACE_ORDER).step("chrage")


def test_unknown_outcomes_are_undone_too() -> None:
    """With the work done and without: the compensation runs, and finds something or nothing."""
    done = given(PARALLEL).step("b", *[times_out()] * 3)
    assert {"a", "b"} == {*done.expect("compensated", done=[]).undone}
    lost = given(PARALLEL).step("b", *[times_out(happened=False)] * 3)
    bench = lost.expect("compensated", undone=["a"])
    assert bench.participants.undone_for_nothing == ["b"]


def test_late_and_double_answers_change_nothing() -> None:
    """The work is done once."""
    bench = given(PARALLEL).step("a", late()).step("b", twice()).expect("completed")
    assert sorted(bench.done) == ["a", "b", "c", "d"]
    assert [call.step for call in bench.participants.calls].count("b") == 2
    assert bench.state.step("a").attempt == 2


def test_a_compensation_that_gives_up_leaves_the_saga_stuck() -> None:
    """And what it was to undo stands."""
    run = given(PARALLEL).step("b", rejects()).undo("a", fails(retryable=False))
    run.expect("stuck", done=["a"], undone=[])


def test_a_cancel_during_a_step_and_the_deadline() -> None:
    """The step in flight ends before it is undone."""
    given(PARALLEL).cancel_during("b").expect("compensated", undone=["a", "b"], cause="cancelled")


def test_the_clock_moves_by_hand() -> None:
    """Command by command: what is waiting, what is answered, and what time it is."""
    bench = given(PLACE_ORDER, order_id="o-1").begin()
    (command,) = bench.waiting
    assert (command.task, command.attempt) == ("inventory.reserve", 1)
    bench.waiting.clear()  # lost
    bench.move(timedelta(seconds=29))
    assert bench.phase("reserve-inventory") is Phase.RUNNING
    bench.move(timedelta(seconds=3))
    (again,) = bench.waiting
    assert again.attempt == 2
    bench.deliver()
    assert bench.phase("charge-payment") is Phase.RUNNING
    bench.move(timedelta(hours=1))
    assert bench.state.step("charge-payment").attempt == 5
    assert bench.run() is Status.COMPENSATED
    assert any(line["event"] == "step.timed_out" for line in bench.log)


def test_a_run_that_is_over_leaves_nothing_behind() -> None:
    """Each was told of every exported span, and kept for it with its whole store, to the end of the process."""
    given(PLACE_ORDER, order_id="o-1").expect("completed")
    gc.collect()
    before = len(setup._process.callbacks)
    for number in range(3):
        given(PLACE_ORDER, order_id=f"o-{number}").expect("completed")
    gc.collect()
    assert before == len(setup._process.callbacks)


def test_the_log_is_kept_however_structlog_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI, once: a test before had set structlog up and let it keep a logger, and then set it up anew."""
    monkeypatch.setattr(journal, "log", structlog.get_logger("orchestrator"))
    try:
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()], cache_logger_on_first_use=True
        )
        journal.log.info("first.use")
        structlog.reset_defaults()
        bench = given(PLACE_ORDER, order_id="o-1").expect("completed")
    finally:
        structlog.reset_defaults()
    assert [line["event"] for line in bench.log][:2] == ["saga.started", "step.dispatched"]
    assert {line["log_level"] for line in bench.log} == {"info"}
    assert {line["saga_id"] for line in bench.log} == {bench.saga_id}


def test_a_deadline_that_passes_at_once() -> None:
    """As when no orchestrator has run in between."""
    bench = given(PLACE_ORDER, order_id="o-1").begin()
    assert bench.state.deadline_at is not None
    bench.tick_at(bench.state.deadline_at)
    bench.run()
    assert bench.state.cause is not None
    assert "deadline" == bench.state.cause.kind
    assert bench.status is Status.COMPENSATED


def test_functions_can_do_the_work() -> None:
    """With the real keyword arguments; what they return and raise means what it means in a worker."""
    taken: dict[str, Any] = {}

    def reserve(order_id: str) -> StepResult:
        taken[order_id] = "reserved"
        return StepResult(output="out", undo=order_id)

    def release(order_id: str, undo: str) -> None:
        assert undo == order_id
        del taken[order_id]

    def charge(order_id: str) -> None:
        assert taken == {"o-1": "reserved"}
        raise Reject("Declined", "no money")

    definition = saga(
        step("reserve", action="stock.reserve", compensation="stock.release"),
        step("charge", action="pay.charge", compensation=NOTHING_TO_UNDO),
    )
    run = given(definition).participants(
        stock__reserve=reserve, stock__release=release, pay__charge=charge
    )
    bench = run.expect("compensated", cause="Declined", undone=["reserve"])
    assert taken == {}
    assert bench.state.step("reserve").output == "out"


def test_a_function_that_raises_has_failed() -> None:
    """It is tried again; the kind is the class."""

    def broken(order_id: str) -> None:
        raise OSError(order_id)

    run = given(saga(step("a", action="x.y"))).participants(x__y=broken)
    bench = run.expect("compensated", cause="OSError", attempts={"a": 3})
    assert bench.participants.undone_for_nothing == ["a"]


def test_outputs_and_undo_data_go_where_they_belong() -> None:
    """By script, and by name."""
    definition = saga(step("a-b"), step("c", payload={"ref": Output("a-b", "ref")}))
    bench = given(definition).outputs(a_b={"ref": 7}).step("c", rejects()).run()
    assert bench.participants.calls[1].payload == {"ref": 7}
    assert bench.participants.calls[2].payload["undo"] == {"ref": 7}
    run = given(definition).step("a-b", succeeds({"ref": 8}, undo="u")).step("c", rejects())
    assert run.run().participants.calls[2].payload["undo"] == "u"


def test_an_endless_saga_is_told() -> None:
    """Instead of running for ever."""
    definition = saga(step("a", retry=Retry.forever(), timeout=timedelta(seconds=1)))
    run = given(definition).step("a", *[times_out()] * 20_000)
    with pytest.raises(SagaError, match="goes on after"):
        run.run()


def test_no_example_for_a_difficult_input() -> None:
    """The fields are named."""
    with pytest.raises(InputError, match="card"):
        example_input(PLACE_ORDER, {"card": "x"})


# Every failure -------------------------------------------------------------------------------


def test_a_journey_with_its_payment_is_undone_whatever_fails() -> None:
    """The example that uses everything: lists, an approval, a saga as a step, a pivot."""
    coverage = assert_every_failure_is_undone(
        BOOK_TRAVEL,
        {"booking_id": "b-1", "amount_cents": 250_000, "activities": ["city-tour"]},
        also=[COLLECT_PAYMENT],
    )
    assert coverage.never == ()


def test_every_failure_of_place_order_is_undone() -> None:
    """The example of the product: every compensation is exercised."""
    coverage = assert_every_failure_is_undone(
        PLACE_ORDER, may_be_stuck={"notify-customer", *_undoable(PLACE_ORDER)}
    )
    assert coverage.never == ()
    assert coverage.runs > 250
    assert {"completed", "compensated", "stuck"} == {*coverage.endings}
    told = coverage.table()
    assert "charge-payment     payment.refund" in told
    assert "never: after the pivot" in told
    for line in coverage.steps[:4]:
        assert min(line.undone, line.undone_for_nothing, line.undo_failed, line.stuck) > 0


def _undoable(definition: Saga) -> set[str]:
    return {one.name for one in definition.steps if one.compensation}


def test_parallel_and_waiting_sagas_are_driven_too() -> None:
    """Approvals that are denied or never come, and branches that fail together."""
    definition = Saga(
        name="test",
        version=1,
        input=Order,
        deadline=timedelta(days=9),
        steps=(
            step("a", after=()),
            step("b", after=()),
            step(
                "ok",
                action=WaitFor("ok", approval=True),
                compensation=None,
                after=("a", "b"),
                timeout=timedelta(days=1),
            ),
            step("end", pivot=True, compensation=None),
        ),
    )
    coverage = assert_every_failure_is_undone(definition)
    assert coverage.never == ()
    approval = next(one for one in coverage.steps if one.name == "ok")
    assert "it only waits" == approval.why_never
    assert approval.failed >= 2


def test_sub_sagas_and_lists_are_driven_too() -> None:
    """The steps of the saga below fail as well, and so do the runs for single items."""
    below = Saga(
        name="below",
        version=1,
        input=Order,
        steps=(step("room", retry=Retry(attempts=1)), step("meals")),
    )
    above = Saga(
        name="above",
        version=1,
        input=Boxes,
        deadline=timedelta(hours=1),
        steps=(
            step("pick", each=Input("boxes"), payload={"box": Item()}),
            step(
                "stay",
                action=SubSaga("below"),
                compensation=None,
                payload={"order_id": Literal("o-1")},
            ),
            step("pay"),
        ),
    )
    coverage = assert_every_failure_is_undone(above, {"boxes": ["a", "b"]}, also=[below])
    assert coverage.never == ()
    assert min(line.failed for line in coverage.steps) > 0
    bench = given(above, boxes=["a", "b"]).also(below).begin()
    bench.participants.script("pick[1]", "action", [rejects()])
    assert bench.run() is Status.COMPENSATED
    assert bench.undone == ("pick[0]",)


def test_a_saga_whose_sub_saga_is_stuck_is_driven_no_further() -> None:
    """It asks again for ever; nothing comes of that until an operator acts."""
    below = Saga(
        name="below",
        version=1,
        input=Order,
        steps=(step("pay", pivot=True), step("mail", retry=Retry(attempts=2))),
    )
    stay = step("stay", action=SubSaga("below"), compensation=NOTHING_TO_UNDO)
    bench = given(saga(stay)).also(below).begin()
    bench.participants.script("mail", "action", [fails(), fails()])
    assert bench.run() is Status.RUNNING
    (child,) = [state for _, state in bench.family() if state.parent]
    assert child.status is Status.STUCK


class Boxes(msgspec.Struct):
    """Input with a list."""

    boxes: list[str]


def test_a_compensation_that_never_runs_is_named() -> None:
    """Beyond the pivot there is no way back: a compensation there is a misunderstanding."""
    definition = saga(step("a"), step("b", pivot=True), step("c"))
    coverage = assert_every_failure_is_undone(definition)
    assert coverage.never == ("c",)
    assert "never exercised: c" in coverage.table()


def test_a_step_that_may_not_be_stuck_is_told() -> None:
    """With the run in which it is."""
    with pytest.raises(AssertionError, match=r"(?s)d is rejected: stuck at d.*saga_stuck d"):
        assert_every_failure_is_undone(PARALLEL, may_be_stuck=())


def test_what_is_left_over_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier that lets a command through twice: the kit notices."""

    def act(self: Any, command: Any, answer: Any) -> Any:
        self._known.pop((command.saga_id, command.step, "action"), None)
        return real(self, command, answer)

    real = testing.participants.Participants._act
    monkeypatch.setattr(testing.participants.Participants, "_act", act)
    with pytest.raises(AssertionError, match="was done 2 times"):
        assert_every_failure_is_undone(saga(step("a"), step("b")))


def test_an_undo_in_the_wrong_order_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the world shows it."""
    bench = given(saga(step("a"), step("b"), step("c"))).step("c", rejects()).run()
    bench.participants.effects[-2:] = reversed(bench.participants.effects[-2:])
    assert ["undone in the wrong order: a, b"] == [
        *testing.failures._problems(bench, may_be_stuck=None)
    ]


class Verdict(msgspec.Struct):
    """What a signal has to say."""

    grade: str
    points: int


@pytest.mark.parametrize("approval", [False, True])
def test_a_signal_that_has_a_type_says_what_fits_it(*, approval: bool) -> None:
    """Unless the test gives its own; then that has to fit."""
    wait = WaitFor("verdict", approval=approval)
    judged = saga(Step("judge", wait, timeout=timedelta(hours=1), output=Verdict))
    run = given(judged).run()
    assert run.state.status is Status.COMPLETED
    assert msgspec.convert(run.state.step("judge").output, Verdict).points == 1
    with pytest.raises(SagaError, match="is no Verdict: points: missing"):
        given(judged).signals(verdict={"approved": True, "grade": "A"}).run()
