"""Walks everything that can happen to a saga, breadth first.

A walk has two layers, so that the expensive one stays small.

*Nodes* are the states of the saga. Time is symbolic: every timer that is set is "later", and any of
them, or all, may be the next to be due. That covers every choice of time-outs and of the deadline.
Each decision is made once for each node and message, and checked (`invariants`).

*Places* are a node together with the world: what every participant knows, and the replies that
exist. The network is a set that only grows: a message that exists may arrive at any time, any number
of times, in any order, or never. So lost, late, duplicated and reordered messages need no moves of
their own, nor do the crashes of an orchestrator:

* between decide and commit: nothing changed, and the message exists still;
* between commit and publish: the commands exist from the commit on, and arrive later, or twice;
* between commit and acknowledge: the message arrives again.

A reply that a node ignores is left out of the place. That is sound because it is ignored for ever
after, which is checked on every edge.

Steps that are alike (of the same kind, after the same and before the same steps) are *twins*: a
place where they have changed places is the same place, and is walked once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import msgspec

from orchestrator.core.definition import Definition, NothingToUndo, PlannedStep, WaitFor
from orchestrator.core.events import ForkedFrom, Origin, StepCopied
from orchestrator.core.machine import decide
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Message,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Tick,
    Undo,
)
from orchestrator.core.plan import plan_of
from orchestrator.core.state import (
    PENDING,
    Cause,
    CauseKind,
    Phase,
    SagaState,
    Status,
    StepState,
)
from orchestrator.core.timers import wake_at
from shared.ids import Direction
from shared.messages import Parent, Reply
from tests.core import builders
from tests.core.builders import T0
from tests.core.invariants import between_sagas, check_decision, descendants
from tests.core.participants import Answer, Choice, Effect, plain, with_barrier

LATER = T0 + timedelta(hours=1)
CALM_STEPS_MAX = 200
MUCH_LATER = T0 + timedelta(days=1)
_replace = msgspec.structs.replace

ANSWERS = (Answer.SUCCEEDED, Answer.REJECTED, Answer.FAILED, Answer.FAILED_FOR_GOOD)
ALL_ANSWERS = (*ANSWERS, Answer.UNKNOWN)
ATTEMPTS_MAX = 4
OPERATED_ATTEMPTS_MAX = 3
"""Beyond so many attempts no operator asks for another: the walk has to end."""
DIRECTIONS: tuple[Direction, Direction] = ("action", "compensation")

Key = tuple[object, ...]


class Sent(NamedTuple):
    """A command that exists: index of its step, direction, attempt."""

    step: int
    direction: Direction
    attempt: int


class Edge(NamedTuple):
    """A decision: the node that it leads to, and the steps that it sent commands for."""

    target: "Node"
    actions: tuple[int, ...] = ()
    undos: tuple[int, ...] = ()


class Node:
    """A state of the saga.

    Attributes:
        sent: Every command that exists.
        replies: Where each reply that is not ignored leads, by its bit.
        timers: Where a timer leads, or all of them at once.
        others: Where the deadline, a cancel and the operators lead.
        resume: Where a paused saga goes on.
        live: Bits of `replies`.
        possible: Bits of all replies that a participant could give.
        order: How its steps change places in the node that stands for it and its like; None where
            it is that node.
        twin: That node, once it is known.
    """

    def __init__(self, state: SagaState, steps: list[StepState], quiet: frozenset[int]) -> None:
        self.state = state
        self.steps = steps
        self.final = state.status.final
        self.stuck = state.status is Status.STUCK
        self.sent = [
            Sent(index, direction, attempt)
            for index, step in enumerate(steps)
            if index not in quiet
            for direction in DIRECTIONS
            for attempt in range(1, _attempts(step, direction) + 1)
        ]
        self.replies: dict[int, Edge] = {}
        self.timers: list[Edge] = []
        self.others: list[Edge] = []
        self.resume: Edge | None = None
        self.live = 0
        self.possible = sum(bit(sent, answer) for sent in self.sent for answer in ALL_ANSWERS)
        self.expanded = False
        self.ranks = [_rank(step) for step in steps]
        self.order: tuple[int, ...] | None = None
        self.twin: Node | None = None

    @property
    def edges(self) -> list[Edge]:
        """All decisions in this state."""
        return [*self.replies.values(), *self.timers, *self.others]


def _rank(step: StepState) -> tuple[Any, ...]:
    """All that counts of a step, comparable."""
    counted = (step.phase, step.attempt, step.undo_attempt, step.success, step.stuck)
    return (*counted, step.by_hand, step.accepted, step.recalled, step.began, step.never_ran)


def _attempts(step: StepState, direction: Direction) -> int:
    return step.attempt if direction == "action" else step.undo_attempt


BITS = 2 * ATTEMPTS_MAX * len(ALL_ANSWERS)
"""Replies of one step."""


def _replies_of(replies: int, step: int) -> int:
    return replies >> step * BITS & (1 << BITS) - 1


def _moved(replies: int, order: Sequence[int]) -> int:
    return sum(_replies_of(replies, was) << at * BITS for at, was in enumerate(order))


@cache
def bit(sent: Sent, answer: Answer) -> int:
    """The bit that stands for a reply."""
    place = sent.step * 2 + DIRECTIONS.index(sent.direction)
    first = (place * ATTEMPTS_MAX + sent.attempt - 1) * len(ALL_ANSWERS)
    return 1 << first + ALL_ANSWERS.index(answer)


class Graph:
    """The states of a saga and the decisions between them, made when they are first asked for.

    With `forgetful`, a step that has settled is taken as if its first attempt had done it, and all
    causes are taken as one: nothing that follows looks at the difference. Small sagas are walked
    without it. With `operated`, operators do whatever they may at every moment. With `told`,
    signals come at every moment, and attempts in flight are accepted, to be completed later: a
    completion is a reply like any other. With `child`, its parent may want it undone at every moment, also
    after its end. `items` are the lengths of the lists of its steps. A fork has `copied` these steps:
    another saga has done them, and it is this one that undoes them.
    """

    def __init__(
        self,
        definition: Definition,
        *,
        forgetful: bool = False,
        operated: bool = False,
        told: bool = False,
        child: bool = False,
        items: dict[str, int] | None = None,
        copied: tuple[str, ...] = (),
        answers: tuple[Answer, ...] = ANSWERS,
    ) -> None:
        self.definition = definition
        self.answers = answers
        self.forgetful = forgetful
        self.operated = operated
        self.told = told
        self.child = child
        lengths = items or {}
        state = builders.Run(definition, start=builders.START_TWO).known
        plan = plan_of(definition, _replace(state, items=lengths))
        self.names = [planned.name for planned in plan.steps]
        index = {name: number for number, name in enumerate(self.names)}
        self.behind = [[index[name] for name in descendants(plan, name)] for name in self.names]
        self.ahead = [
            [other for other in range(len(self.names)) if number in self.behind[other]]
            for number in range(len(self.names))
        ]
        self.must_go = [
            not isinstance(planned.compensation, NothingToUndo) for planned in plan.steps
        ]
        """Steps whose effect must not stand in a compensated saga."""
        self.quiet = frozenset(
            number for number, planned in enumerate(plan.steps) if planned.waits
        )
        """Steps that send nothing."""
        self.twins = _twins(plan) if forgetful else []
        self.nodes: dict[Key, Node] = {}
        self.decisions = 0
        start = builders.START_TWO
        if child:
            start = _replace(start, parent=Parent(saga_id="parent", step="child", attempt=1))
        self.copied = frozenset(index[name] for name in copied)
        if copied:
            facts = tuple(_copy(plan.by_name[name]) for name in copied)
            start = _replace(start, fork=ForkedFrom(saga_id="old", step="on"), copied=facts)
        first = self._edge(None, start)
        assert first is not None
        self.start = first

    def expand(self, node: Node) -> Node:
        """Make all decisions in a node, once."""
        if node.expanded:
            return node
        node.expanded = True
        assert self._edge(node, Tick()) is None, "a tick found something that was left undone"
        for sent in node.sent:
            for answer in self.answers:
                if answer is Answer.UNKNOWN and sent.direction == "compensation":
                    continue  # to an undo that is a failure for good
                edge = self._edge(node, _reply(self.names[sent.step], sent, answer))
                if edge is not None:
                    node.replies[bit(sent, answer)] = edge
        node.live = sum(node.replies)
        node.timers = [
            edge for due in _due(node.state) if (edge := self._edge(node, Tick(), due)) is not None
        ]
        late = _replace(node.state, deadline_at=T0)
        everything_late = _replace(_timeless(node.state, frozenset(self.names)), deadline_at=T0)
        others = (
            self._edge(node, Cancel(reason="why not")),
            self._edge(node, Tick(), late),
            self._edge(node, Tick(), everything_late),
        )
        node.others = [edge for edge in others if edge is not None]
        if self.operated:
            node.resume = self._edge(node, Resume())
            asked = [self._edge(node, message) for message in self._operators(node)]
            node.others += [edge for edge in (node.resume, *asked) if edge is not None]
        if self.child:
            undos = [self._edge(node, Undo(attempt=attempt)) for attempt in (0, 1, 2)]
            node.others += [edge for edge in undos if edge is not None]
        if self.told:
            heard = [self._edge(node, message) for message in self._signals(node)]
            node.others += [edge for edge in heard if edge is not None]
        return node

    def _signals(self, node: Node) -> Iterator[Message]:
        for planned in plan_of(self.definition, node.state).steps:
            if isinstance(planned.action, WaitFor):
                for approved in (True, False):
                    yield Signal(name=planned.action.signal, data={"approved": approved})
        for sent in node.sent:
            yield _reply(self.names[sent.step], sent, Answer.ACCEPTED)

    def _operators(self, node: Node) -> Iterator[Message]:
        yield Pause()
        yield Resolve()
        yield CompensateNow()
        for name in self.names:
            yield Skip(step=name)
        if all(sent.attempt < OPERATED_ATTEMPTS_MAX for sent in node.sent):
            yield RetryNow()
            for name in self.names:
                yield RetryNow(step=name)

    def _edge(
        self, node: Node | None, message: Message, state: SagaState | None = None
    ) -> Edge | None:
        """The decision that a message leads to; None when it is ignored."""
        state = state or (node.state if node else None)
        self.decisions += 1
        decision = decide(self.definition, state, message, T0)
        check_decision(self.definition, state, message, T0, decision)
        if not decision.events:
            if isinstance(message, Tick) and state:
                due = wake_at(self.definition, state)
                assert due is None or due > T0, "woken for nothing, and again for ever"
            return None
        assert decision.state is not None
        sent = [
            (self.names.index(command.step), command.direction)
            for command in decision.commands
            if not between_sagas(command)
        ]
        return Edge(
            self._node(decision.state),
            tuple(step for step, direction in sent if direction == "action"),
            tuple(step for step, direction in sent if direction == "compensation"),
        )

    def _node(self, state: SagaState) -> Node:
        state = _forgetful(_timeless(state)) if self.forgetful else _timeless(state)
        steps = [state.step(name) for name in self.names]
        key = (
            state.status,
            state.backward,
            state.paused,
            state.cause.kind if state.cause else None,
            repr((state.signals, state.items, state.undo_attempt)),
            *map(_rank, steps),
        )
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(state, steps, self.quiet)
            node.order = self._order(node)
        return node

    def _order(self, node: Node) -> tuple[int, ...] | None:
        order = [*range(len(node.steps))]
        for twins in self.twins:
            for number, was in zip(twins, sorted(twins, key=node.ranks.__getitem__), strict=True):
                order[number] = was
        return None if order == [*range(len(node.steps))] else tuple(order)

    def exchanged(self, node: Node, order: tuple[int, ...]) -> Node:
        """The node where each step is as the one was whose number stands in its place."""
        if node.twin is None:
            steps = dict(zip(self.names, (node.steps[number] for number in order), strict=True))
            begun = {name: step for name, step in steps.items() if step != PENDING}
            node.twin = self._node(_replace(node.state, steps=begun))
        return node.twin

    def live(self, node: Node) -> int:
        """Bits of the replies that a node does not ignore."""
        if node.order is None:
            return node.live
        live = self.exchanged(node, node.order).live
        return sum(_replies_of(live, at) << was * BITS for at, was in enumerate(node.order))

    def check_stale_stays_stale(self) -> None:
        """What a node ignores, every later one ignores: only so may a place leave it out."""
        for node in [*self.nodes.values()]:  # asking for the twin of one may make that
            for edge in node.edges:
                woken = self.live(edge.target) & node.possible & ~node.live
                assert not woken, (
                    f"a stale reply counts again: {node.state} -> {edge.target.state}"
                )


def _copy(planned: PlannedStep) -> StepCopied:
    """That a step was done by the saga that was forked."""
    link = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    return StepCopied(
        step=planned.name,
        origin=Origin(saga_id="old", link=link),
        attempt=1,
        success=1,
        payload={},
    )


def _reply(name: str, sent: Sent, answer: Answer) -> Reply:
    match answer:
        case Answer.SUCCEEDED:
            return builders.succeeded(name, sent.attempt, sent.direction)
        case Answer.REJECTED:
            return builders.rejected(name, sent.attempt, sent.direction)
        case Answer.FAILED:
            return builders.failed(name, sent.attempt, sent.direction)
        case Answer.FAILED_FOR_GOOD:
            return builders.failed(name, sent.attempt, sent.direction, builders.FOR_GOOD)
        case Answer.UNKNOWN:
            return builders.unheard(name, sent.attempt)
        case Answer.ACCEPTED:
            return builders.accepted(name, sent.attempt, sent.direction)


def _timeless(state: SagaState, due: frozenset[str] = frozenset()) -> SagaState:
    """The same state with every timer set later, but for the ones that are due now."""
    steps = {
        name: _replace(step, due_at=T0 if name in due else LATER) if step.due_at else step
        for name, step in state.steps.items()
    }
    deadline_at = MUCH_LATER if state.deadline_at else None
    return _replace(state, steps=steps, deadline_at=deadline_at)


def _forgetful(state: SagaState) -> SagaState:
    """The same state as if no settled step had needed a second attempt, whatever the cause."""
    steps = {}
    for name, step in state.steps.items():
        if step.phase in {Phase.SUCCEEDED, Phase.UNDONE}:
            once = {"attempt": min(step.attempt, 1), "success": min(step.success, 1)}
            once["never_ran"] = 0
            steps[name] = _replace(step, **once, undo_attempt=min(step.undo_attempt, 1))
        else:
            steps[name] = step
    cause = Cause(kind=CauseKind.FAILED) if state.cause else None
    return _replace(state, steps=steps, cause=cause)


def _due(state: SagaState) -> Iterator[SagaState]:
    """The state with each of its timers due, and with all of them due at once."""
    waiting = [name for name, step in state.steps.items() if step.due_at]
    for name in waiting:
        yield _timeless(state, frozenset({name}))
    if len(waiting) > 1:
        yield _timeless(state, frozenset(waiting))


def _twins(plan: Definition) -> list[tuple[int, ...]]:
    """Numbers of steps that differ in their names alone."""
    alike: dict[str, list[int]] = {}
    for number, planned in enumerate(plan.steps):
        after = tuple(sorted(planned.after))
        bare = _replace(planned, name="", action="", compensation=None, payload=None, after=after)
        undo = isinstance(planned.compensation, NothingToUndo), planned.compensation is None
        followers = sorted(one.name for one in plan.steps if planned.name in one.after)
        if planned.task:
            alike.setdefault(repr((bare, undo, followers)), []).append(number)
    return [tuple(numbers) for numbers in alike.values() if len(numbers) > 1]


# Worlds ---------------------------------------------------------------------------------------

W = TypeVar("W", bound=tuple[Any, ...])


class World(Protocol[W]):
    """What the participants of a walk are like; a value of type `W` is what they know."""

    def initial(self, steps: int, copied: frozenset[int]) -> W:
        """Nothing has happened, but for what a fork has copied."""

    def deliver(self, node: Node, world: W) -> Iterator[tuple[W, Sent, Answer]]:
        """Everything that the delivery of a command can do, and what is answered."""

    def calmly(self, node: Node, world: W, sent: Sent) -> tuple[W, Answer | None]:
        """What the attempt in flight does when nothing goes wrong; None: it has been answered."""

    def stands(self, world: W, step: int) -> bool:
        """Whether the effect of a step stands."""

    def hopeless(self, world: W, replies: int) -> bool:
        """Whether a participant has said something already that may leave the saga stuck."""


Effects = tuple[Effect, ...]
_UNDO_CHOICES = (Choice.SUCCEED, Choice.REJECT, Choice.FAIL)
_BARRIER: dict[tuple[Effect, Direction], frozenset[tuple[Effect, Answer]]] = {
    (effect, direction): frozenset(
        with_barrier(effect, direction, choice)
        for choice in (
            (*_UNDO_CHOICES, Choice.FAIL_FOR_GOOD, Choice.NOT_KNOW)
            if direction == "action"
            else _UNDO_CHOICES
        )
    )
    for effect in Effect
    for direction in DIRECTIONS
}


class Barrier:
    """Participants with the barrier: any command at any time, any number of times.

    Args:
        answers: What they may answer.
        irrevocable: Steps whose effect stays where it stands: a sub-saga past its pivot refuses.
    """

    def __init__(
        self,
        answers: tuple[Answer, ...] = ANSWERS,
        irrevocable: frozenset[int] = frozenset(),
    ) -> None:
        self._irrevocable = irrevocable
        self._outcomes = {
            asked: [(effect, answer) for effect, answer in outcomes if answer in answers]
            for asked, outcomes in _BARRIER.items()
        }

    def initial(self, steps: int, copied: frozenset[int]) -> Effects:
        """Nothing has happened, but for what a fork has copied."""
        return tuple(Effect.STANDS if one in copied else Effect.NONE for one in range(steps))

    def deliver(self, node: Node, world: Effects) -> Iterator[tuple[Effects, Sent, Answer]]:
        """Everything that the delivery of a command can do, and what is answered."""
        for sent in node.sent:
            if self._refuses(world, sent):
                yield world, sent, Answer.FAILED_FOR_GOOD
                continue
            for effect, answer in self._outcomes[world[sent.step], sent.direction]:
                yield _with(world, sent.step, effect), sent, answer

    def calmly(self, node: Node, world: Effects, sent: Sent) -> tuple[Effects, Answer | None]:
        """What the attempt in flight does when nothing goes wrong."""
        if self._refuses(world, sent):
            return world, Answer.FAILED_FOR_GOOD
        # One that is called back before its pivot turns back, or it could not be undone.
        back = sent.step in self._irrevocable and node.steps[sent.step].recalled
        choice = Choice.REJECT if back else Choice.SUCCEED
        effect, answer = with_barrier(world[sent.step], sent.direction, choice)
        return _with(world, sent.step, effect), answer

    def stands(self, world: Effects, step: int) -> bool:
        """Whether the effect of a step stands."""
        return world[step] is Effect.STANDS

    def hopeless(self, world: Effects, replies: int) -> bool:
        """Whether a participant has said no, or knows no such task, and keeps saying so."""
        refuses = any(self.stands(world, step) for step in self._irrevocable)
        return refuses or Effect.REFUSED in world or Effect.UNHEARD in world

    def _refuses(self, world: Effects, sent: Sent) -> bool:
        undo = sent.direction == "compensation" and sent.step in self._irrevocable
        return undo and self.stands(world, sent.step)


class Ledger(NamedTuple):
    """One step at a plain participant: whether its effect stands, and how many commands it took."""

    stands: bool = False
    actions: int = 0
    undos: int = 0


Ledgers = tuple[Ledger, ...]


class Plain:
    """Participants without the barrier: each command once, those of a step in order.

    A task that no worker knew may be known at the next attempt.

    Args:
        answers: What they may answer.
    """

    def __init__(self, answers: tuple[Answer, ...] = ANSWERS) -> None:
        self._choices = [one for one in Choice if plain(False, "action", one)[1] in answers]

    def initial(self, steps: int, copied: frozenset[int]) -> Ledgers:
        """Nothing has happened, but for what a fork has copied."""
        done = Ledger(stands=True, actions=1)
        return tuple(done if one in copied else Ledger() for one in range(steps))

    def deliver(self, node: Node, world: Ledgers) -> Iterator[tuple[Ledgers, Sent, Answer]]:
        """Everything that the delivery of a command can do, and what is answered."""
        for index, (step, ledger) in enumerate(zip(node.steps, world, strict=True)):
            if ledger.actions < step.attempt:
                sent = Sent(index, "action", ledger.actions + 1)
            elif ledger.undos < step.undo_attempt:
                sent = Sent(index, "compensation", ledger.undos + 1)
            else:
                continue
            for choice in self._choices:
                if choice is Choice.NOT_KNOW and sent.direction == "compensation":
                    continue
                changed, answer = self._taken(world, sent, choice)
                yield changed, sent, answer

    def calmly(self, node: Node, world: Ledgers, sent: Sent) -> tuple[Ledgers, Answer | None]:
        """What the attempt in flight does when nothing goes wrong; None: it has been answered."""
        ledger, step = world[sent.step], node.steps[sent.step]
        if ledger.actions >= step.attempt and ledger.undos >= step.undo_attempt:
            return world, None
        # The ones that are still in the queue come before it, and change nothing that it does not.
        stands = sent.direction == "action"
        taken = Ledger(stands, step.attempt, step.undo_attempt)
        return _with(world, sent.step, taken), Answer.SUCCEEDED

    def _taken(self, world: Ledgers, sent: Sent, choice: Choice) -> tuple[Ledgers, Answer]:
        ledger = world[sent.step]
        stands, answer = plain(ledger.stands, sent.direction, choice)
        if sent.direction == "action":
            return _with(world, sent.step, Ledger(stands, sent.attempt, ledger.undos)), answer
        return _with(world, sent.step, Ledger(stands, ledger.actions, sent.attempt)), answer

    def stands(self, world: Ledgers, step: int) -> bool:
        """Whether the effect of a step stands."""
        return world[step].stands

    def hopeless(self, world: Ledgers, replies: int) -> bool:
        """Whether an answer is on its way."""
        return replies != 0


T = TypeVar("T")


def _permuted(world: W, order: Sequence[int]) -> W:
    return cast("W", tuple(world[number] for number in order))


def _with(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])


# The walk -------------------------------------------------------------------------------------


class Place(NamedTuple, Generic[W]):
    """Where a walk can be: the state of the saga, of the world, and the replies that count."""

    node: Node
    world: W
    replies: int


class Walk(Generic[W]):
    """Everything that can happen to a saga among such participants.

    Attributes:
        places: All places, each with the one from which it was first reached.
    """

    def __init__(self, graph: Graph, kind: World[W]) -> None:
        self.graph = graph
        self.kind = kind
        self.places: dict[Place[W], Place[W] | None] = {}
        self._ends_calmly: dict[Place[W], Node] = {}

    def run(self) -> None:
        """Walk.

        Raises:
            AssertionError: An invariant does not hold; the way there is in the message.
        """
        initial = self.kind.initial(len(self.graph.names), self.graph.copied)
        first = Place(self.graph.expand(self.graph.start.target), initial, 0)
        self.places[first] = None
        todo = deque([first])
        while todo:
            place = todo.popleft()
            try:
                self._check(place)
                for follower in self._followers(place):
                    if follower not in self.places:
                        self.places[follower] = place
                        todo.append(follower)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self._way_to(place)}") from error
        self.graph.check_stale_stays_stale()

    def _followers(self, place: Place[W]) -> Iterator[Place[W]]:
        node, world, replies = place
        for changed, sent, answer in self.kind.deliver(node, world):
            known = replies | bit(sent, answer) & node.live
            if known != replies or changed != world:
                yield self._sorted(node, changed, known)
        for reply, edge in node.replies.items():
            if replies & reply:
                yield self._along(place, edge)
        for edge in (*node.timers, *node.others):
            yield self._along(place, edge)

    def _along(self, place: Place[W], edge: Edge) -> Place[W]:
        steps = edge.target.steps
        for step in edge.actions:
            for earlier in self.graph.ahead[step]:
                needless = earlier in self.graph.quiet or steps[earlier].phase is Phase.SKIPPED
                stands = needless or self.kind.stands(place.world, earlier)
                assert stands, "begun on what does not stand"
        for step in edge.undos:
            for later in self.graph.behind[step]:
                standing = self._left(place.world, later, steps[later])
                assert not standing, "undone while something later stands"
        order = edge.target.order
        if order is None:
            target = self.graph.expand(edge.target)
            return self._sorted(target, place.world, place.replies & target.live)
        target = self.graph.expand(self.graph.exchanged(edge.target, order))
        replies = _moved(place.replies, order) & target.live
        return self._sorted(target, _permuted(place.world, order), replies)

    def _sorted(self, node: Node, world: W, replies: int) -> Place[W]:
        """The place that stands for all in which twins that stand alike have changed places."""
        order: list[int] | None = None
        for twins in self.graph.twins:
            kept = sorted(
                (node.ranks[number], world[number], _replies_of(replies, number), number)
                for number in twins
            )
            if [one[3] for one in kept] != [*twins]:
                order = order or [*range(len(node.steps))]
                for number, one in zip(twins, kept, strict=True):
                    order[number] = one[3]
        if order is None:
            return Place(node, world, replies)
        return Place(node, _permuted(world, order), _moved(replies, order))

    def _check(self, place: Place[W]) -> None:
        node, world, _ = place
        if node.state.status is Status.COMPLETED:
            for number, step in enumerate(node.steps):
                needless = number in self.graph.quiet or step.phase is Phase.SKIPPED
                stands = needless or self.kind.stands(world, number)
                assert stands, "completed, but an effect is missing"
        if node.state.status is Status.COMPENSATED:
            for number, step in enumerate(node.steps):
                assert not self._left(world, number, step), "compensated, but not gone"
        end = self._calm_end(place)
        # What an operator said may be wrong.
        trusted = any(step.by_hand for step in node.steps)
        refused = any(
            step.failure for number, step in enumerate(node.steps) if number in self.graph.quiet
        )
        excused = node.stuck or trusted or refused or self.kind.hopeless(world, place.replies)
        assert end.final or excused, "stuck without a reason"

    def _left(self, world: W, number: int, step: StepState) -> bool:
        """Whether an effect stands that should not, and of which no operator said otherwise."""
        must_go = self.graph.must_go[number] and not step.by_hand
        return must_go and self.kind.stands(world, number)

    def _calm_end(self, place: Place[W]) -> Node:
        """The node where the saga ends when from here on nothing goes wrong any more."""
        way = []
        while place not in self._ends_calmly:
            way.append(place)
            assert len(way) < CALM_STEPS_MAX, "it goes on for ever although nothing goes wrong"
            follower = self._calm_follower(place)
            if follower is None:
                assert place.node.final or place.node.stuck, "a deadlock"
                self._ends_calmly[place] = place.node
                break
            place = follower
        end = self._ends_calmly[place]
        self._ends_calmly.update(dict.fromkeys(way, end))
        return end

    def _calm_follower(self, place: Place[W]) -> Place[W] | None:
        node, world, replies = place
        for index, step in enumerate(node.steps):
            if step.phase not in {Phase.RUNNING, Phase.UNDOING} or index in self.graph.quiet:
                continue
            direction: Direction = "action" if step.phase is Phase.RUNNING else "compensation"
            current = Sent(index, direction, _attempts(step, direction))
            changed, answer = self.kind.calmly(node, world, current)
            given = [other for other in ALL_ANSWERS if replies & bit(current, other)]
            reply = bit(current, answer or given[0])
            return self._along(Place(node, changed, replies), node.replies[reply])
        if node.resume:
            return self._along(place, node.resume)
        return self._along(place, node.timers[0]) if node.timers else None

    def _way_to(self, place: Place[W]) -> str:
        way: list[str] = []
        at: Place[W] | None = place
        while at is not None:
            steps = " ".join(
                f"{name}={step.phase}/{step.attempt}/{step.undo_attempt}"
                for name, step in zip(self.graph.names, at.node.steps, strict=True)
            )
            way.append(f"{at.node.state.status} {steps} world={at.world} replies={at.replies:b}")
            at = self.places[at]
        return "\n".join(("the way there:", *reversed(way), f"of {self.graph.definition}"))
