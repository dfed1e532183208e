"""A store that is opened, and one whose schema or sealing is brought up to date."""

from orchestrator.store import reseal as resealing
from orchestrator.store.sql import SqlStore
from shared.sealing import ring


def open_store(url: str, *, create: bool) -> SqlStore:
    """Open a store whose schema is right.

    Args:
        url: SQLAlchemy URL.
        create: Run missing migrations, as the embedded store does; otherwise they are an error.

    Raises:
        UnavailableError: The database cannot be reached.
        ConfigurationError: The URL is wrong, or the schema is of another version.
    """
    store = SqlStore(url)
    try:
        if create:
            store.migrate()
        store.check()
    except BaseException:
        store.close()
        raise
    return store


def upgrade(url: str) -> None:
    """Bring the schema of a database to this version; repeating it does no harm.

    Raises:
        UnavailableError: The database cannot be reached.
        ConfigurationError: Its schema is newer than this version's.
    """
    store = SqlStore(url)
    try:
        store.migrate()
    finally:
        store.close()


def reseal(url: str) -> int:
    """Seal what is in a store with the first key of the ring; returns how many rows.

    Raises:
        UnavailableError: The database cannot be reached.
        ConfigurationError: Its schema is of another version.
        DecodeError: Something is sealed with a key that is not on the ring; what came before it is
            sealed anew, and nothing is lost.
    """
    store = open_store(url, create=False)
    try:
        return sum(resealing.reseal(store.database, ring().reseal_text))
    finally:
        store.close()
