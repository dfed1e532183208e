"""Settings that are wrong, and where definitions are looked for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from orchestrator import bootstrap
from orchestrator.bootstrap import load_sagas
from orchestrator.client import Client
from orchestrator.store import rows
from orchestrator.store.database import Database
from shared.errors import ConfigurationError
from shared.sealing import KeyRing
from shared.settings import Settings, settings
from workers.sdk.barrier import engine_of

SAGA = """
from orchestrator.core.definition import NOTHING_TO_UNDO, Saga, Step
import msgspec


class Given(msgspec.Struct):
    pass


ONE = Saga(name="one", version=1, input=Given, steps=(Step("a", "s.a", NOTHING_TO_UNDO),))
"""


@pytest.mark.parametrize(
    "url, said",
    [
        ("redis://:pw@localhost:port/0", "could not be cast"),
        ("redis://:pw@localhost:6379/abc", "not 'abc'"),
        ("http://:pw@localhost", "write redis://"),
        ("localhost:6379", "write redis://"),
        ("redis://a:1/0;sqs://:pw@b", "write redis://"),
    ],
)
def test_a_wrong_broker_url_names_its_variable_and_no_password(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all commands and workers, before anything is stored."""
    monkeypatch.setenv("SAGA_BROKER_URL", url)
    settings.cache_clear()
    with pytest.raises(ConfigurationError, match="SAGA_BROKER_URL: ") as caught:
        settings()
    assert said in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:a%2Fb@localhost:6379/1",
        "rediss://[::1]:6379/0",
        "redis+socket:///tmp/redis.sock",
        "sentinel://a:26379;sentinel://b:26379",
        "amqp://guest:guest@localhost:5672//",
        "amqps://host/vhost",
    ],
)
def test_a_broker_url_that_kombu_knows_is_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any of its forms."""
    monkeypatch.setenv("SAGA_BROKER_URL", url)
    settings.cache_clear()
    assert settings().broker_url == url


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """The settings are read once for each process."""
    yield
    settings.cache_clear()


def test_a_database_url_whose_port_is_no_number_is_refused() -> None:
    """In the store and in a participant."""
    for opened in (Database, engine_of):
        with pytest.raises(ConfigurationError, match="no database URL"):
            opened("postgresql+psycopg://user@localhost:port/saga")


def test_definitions_in_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the worker: `celery -A` has the folder on the path for its own import alone."""
    (tmp_path / "sagas_of_this_folder.py").write_text(SAGA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    (found,) = load_sagas(["sagas_of_this_folder"])
    assert found.name == "one"


def test_keys_that_are_not_those_of_the_store_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One saga that the orchestrators cannot open would end them all."""

    def client_with(ring: KeyRing) -> Client:
        for module in (rows, bootstrap):
            monkeypatch.setattr(module, "ring", lambda: ring)
        return bootstrap.make_client(Settings(home=tmp_path, broker_url="memory://"))

    old, new = (Fernet.generate_key().decode() for _ in range(2))
    client = client_with(KeyRing([old]))
    saga_id = client.start("place-order", {"order_id": "1"}).row.saga_id
    client.close()
    with pytest.raises(ConfigurationError, match=saga_id):
        client_with(KeyRing([new]))
    client_with(KeyRing([new, old])).close()
