"""Large payloads on the orchestrator's side: checked in where they enter, copied between sagas.

Every saga keeps its own values, so that one can be purged without a thought for the others. Hence
what a saga hands to another one is copied: to a sub-saga its input, back to the parent what that
has come to, to a fork what it goes on from. What sagas tell each other is asked again until there
is an answer, so a payload store that is away holds nothing up but that.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec
import structlog

from orchestrator.batch import Asked
from orchestrator.core.definition import Definition
from orchestrator.core.plan import plan_of
from orchestrator.core.state import SagaState
from orchestrator.ports import Store
from shared import codec
from shared.claims import CheckedIn, Claims
from shared.errors import ConfigurationError, InputError, PayloadMissing, PayloadStoreUnavailable
from shared.messages import Failed, Failure, Reply, Succeeded
from shared.tickets import CLAIM, is_ticket, tickets_in

PAYLOAD_LOST: Final = "PayloadLost"
"""Kind of the failure of a step that is a saga, whose input or output the payload store has lost."""

log = structlog.get_logger(__name__)


class Payloads:
    """The claim check of an engine; without a payload store every value stays what it is.

    Args:
        claims: Where large values are kept; None for nowhere.
        store: Knows which sagas there are.
        payload_bytes_max: Largest payload, without what is kept there.

    Attributes:
        claims: As given.
    """

    def __init__(self, claims: Claims | None, store: Store, payload_bytes_max: int) -> None:
        self.claims = claims
        self._store = store
        self._payload_bytes_max = payload_bytes_max

    def required(self) -> Claims:
        """The claim check.

        Raises:
            ConfigurationError: There is none.
        """
        if self.claims is None:
            raise ConfigurationError(
                "There is no payload store: SAGA_CLAIM_CHECK_URL is not set.",
                hint="Set it as it is where the sagas run.",
            )
        return self.claims

    def whole(self, definition: Definition, state: SagaState, step: str, *, undo: bool) -> Any:
        """The input of a saga, or what a step has returned, with what is in the payload store.

        Args:
            definition: What the saga runs on.
            state: The saga.
            step: Whose output; empty for the input.
            undo: Its undo data instead.

        Raises:
            InputError: It has no such step.
            ConfigurationError: Something is in a payload store, and there is none here.
            PayloadStoreUnavailable: It cannot be reached, or does not have the payload.
            DecodeError: The payload is damaged.
        """
        value: Any = state.input
        if step:
            plan = plan_of(definition, state)
            if step not in plan.by_name:
                raise InputError(
                    f"Saga {state.saga_id} has no step {step!r}.",
                    hint=f"It has {', '.join(plan.by_name)}.",
                )
            known = state.step(step)
            value = known.undo if undo else known.output
        if not any(True for _ in tickets_in(value)):
            return value
        return self.required().fetch(value, state.saga_id)

    def given(self, value: dict[str, Any], source: str) -> dict[str, Any]:
        """The input of a saga that another one starts, with all values in it.

        Args:
            value: It, perhaps with tickets of the other one.
            source: The other one; empty where a client starts the saga.

        Raises:
            PayloadStoreUnavailable: The payload store cannot be reached, or does not have a value.
            DecodeError: A value is damaged.
            InputError: A reference into a value leads to nothing.
        """
        if self.claims is None or not source:
            return value
        try:
            found: dict[str, Any] = self.claims.fetch(value, source)
        except LookupError as error:
            raise InputError(f"The input cannot be put together: {error.args[0]}.") from error
        return found

    def check_in(self, value: Any, what: str) -> CheckedIn:
        """Take the large fields out of the input of a saga; see `Claims.check_in`.

        Raises:
            PayloadTooLarge: It is too large all the same, or a field is.
            InputError: It holds what looks like a ticket.
        """
        checked = CheckedIn(value)
        if self.claims is not None:
            checked = self.claims.check_in(value, what)
        codec.check_size(checked.value, self._payload_bytes_max, what)
        return checked

    def take(
        self, saga_id: str, value: Any, what: str, *, edited: bool = False, dry_run: bool = False
    ) -> Any:
        """Take a payload that somebody gives a saga: check it in, and keep its large fields.

        Args:
            saga_id: The saga; nothing is kept for one that does not exist.
            value: The payload.
            what: It, for an error.
            edited: An operator gives it: it may hold tickets of the saga.
            dry_run: Keep nothing.

        Raises:
            PayloadTooLarge: It is too large all the same, or a field is.
            InputError: It holds what looks like a ticket, or one that is not of this saga.
            DecodeError: It is not JSON.
            PayloadStoreUnavailable: Not all of it is kept.
        """
        if self.claims is None:
            codec.check_size(value, self._payload_bytes_max, what)
            return value
        checked = self.claims.check_in(value, what, tickets=edited)
        codec.check_size(checked.value, self._payload_bytes_max, what)
        for found in tickets_in(value) if edited else ():
            if not self.claims.store.has(saga_id, found[CLAIM]):
                raise InputError(
                    f"{what} holds a ticket for {found[CLAIM][:12]}…, which saga {saga_id} does "
                    "not keep.",
                    hint="Give the value itself, or a ticket as `saga show ID --json` has it.",
                )
        if checked.parts and not dry_run and self._store.load([saga_id]):
            self.claims.put(saga_id, checked.parts)
        return checked.value

    def keep(self, asked: Sequence[Asked]) -> None:
        """Keep what was checked in for sagas that begin.

        Raises:
            PayloadStoreUnavailable: Not all of it is kept.
        """
        for one in asked:
            if self.claims is not None and one.parts:
                self.claims.put(one.saga_id, one.parts)

    def hand_over(self, facts: Any, source: str, target: str) -> None:
        """Give a fork what it copies from a saga.

        Raises:
            PayloadStoreUnavailable: Not all of it is there.
        """
        if self.claims is not None:
            self.claims.copy(codec.decode(codec.encode(facts), Any), source, target)

    def adopt(self, reply: Reply, sub_saga: str) -> Reply | None:
        """Give a saga what the answer of a sub-saga holds of that one's values.

        Args:
            reply: The answer.
            sub_saga: Id of the sub-saga.

        Returns:
            The answer, or that the step has failed, where one of the values is lost. None where the
            payload store is away: drop the answer, it is asked for again.
        """
        if self.claims is not None and isinstance(reply.outcome, Succeeded):
            try:
                self.claims.copy(reply.outcome.output, sub_saga, reply.saga_id)
            except PayloadMissing as error:
                log.error("payload_store.payload_missing", sub_saga=sub_saga, error=str(error))  # noqa: TRY400 - told in one line
                told = (
                    f"{error.message} Saga {sub_saga} has done its work, and what it returned is "
                    "lost: `saga skip --output` gives the step an output by hand, another attempt "
                    "would do all of that saga once more."
                )
                failure = Failure(kind=PAYLOAD_LOST, message=told, retryable=False)
                return msgspec.structs.replace(reply, outcome=Failed(failure=failure))
            except PayloadStoreUnavailable as error:
                log.warning("payload_store.unavailable", sub_saga=sub_saga, error=str(error))
                return None
        return reply


def same_input(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two inputs say the same, whatever of them is in the payload store."""
    return one == other or _fingerprint(one) == _fingerprint(other)


def _fingerprint(value: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: field[CLAIM] if is_ticket(field) else sha256(codec.encode(field)).hexdigest()
        for name, field in value.items()
    }
