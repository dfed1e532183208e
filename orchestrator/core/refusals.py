"""Why a message cannot be acted on: asked for before it changes anything."""

from typing import assert_never

from orchestrator.core import operators
from orchestrator.core.definition import Definition, WaitFor
from orchestrator.core.forking import fork_refusal
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
    HandOver,
    Heartbeat,
    Message,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
    Undo,
)
from orchestrator.core.outputs import output_problem
from orchestrator.core.plan import plan_of
from orchestrator.core.state import SagaState
from orchestrator.core.terms import attempts, irrevocable
from orchestrator.core.waits import denies
from shared.messages import Reply, Succeeded
from shared.tokens import is_proof, proof_of


def why_not(  # noqa: C901, PLR0912 - one case for each message
    definition: Definition, state: SagaState | None, message: Message
) -> str:
    """Why a message cannot be acted on, in one sentence; empty when it can."""
    definition = plan_of(definition, state)
    match message:
        case Start() | Tick() | Undo():
            return ""
        case _ if state is None:
            return "There is no such saga."
        case HandOver(steps=steps):
            return fork_refusal(state, steps)
        case Reply() | Heartbeat():
            return _never_sent(definition, state, message)
        case Complete(reply=reply, proof=proof):
            if not is_proof(proof, _proof_of(state, reply)):
                return "The token is not one of this saga."
            return _never_sent(definition, state, reply) or _wrong_output(definition, reply)
        case Signal(name=name):
            works = [planned.action for planned in definition.steps]
            known = [work.signal for work in works if isinstance(work, WaitFor)]
            if name not in known:
                but = f", but for {', '.join(map(repr, known))}" if known else ", and for no other"
                return f"Saga {state.name!r} waits for no signal {name!r}{but}."
            if name in state.signals:
                return ""
            if state.status.final:
                return f"The saga is {state.status} already."
            return _wrong_signal(definition, message)
        case Cancel():
            if state.status.final:
                return f"The saga is {state.status} already."
            if irrevocable(definition, state):
                pivot = definition.pivot.name if definition.pivot else ""
                return f"The saga is past its pivot {pivot!r}: it can only go forward."
            return ""
        case Pause() | Resume() | RetryNow() | Skip() | Resolve() | CompensateNow():
            return operators.refusal(definition, state, message)
        case _:
            assert_never(message)


def _never_sent(definition: Definition, state: SagaState, said: Reply | Heartbeat) -> str:
    planned = definition.by_name.get(said.step)
    if planned is None:
        return f"Saga {state.name!r} version {state.version} has no step {said.step!r}."
    if planned.waits:
        return f"Step {said.step!r} waits by itself: no participant was asked."
    sent = attempts(state.step(said.step), said.direction)
    if 1 <= said.attempt <= sent:
        return ""
    attempt = f"Attempt {said.attempt} of {said.step!r} ({said.direction})"
    return f"{attempt} was never sent; {sent} were."


def _wrong_output(definition: Definition, reply: Reply) -> str:
    """Whoever completes a step can be told, and the step waits on."""
    if reply.direction == "compensation" or not isinstance(reply.outcome, Succeeded):
        return ""
    return output_problem(definition.by_name[reply.step], reply.outcome.output)


def _wrong_signal(definition: Definition, signal: Signal) -> str:
    """Whoever sends a signal can be told, and the saga waits on; what denies an approval is no output."""
    for planned in definition.steps:
        wait = planned.action
        if isinstance(wait, WaitFor) and wait.signal == signal.name:
            problem = "" if denies(wait, signal.data) else output_problem(planned, signal.data)
            if problem:
                return problem
    return ""


def _proof_of(state: SagaState, reply: Reply) -> str:
    attempt = (state.saga_id, reply.step, reply.direction, reply.attempt)
    return proof_of(state.secret, *attempt)
