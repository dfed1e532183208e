"""One connection to the broker that is made when it is needed and made again when it broke."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from kombu import Connection
from kombu.utils.url import maybe_sanitize_url

from shared.broker_transport import BROKER_ERRORS
from shared.errors import UnavailableError

T = TypeVar("T")


class Link:
    """A connection that outlives the broker's restarts.

    Not for several threads at once.
    """

    def __init__(
        self,
        url: Callable[[], str],
        connect: Callable[[], Connection],
        on_drop: Callable[[], None],
    ) -> None:
        """Describe the connection; nothing is connected yet.

        Args:
            url: The broker's URL, for people; the password is not shown.
            connect: Makes a connection object; it need not be established.
            on_drop: Called after a connection is gone: forget what belonged to it.
        """
        self._url = url
        self._connect = connect
        self._on_drop = on_drop
        self._connection: Connection | None = None

    def run(self, operation: Callable[[Connection], T]) -> T:
        """Run an operation on the connection.

        A connection that broke since it was last used is replaced and the operation runs again,
        so it must be one that may run twice.

        Raises:
            UnavailableError: The broker cannot be reached; names its URL without the password.
        """
        while True:
            fresh = self._connection is None
            try:
                if self._connection is None:
                    self._connection = self._establish()
                return operation(self._connection)
            except BROKER_ERRORS as error:
                self.drop()
                if fresh:
                    raise UnavailableError(
                        f"The broker {uri_of(self._url())} cannot be used: {_why(error)}.",
                        hint="Check SAGA_BROKER_URL, and that the broker runs.",
                    ) from error

    def drop(self) -> None:
        """Forget the connection, without a word to a broker that may be gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*BROKER_ERRORS):
                connection.collect()
            self._on_drop()

    def close(self) -> None:
        """Close the connection in order."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*BROKER_ERRORS):
                connection.release()
            self._on_drop()

    def _establish(self) -> Connection:
        connection = self._connect()
        try:
            # Every alternate once, without a pause.
            return connection.ensure_connection(
                max_retries=max(len(connection.alt) - 1, 0), interval_start=0, interval_step=0
            )
        except BaseException:
            with suppress(*BROKER_ERRORS):
                connection.collect()
            raise


def uri_of(url: str) -> str:
    """A broker URL, or several with semicolons between, without the passwords."""
    return ";".join(str(maybe_sanitize_url(each)) for each in url.split(";"))


def _why(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
