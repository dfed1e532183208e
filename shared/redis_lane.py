"""A connection of redis-py, spoken to directly: the hot paths' few commands without the client's ceremony.

`redis.Redis` spends some 60 microseconds of CPU on a command besides sending it: pool, retry,
callbacks, metrics, a look whether the server hung up. A lane holds one connection, writes a batch
of commands at once and reads the answers. What a client would try again by itself is an error here: whoever
uses a lane has a way to begin anew already.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

Argument = bytes | str | int | float
Command = bytes
"""As it goes over the wire: `packed` makes it."""


def packed(*arguments: Argument) -> Command:
    """A command in Redis' own form."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        raw = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


class Script:
    """A Lua script: Redis is sent its text only when it does not know it."""

    def __init__(self, text: str) -> None:
        self.text: Final = text
        # Redis names scripts like this; nothing is secured by it.
        self._name: Final = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Command:
        """A call of the script."""
        return packed("EVALSHA", self._name, len(keys), *keys, *arguments)

    def load(self) -> Command:
        """Make Redis know it."""
        return packed("SCRIPT", "LOAD", self.text)


Call = tuple[Script, Sequence[str], Sequence[Argument]]
"""A script, its keys and its arguments."""


class Lane:
    """One connection of a pool, from the first command until `close` or an error.

    Threads wait for each other.

    Args:
        pool: Gives the connection; of redis-py.
    """

    def __init__(self, pool: Any) -> None:
        self.pool: Final = pool
        self._connection: Any = None
        self._lock = threading.Lock()

    def run(self, *commands: Command) -> list[Any]:
        """Send commands in one write, and read their answers.

        Raises:
            redis.exceptions.ConnectionError: Some, all or none of them were carried out.
            redis.exceptions.TimeoutError: Likewise: Redis did not answer in time.
            redis.exceptions.ResponseError: Redis refused one of them; the others were carried out.
        """
        return _accepted(self._exchange(commands))

    def run_scripts(self, *calls: Call, after: Sequence[Command] = ()) -> list[Any]:
        """Call scripts, each of which may run twice, in one write; again when Redis had hung up.

        Args:
            calls: The scripts.
            after: What Redis is to do before, such as a wait; may be done twice as well.

        Returns:
            The answers of the scripts.

        Raises:
            redis.exceptions.RedisError: As `run`.
        """
        commands = [script.call(keys, arguments) for script, keys, arguments in calls]
        fresh = self._connection is None
        try:
            answers = self._exchange([*after, *commands])
        except RedisConnectionError:
            if fresh:
                raise
            return self.run_scripts(*calls, after=after)
        _accepted(answers[: len(after)])
        answers = answers[len(after) :]
        for number, (script, _, _) in enumerate(calls):
            if isinstance(answers[number], NoScriptError):
                answers[number] = self.run(script.load(), commands[number])[1]
        return _accepted(answers)

    def close(self) -> None:
        """Give the connection back; the next command takes another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self.pool.release(connection)

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        with self._lock:
            if self._connection is None:
                self._connection = self.pool.get_connection()
            connection = self._connection
            try:
                connection.send_packed_command([b"".join(commands)], check_health=False)
                return [_answer(connection) for _ in commands]
            except BaseException:
                # An answer that was not read would be taken for that of the next command.
                self.close()
                raise


def _accepted(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    return answers


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
