"""The first characters of an id stand for all of it, where only one saga has them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.short_ids import whole_id, whole_ids
from orchestrator.store.opening import open_store
from shared.errors import InputError
from shared.settings import settings
from tests.contracts.store_contract import change, row

FIRST = "0199c8a0-0000-7000-8000-000000000001"
SECOND = "0199c8a0-1000-7000-8000-000000000002"


@pytest.fixture(autouse=True)
def two_sagas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the embedded store of this process."""
    monkeypatch.setenv("SAGA_HOME", str(tmp_path))
    settings.cache_clear()
    store = open_store(f"sqlite:///{tmp_path}/saga.db", create=True)
    store.commit([change(row(FIRST)), change(row(SECOND))])
    store.close()
    yield
    settings.cache_clear()


def test_a_beginning_that_one_saga_has_stands_for_its_id() -> None:
    """As many characters as tell it from all others."""
    assert whole_id("0199c8a0-1") == SECOND
    assert whole_ids(["0199c8a0-0", SECOND]) == [FIRST, SECOND]


def test_one_that_several_have_is_refused_with_their_ids() -> None:
    """Nothing is guessed."""
    with pytest.raises(InputError, match=r"several sagas begin with '0199c8': 0199c8a0-0.*, 0199"):
        whole_id("0199c8")


@pytest.mark.parametrize("text", ["0199c", "0199c9a0", "place-order", "01 99c8", FIRST, "", None])
def test_everything_else_stays_as_it_is(text: str | None) -> None:
    """The command says itself that there is no such saga."""
    assert whole_id(text) == text
