"""Errors that people see; each carries its exit code and says what to do next.

SagaError
├── ConfigurationError      a setting or the environment is wrong
├── UnavailableError        the broker or the store cannot be reached
│   ├── NobodyAnswered      a query got no answer before its deadline
│   └── PayloadStoreUnavailable   where large payloads are kept
│       └── PayloadMissing        ... it is there, and does not have one
├── QueryFailed             a query's handler failed or refused
├── DefinitionError         a saga definition has mistakes (all of them listed)
│   └── DefinitionChanged   ... or differs from the stored copy of the same version
├── InputError              the input of a saga is not what its definition asks for
│   └── PayloadTooLarge
├── UnknownSaga             no definition of that name, or no saga with that id
├── KeyConflict             the business key is taken by a start with other input
├── NotAllowed              the saga's status forbids it (cancel after the pivot)
└── DecodeError             a message or a stored value cannot be read
"""

from typing import ClassVar

from typing_extensions import override


class SagaError(Exception):
    """Root of every error that this product raises on purpose.

    Attributes:
        exit_code: What the ``saga`` command exits with.
        http_status: What the HTTP API answers with.
        hint: What to do next, one sentence; empty where the message says it already.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", saga_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.saga_id = saga_id

    @override
    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class ConfigurationError(SagaError):
    """A setting or the environment is wrong; names the variable, its value and what is allowed."""

    exit_code = 2


class UnavailableError(SagaError):
    """The broker or the store cannot be reached; trying again later may help."""

    http_status = 503


class NobodyAnswered(UnavailableError):
    """No answer to a query came before its deadline; names the queue it was sent to."""

    http_status = 504


class PayloadStoreUnavailable(UnavailableError):
    """The payload store cannot be reached, read or written; nothing was stored."""


class PayloadMissing(PayloadStoreUnavailable):
    """The payload store is there and does not have a payload: asking again will not help."""

    http_status = 410


class QueryFailed(SagaError):
    """The handler of a query failed or refused.

    Attributes:
        kind: Stable machine-readable name: a refusal's code, or the exception's class name.
    """

    http_status = 502

    def __init__(self, message: str, *, kind: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class DefinitionError(SagaError):
    """A saga definition has mistakes.

    Attributes:
        problems: Every mistake, each naming the step and the field.
    """

    exit_code = 2

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class DefinitionChanged(DefinitionError):
    """A definition differs from the stored copy that has the same version."""


class InputError(SagaError):
    """The input does not fit the saga's input type; nothing was stored.

    Attributes:
        problems: One line for each field that is wrong.
    """

    exit_code = 2
    http_status = 422

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class PayloadTooLarge(InputError):
    """A payload is over the limit; names the limit and the setting that raises it."""

    http_status = 413


class UnknownSaga(SagaError):
    """No saga definition has that name, or no saga has that id."""

    exit_code = 2
    http_status = 404


class KeyConflict(SagaError):
    """The business key belongs to a saga that was started with other input."""

    exit_code = 2
    http_status = 409


class NotAllowed(SagaError):
    """The saga's status forbids the operation."""

    exit_code = 2
    http_status = 409


class DecodeError(SagaError):
    """Bytes or a message cannot be read as what they claim to be."""

    http_status = 400
