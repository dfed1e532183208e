"""Random sagas of up to eight steps in random graphs, in a world where everything goes wrong.

Here time is real: time-outs, waits and the deadline are what the definition says, ticks come late,
and a coordinator that crashes loses what it has not committed, or not published.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from typing_extensions import override

from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    TIMED_OUT,
    Definition,
    NothingToUndo,
    Retry,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.events import Event, StepDispatched
from orchestrator.core.machine import Decision, decide
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
    Heartbeat,
    Message,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Tick,
)
from orchestrator.core.state import Phase, SagaState, Status, fold
from shared.backoff import Backoff
from shared.messages import Command, Reply
from shared.names import START_TASK
from shared.tokens import read_token
from tests.core.builders import (
    FAILURE,
    FOR_GOOD,
    START,
    T0,
    accepted,
    failed,
    rejected,
    saga,
    step,
    succeeded,
    unheard,
    wait,
)
from tests.core.invariants import between_sagas, check_decision, descendants, of_history
from tests.core.participants import Answer, Choice, Effect, with_barrier

CALM_STEPS_MAX = 1_000

_seconds = st.integers(1, 60).map(lambda seconds: timedelta(seconds=seconds))
_policies = st.builds(
    Retry,
    attempts=st.sampled_from((1, 2, 3)),
    backoff=st.builds(
        Backoff,
        wait_first=st.integers(0, 30).map(lambda seconds: timedelta(seconds=seconds)),
        wait_max=_seconds,
    ),
)
_retries = st.builds(
    lambda policy, by_kind: msgspec.structs.replace(policy, by_kind=by_kind),
    _policies,
    st.dictionaries(st.sampled_from((FAILURE.kind, TIMED_OUT)), _policies, max_size=1),
)


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    """A saga of up to eight steps; every step is before or after the pivot, if there is one."""
    size = draw(st.sampled_from((4, 3, 2, 5, 6, 7, 8, 1)))
    pivot = draw(st.none() | st.integers(0, size - 1))
    steps: list[Step] = []
    for index in range(size):
        earliest = pivot if pivot is not None and index > pivot else 0
        pool = [f"s{other}" for other in range(earliest, index)]
        after = tuple(draw(st.sets(st.sampled_from(pool)))) if pool else ()
        beyond = pivot is not None and index > pivot
        if index == pivot:
            after = tuple(pool)
        elif beyond and not after:
            after = (f"s{pivot}",)
        if draw(st.integers(0, 7)) == 0:
            steps.append(_nested(draw, f"s{index}", after, pivot=index == pivot))
            continue
        retry = draw(_retries)
        if beyond and retry.attempts == 1:
            retry = Retry(attempts=2)
        undos: Sequence[str | NothingToUndo | None] = (f"service.undo-s{index}", NOTHING_TO_UNDO)
        undo = draw(st.sampled_from((*undos, None) if index == pivot or beyond else undos))
        if index != pivot and draw(st.integers(0, 5)) == 0:
            steps.append(_waiting(draw, f"s{index}", after, beyond=beyond))
            continue
        steps.append(
            step(
                f"s{index}",
                after=after,
                pivot=index == pivot,
                compensation=undo,
                retry=retry,
                compensation_retry=draw(_retries),
                timeout=draw(_seconds),
                completes_within=draw(st.none() | _seconds),
            )
        )
    deadline = draw(st.none() | st.integers(1, 300).map(lambda s: timedelta(seconds=s)))
    return saga(*draw(st.permutations(steps)), deadline=deadline).definition


def _nested(draw: st.DrawFn, name: str, after: tuple[str, ...], *, pivot: bool) -> Step:
    """A sub-saga: to its parent it is like a participant with a barrier."""
    return Step(
        name,
        SubSaga("other"),
        after=after,
        pivot=pivot,
        retry=Retry(attempts=2),
        timeout=draw(_seconds),
    )


def _waiting(draw: st.DrawFn, name: str, after: tuple[str, ...], *, beyond: bool) -> Step:
    if draw(st.booleans()):
        return wait(name, Sleep(draw(_seconds)), after=after)
    choices: tuple[Literal["default", "reject", "fail"], ...] = ("default", "reject", "fail")
    otherwise = choices[0] if beyond else draw(st.sampled_from(choices))
    work = WaitFor("ok", approval=not beyond and draw(st.booleans()), otherwise=otherwise)
    return wait(name, work, after=after, timeout=draw(_seconds))


class AnySaga(RuleBasedStateMachine):
    """One saga, its coordinator, the network and the participants."""

    def __init__(self) -> None:
        super().__init__()
        self.now: datetime = T0
        self.history: list[Event] = []
        self.outbox: list[Command] = []
        self.commands: list[Command] = []
        self.dispatched: list[Command] = []
        self.replies: list[Reply] = []
        self.undo_order: list[str] = []

    @initialize(definition=definitions(), calm_steps=st.integers(0, 7), undo=st.booleans())
    def begin(self, definition: Definition, calm_steps: int, undo: bool) -> None:
        """Start it, and let it get somewhere."""
        self.cancelled_at_last = undo
        self.definition = definition
        asked = [planned.name for planned in definition.steps if not planned.waits]
        self.effects = dict.fromkeys(asked, Effect.NONE)
        self.runs = dict.fromkeys(definition.by_name, 0)
        self.state: SagaState | None = None
        self.wake_at: datetime | None = None
        self.tell(START)
        for _ in range(calm_steps % len(definition.steps)):
            self.go_on_calmly()

    def tell(self, message: Message, *, crash_before_publish: bool = False) -> Decision:
        """One round of a coordinator: load, decide, commit, publish."""
        decision = decide(self.definition, self.state, message, self.now)
        check_decision(self.definition, self.state, message, self.now, decision)
        # A call back is no attempt: it only makes the sub-saga end.
        commands = [one for one in decision.commands if not between_sagas(one)]
        self.outbox += commands
        self.dispatched += commands
        if decision.events:
            self.history += decision.events
        if decision.events or decision.beat:
            self.state = decision.state
            self.wake_at = decision.wake_at
        if not crash_before_publish:
            self.publish()
        return decision

    def publish(self) -> None:
        """Hand the outbox to the broker."""
        self.commands += self.outbox
        self.outbox.clear()

    # What can happen ----------------------------------------------------------------------

    @precondition(lambda self: self.commands)
    @rule(data=st.data(), again=st.booleans(), choice=st.sampled_from(Choice))
    def a_command_arrives(self, data: st.DataObject, again: bool, choice: Choice) -> None:
        """Any command, in any order; perhaps it comes again later."""
        command = data.draw(st.sampled_from(self.commands))
        if not again:
            self.commands.remove(command)
        self.replies.append(self.execute(command, choice))

    @rule()
    def all_goes_well(self) -> None:
        """What happens nearly always: without it a random walk would rarely get far."""
        self.go_on_calmly()

    @precondition(lambda self: self.flying())
    @rule(data=st.data(), choice=st.sampled_from(Choice))
    def an_attempt_in_flight_ends(self, data: st.DataObject, choice: Choice) -> None:
        """Well or badly, and its reply arrives."""
        command = data.draw(st.sampled_from(self.flying()))
        self.tell(self.execute(command, choice))

    @precondition(lambda self: self.flying() and self.wake_at)
    @rule(data=st.data(), choice=st.sampled_from(Choice))
    def an_attempt_in_flight_times_out(self, data: st.DataObject, choice: Choice) -> None:
        """It ends as it likes, but the reply comes late, if it comes."""
        command = data.draw(st.sampled_from(self.flying()))
        self.replies.append(self.execute(command, choice))
        self.now = max(self.now, command.deadline_at)
        self.tell(Tick())

    @precondition(lambda self: self.commands)
    @rule()
    def a_command_is_lost(self) -> None:
        """Its worker dies, and the broker does not deliver it again before the time-out."""
        self.commands.pop()

    @precondition(lambda self: self.replies)
    @rule(data=st.data(), again=st.booleans(), crash=st.booleans())
    def a_reply_arrives(self, data: st.DataObject, again: bool, crash: bool) -> None:
        """Any reply, in any order, perhaps not for the last time; or a crash before the publish."""
        reply = data.draw(st.sampled_from(self.replies))
        if not again:
            self.replies.remove(reply)
        self.tell(reply, crash_before_publish=crash)

    @precondition(lambda self: self.replies)
    @rule()
    def a_coordinator_crashes_before_its_commit(self) -> None:
        """The decision is lost; the next one from the same message is the same."""
        message = self.replies[-1]
        lost = decide(self.definition, self.state, message, self.now)
        assert lost == self.tell(message)

    @precondition(lambda self: self.outbox)
    @rule(twice=st.booleans())
    def the_outbox_is_published_late(self, twice: bool) -> None:
        """Another coordinator finds the rows, perhaps although they had been published."""
        if twice:
            self.commands += self.outbox
        self.publish()

    @precondition(lambda self: self.wake_at)
    @rule(late=st.sampled_from((0, 0, 1, 100)))
    def a_timer_is_due(self, late: int) -> None:
        """The coordinator ticks on time, or late: something follows every time."""
        assert self.wake_at is not None
        self.now = max(self.now, self.wake_at + timedelta(seconds=late))
        decision = self.tell(Tick())
        assert decision.events or decision.commands, "woken for nothing"

    @precondition(lambda self: any(one.task == START_TASK for one in self.flying()))
    @rule(data=st.data())
    def a_sub_saga_says_that_it_goes_on(self, data: st.DataObject) -> None:
        """It was asked again; from then on it is known that it began."""
        starts = [one for one in self.flying() if one.task == START_TASK]
        command = data.draw(st.sampled_from(starts))
        self.tell(accepted(command.step, command.attempt))
        assert self.state is not None
        assert self.state.step(command.step).began

    @precondition(lambda self: any(one.token for one in self.flying()))
    @rule(data=st.data(), alive=st.booleans(), choice=st.sampled_from(Choice))
    def an_attempt_goes_on_elsewhere(
        self, data: st.DataObject, alive: bool, choice: Choice
    ) -> None:
        """It is accepted, perhaps shows signs of life, and is completed with its token."""
        command = data.draw(st.sampled_from([one for one in self.flying() if one.token]))
        self.tell(accepted(command.step, command.attempt, command.direction))
        if alive:
            self.tell(
                Heartbeat(
                    step=command.step,
                    direction=command.direction,
                    attempt=command.attempt,
                    progress="half",
                )
            )
        token = read_token(command.token)
        reply = self.execute(command, choice)
        assert self.tell(Complete(reply=reply, proof="wrong")).refused
        if data.draw(st.booleans()):
            self.tell(Complete(reply=reply, proof=token.proof))

    @precondition(lambda self: self.signals())
    @rule(approved=st.booleans())
    def a_signal_comes(self, approved: bool) -> None:
        """Before its step waits, while it does, or too late."""
        self.tell(Signal(name="ok", data={"approved": approved}))

    def signals(self) -> bool:
        """Whether a step waits for a signal."""
        return any(isinstance(planned.action, WaitFor) for planned in self.definition.steps)

    @rule(seconds=st.integers(0, 20))
    def time_passes(self, seconds: int) -> None:
        """Nothing is due by that alone; a tick that comes too early changes nothing."""
        self.now += timedelta(seconds=seconds)
        if self.wake_at is None or self.wake_at > self.now:
            assert not self.tell(Tick()).events

    @rule()
    def somebody_cancels(self) -> None:
        """Accepted before the pivot, refused behind it, ignored the second time."""
        before = self.state
        decision = self.tell(Cancel(reason="why not"))
        if decision.refused:
            assert decision.state is before

    @rule(data=st.data())
    def an_operator_acts(self, data: st.DataObject) -> None:
        """Whatever is not allowed now is refused, and changes nothing."""
        name = data.draw(st.sampled_from([*self.definition.by_name]))
        messages: list[Operator] = [
            Pause(by="ada"),
            Resume(by="ada"),
            RetryNow(step=name, by="ada"),
            Skip(step=name, by="ada"),
            CompensateNow(by="ada"),
            Resolve(by="ada"),
        ]
        decision = self.tell(data.draw(st.sampled_from(messages)))
        assert not (decision.refused and decision.events)

    def by_hand(self) -> set[str]:
        """Steps of which an operator said that they need no more work: it may be wrong."""
        assert self.state is not None
        return {name for name, one in self.state.steps.items() if one.by_hand}

    def execute(self, command: Command, choice: Choice) -> Reply:
        """Let a participant with the barrier take a command."""
        name = command.step
        before = self.effects[name]
        after, answer = with_barrier(before, command.direction, choice)
        self.effects[name] = after
        self.runs[name] += before is Effect.NONE and after is Effect.STANDS
        if before is Effect.STANDS and after is Effect.UNDONE:
            self.undo_order.append(name)
        match answer:
            case Answer.SUCCEEDED:
                return succeeded(name, command.attempt, command.direction)
            case Answer.REJECTED:
                return rejected(name, command.attempt, command.direction)
            case Answer.FAILED:
                return failed(name, command.attempt, command.direction)
            case Answer.FAILED_FOR_GOOD:
                return failed(name, command.attempt, command.direction, FOR_GOOD)
            case Answer.UNKNOWN:
                return unheard(name, command.attempt)
            case Answer.ACCEPTED:
                raise AssertionError("no participant of this test does")

    # What holds all the time --------------------------------------------------------------

    @invariant()
    def the_history_is_the_truth(self) -> None:
        """The state is the fold of the history, and the commands are what it says was sent."""
        state = self.state
        assert fold(self.history) == (of_history(state) if state else None)
        sent = [event for event in self.history if isinstance(event, StepDispatched)]
        assert len({(event.step, event.direction, event.attempt) for event in sent}) == len(sent)

    @invariant()
    def the_world_is_what_the_status_says(self) -> None:
        """Completed: each effect stands once. Compensated: none stands."""
        if self.state is None:
            return
        assert max(self.runs.values()) <= 1
        if self.state.status is Status.COMPLETED:
            missing = {
                name
                for name, effect in self.effects.items()
                if effect is not Effect.STANDS and self.state.step(name).phase is not Phase.SKIPPED
            }
            assert not missing
        if self.state.status is Status.COMPENSATED:
            left = [
                planned.name
                for planned in self.definition.steps
                if self.effects.get(planned.name) is Effect.STANDS
                and not isinstance(planned.compensation, NothingToUndo)
                and planned.name not in self.by_hand()
            ]
            assert not left

    @invariant()
    def the_undo_order_is_the_reverse_of_the_graph(self) -> None:
        """In the world: nothing was undone before what had been built on it."""
        for position, name in enumerate(self.undo_order):
            built_on_it = descendants(self.definition, name) - self.by_hand()
            assert not built_on_it & set(self.undo_order[position + 1 :])

    @override
    def teardown(self) -> None:
        """From wherever it got to, the saga ends as soon as nothing goes wrong any more."""
        if self.state is None:
            return
        if self.cancelled_at_last:
            self.tell(Cancel())
        if self.state.paused and not self.state.status.final:
            self.tell(Resume())
        stuck = self.state.status is Status.STUCK
        refused = any(
            self.state.step(planned.name).failure
            for planned in self.definition.steps
            if planned.waits
        )
        # What was answered before may not have arrived yet, and is answered again.
        for_good = {Effect.REFUSED, Effect.UNHEARD} & {*self.effects.values()}
        excused = stuck or refused or self.by_hand() or for_good
        for _ in range(CALM_STEPS_MAX):
            if not self.go_on_calmly():
                break
        assert self.state.status.final or (excused and self.state.status is Status.STUCK)
        ended = self.state.status.final
        for reply in self.replies:
            assert not (self.tell(reply).events and ended)
        self.publish()
        for command in self.commands:
            self.execute(command, Choice.SUCCEED)
        self.the_history_is_the_truth()
        self.the_world_is_what_the_status_says()
        self.the_undo_order_is_the_reverse_of_the_graph()

    def go_on_calmly(self) -> bool:
        """An attempt in flight succeeds, or time passes; False where nothing follows."""
        flying = self.flying()
        if flying:
            # Lost or not, the broker delivers it again.
            self.tell(self.execute(flying[-1], Choice.SUCCEED))
        elif self.wake_at is not None:
            self.now = max(self.now, self.wake_at)
            assert self.tell(Tick()).events
        else:
            return False
        return True

    def flying(self) -> list[Command]:
        """Commands of the attempts in flight."""
        return [
            command
            for command in self.dispatched
            if command.attempt == self.current_attempt(command)
        ]

    def current_attempt(self, command: Command) -> int:
        """Number of the attempt that is in flight; 0 where it is the other direction's."""
        assert self.state is not None
        one = self.state.step(command.step)
        if command.direction == "action":
            return one.attempt if one.phase is Phase.RUNNING else 0
        return one.undo_attempt if one.phase is Phase.UNDOING else 0


AnySaga.TestCase.settings = settings(stateful_step_count=40)
TestAnySaga = AnySaga.TestCase
