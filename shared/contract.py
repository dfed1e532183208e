"""Typed messages: what services say to each other over the buses.

    class CreateOrder(Command):                     # orders one: wire name "order.create"
        order_id: str
        amount_cents: int

    class FindOrder(Query[OrderView], name="orders.find"):
        order_id: str

    class OrderCreated(Event, name="orders.created"):
        order_id: str

A message is a `msgspec.Struct`. Its name on the wire has two parts, ``service.verb``. Without an
explicit ``name=`` it is derived from the class: the verb of a command or query comes first
(``CreateOrder`` is ``order.create``), that of an event last (``OrderCreated`` is
``order.created``). An explicit name outlives a renamed class.

Readers are tolerant: a field that a message has and its reader's class does not is ignored, so that
a service may add fields before its readers know them (``forbid_unknown_fields=True`` refuses them).
"""

import re
from functools import cache
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin
from weakref import WeakKeyDictionary

import msgspec
from typing_extensions import get_original_bases

from shared import codec
from shared.errors import DecodeError, DefinitionError, InputError
from shared.fields import field_problems
from shared.names import participant_queue

Kind = Literal["command", "query", "event"]

NAME_CHARS_MAX: Final = 128
_PART: Final = "[a-z0-9][a-z0-9_-]*"
_NAME: Final = re.compile(rf"{_PART}\.{_PART}")
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*")

Answer = TypeVar("Answer")
M = TypeVar("M", bound="Message")


class _Declared(NamedTuple):
    kind: Kind | None
    name: str
    queue: str


class Wire(NamedTuple):
    """How a message class looks on the wire.

    Attributes:
        kind: Which bus it belongs to.
        name: ``service.verb``; also the name of its Celery task.
        queue: Where a command or query goes: by default what stands before the dot.
    """

    kind: Kind
    name: str
    queue: str


_declared: WeakKeyDictionary[type, _Declared] = WeakKeyDictionary()


class MessageType(msgspec.StructMeta):
    """Type of message classes; takes ``name=`` and ``queue=`` beside msgspec's own options."""

    def __new__(  # noqa: PYI034 - no Self in a metaclass
        mcs,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        name: str = "",
        queue: str = "",
        kind: Kind | None = None,
        **config: Any,
    ) -> "MessageType":
        """Make the class.

        Raises:
            DefinitionError: The name is not ``service.verb``, or the class is ``array_like``.
        """
        made: Any = super().__new__(mcs, cls_name, bases, namespace, **config)
        if name and (len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name)):
            raise DefinitionError(
                f"Message {cls_name} is named {name!r}.",
                hint='A name is "service.verb": two parts of a-z, 0-9, "-" and "_", '
                f"at most {NAME_CHARS_MAX} characters.",
            )
        if made.__struct_config__.array_like:
            raise DefinitionError(
                f"Message {cls_name} is array_like; a message is an object with named fields."
            )
        inherited = next((_declared[base].kind for base in bases if base in _declared), None)
        _declared[made] = _Declared(kind or inherited, name, queue)
        found: MessageType = made
        return found


class Message(msgspec.Struct, metaclass=MessageType):
    """Root of all messages; derive from `Command`, `Query` or `Event`."""


class Command(Message, kind="command"):
    """Asks one service to do something; exactly one handler gets it."""


class Query(Message, Generic[Answer], kind="query"):
    """Asks one service for something that it knows: ``class FindOrder(Query[OrderView])``."""


class Event(Message, kind="event"):
    """Says what has happened; every subscriber gets it."""


@cache
def wire_of(message: type) -> Wire:
    """How a message class looks on the wire.

    Raises:
        DefinitionError: It is no message class, or no name can be derived for it.
    """
    declared = _declared.get(message)
    if declared is None or declared.kind is None or message in {Command, Query, Event}:
        raise DefinitionError(
            f"{getattr(message, '__name__', message)!r} is no message.",
            hint="Derive it from shared.bus.Command, Query or Event.",
        )
    name = declared.name or _derived(message.__name__, declared.kind)
    return Wire(declared.kind, name, declared.queue or participant_queue(name))


@cache
def answer_type(query: type) -> Any:
    """Type of the answer: ``OrderView`` of a ``Query[OrderView]``; `Any` where none is given."""
    for base in query.__mro__:
        for one in get_original_bases(base) if base is not object else ():
            if get_origin(one) is Query:
                return get_args(one)[0]
    return Any


def encoded(message: Message, limit_bytes: int) -> bytes:
    """Body of a message, checked: msgspec's constructors check no types.

    Args:
        message: Of any of the three kinds.
        limit_bytes: Largest size of its fields as JSON.

    Raises:
        InputError: Names every field that is wrong; `PayloadTooLarge` when it is too large.
        DecodeError: It holds something that JSON has no form for.
    """
    kind = type(message)
    raw = codec.encode(message)
    try:
        _decoder(kind).decode(raw)
    except msgspec.ValidationError:
        raise _refused(kind, codec.decode(raw, dict[str, Any])) from None
    codec.check_bytes(raw, limit_bytes, f"The {wire_of(kind).kind} {wire_of(kind).name!r}")
    return codec.task_body(msgspec.Raw(raw))


def decoded(kind: type[M], fields: dict[str, Any]) -> M:
    """A message from the keyword arguments of its task.

    Raises:
        InputError: Names every field that is wrong.
    """
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError:
        raise _refused(kind, fields) from None


def decoded_answer(query: type, value: Any) -> Any:
    """An answer as the query's class declares it.

    Raises:
        DecodeError: It is of another type.
    """
    wanted = answer_type(query)
    try:
        return msgspec.convert(value, wanted, str_keys=True)
    except msgspec.ValidationError as error:
        raise DecodeError(
            f"The answer to {wire_of(query).name!r} is no {getattr(wanted, '__name__', wanted)}: "
            f"{error}.",
            hint="Do the service and its caller have the same version of the answer's class?",
        ) from error


@cache
def _decoder(kind: type[M]) -> msgspec.json.Decoder[M]:
    return msgspec.json.Decoder(kind)


def _refused(kind: type[Message], fields: dict[str, Any]) -> InputError:
    problems = tuple(
        field_problems(
            kind, fields, unknown_allowed=not kind.__struct_config__.forbid_unknown_fields
        )
    )
    wire = wire_of(kind)
    return InputError(
        f"The {wire.kind} {wire.name!r} does not fit {kind.__name__}: {'; '.join(problems)}.",
        problems=problems,
    )


def _derived(class_name: str, kind: Kind) -> str:
    words = [word.lower() for word in _WORDS.findall(class_name)]
    if len(words) < 2 or "".join(words) != class_name.lower():
        raise DefinitionError(
            f"No name can be derived from {class_name!r}.",
            hint=f'Say one: class {class_name}(…, name="service.verb").',
        )
    verb, *rest = words if kind != "event" else [words[-1], *words[:-1]]
    return f"{'-'.join(rest)}.{verb}"
