"""`saga dev` from its start to its end, and what survives it."""

from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from tests.e2e.errand_app import RESTED
from tests.e2e.saga_dev import ERRAND_APP, ERRANDS, SAGA_WITHOUT_REDIS, Dev, Folder
from tests.waiting import wait_until

SHOP = """
from celery import Celery
from workers.sdk import install

app = Celery("shop", broker="redis://127.0.0.1:1/0")


@app.task(name="shop.sell")
def sell(item):
    return {"sold": item}


install(app)
"""
SHOP_SAGAS = """
import msgspec
from orchestrator.core.definition import NOTHING_TO_UNDO, Saga, Step


class Sale(msgspec.Struct):
    item: str


SELL = Saga(
    name="sell",
    version=1,
    input=Sale,
    steps=(Step("sell", "shop.sell", compensation=NOTHING_TO_UNDO),),
)
"""


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    """A `saga dev` of the test's own."""
    env = {**ERRANDS, "SAGA_VISIBILITY_TIMEOUT": "PT4S"}
    with Dev(tmp_path, *ERRAND_APP, env=env) as running:
        yield running


def napping(dev: Dev) -> str:
    """Start a saga whose step goes on until it is woken; returns its id once that has begun."""
    saga_id = str(dev.start_saga("nap").json["saga_id"])
    wait_until(lambda: dev.has_begun(saga_id, "nap", "errand"), timeout=20, what="the nap")
    return saga_id


def wake(dev: Dev) -> None:
    """Let naps end."""
    (dev.home / RESTED).touch()


def test_ctrl_c_ends_all_of_it(dev: Dev) -> None:
    """Broker, orchestrator and participants: no process is left, and the exit code is 0."""
    assert {"broker", "store", "orchestrator", "errand"} <= dev.parts.keys()
    assert len(dev.left) >= 3
    assert dev.stop(SIGINT) == 0
    assert dev.left == []
    assert "Killed" not in dev.said


def test_a_second_start_finishes_what_the_first_left(dev: Dev) -> None:
    """Killed in the middle of a step it leaves no process; what was started meanwhile waits, too."""
    running = napping(dev)
    dev.kill()
    wait_until(lambda: not dev.left, timeout=10, what="all processes to end with it")
    wake(dev)
    meanwhile = dev.start_saga("stamp")
    assert meanwhile.code == 0
    assert meanwhile.json["published"] is False
    assert "as soon as the broker is back" in meanwhile.err
    dev.start()
    assert dev.left_over == 2
    wait_until(lambda: dev.status(running) == "completed", timeout=60)
    wait_until(lambda: dev.status(meanwhile.json["saga_id"]) == "completed", timeout=60)


def test_a_broker_that_is_killed_comes_back_with_its_messages(dev: Dev) -> None:
    """The private Redis starts again on the same port, and the saga goes on."""
    saga_id = napping(dev)
    (redis,) = [one for one in dev.tree if "redis-server" in one.name()]
    redis.send_signal(SIGKILL)
    wait_until(lambda: "Redis ended" in dev.said, timeout=10)
    wake(dev)
    wait_until(lambda: dev.status(saga_id) == "completed", timeout=60)
    assert dev.start_saga("stamp", "--wait").code == 0
    dev.look_again()


def test_without_a_redis_server_files_take_its_place(tmp_path: Path) -> None:
    """The output says so, and a saga goes through all the same."""
    with Dev(tmp_path, *ERRAND_APP, command=SAGA_WITHOUT_REDIS, env=ERRANDS) as dev:
        assert "no redis-server was found" in dev.parts["broker"]
        assert dev.start_saga("stamp", "--wait").code == 0
        closed = {"begin_at": "2026-01-01T00:00:00Z", "mood": "closed"}
        assert dev.start_saga("errand", "--wait", **closed).code == 3


def test_an_app_of_ones_own_takes_part(tmp_path: Path) -> None:
    """Its queues come from the definitions, its broker is the private one whatever it configures."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "shop_sagas.py").write_text(SHOP_SAGAS)
    env = {"SAGA_DEFINITIONS": "shop_sagas"}
    with Dev(tmp_path, "--app", "shop", env=env) as dev:
        assert "inventory" not in dev.parts
        done = dev.start_saga("sell", "--wait", item="x")
        assert done.json["outcome"] == "completed"
        assert dev.stop(SIGTERM) == 0


def test_servers_of_ones_own_are_used_instead(
    tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    """Broker and store from the environment: nothing embedded is made, no password is shown."""
    env = {**ERRANDS, "SAGA_BROKER_URL": redis_url, "SAGA_DATABASE_URL": postgres_url}
    with Dev(tmp_path, *ERRAND_APP, env=env) as dev:
        assert dev.parts["broker"] == redis_url
        assert dev.parts["store"].startswith("postgresql")
        assert dev.start_saga("stamp", "--wait").json["outcome"] == "completed"
    assert not (dev.home / "saga.db").exists()
    assert not (dev.home / "redis").exists()


def test_without_a_broker_the_command_says_what_to_do(tmp_path: Path) -> None:
    """Nothing was started and nothing is set: the two ways out are named."""
    folder = Folder(tmp_path)
    done = folder.order()
    assert done.code == 2
    assert done.error["type"] == "ConfigurationError"
    assert "saga dev" in done.error["hint"]
    assert "SAGA_BROKER_URL" in done.error["hint"]


def test_a_store_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    """No traceback, and no password."""
    env = {
        "SAGA_DATABASE_URL": "postgresql+psycopg://saga:secret@127.0.0.1:1/saga",
        "SAGA_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    done = Folder(tmp_path).saga("start", "place-order", "--input", '{"order_id": "1"}', env=env)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert "secret" not in done.err


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """What the operating system says, with the path, and no traceback."""
    (tmp_path / "file").write_text("")
    done = Folder(tmp_path).saga("dev", env={"SAGA_HOME": "file/home"})
    assert done.code == 1
    assert done.err.startswith("error: Not a directory: file/home")
    assert "Traceback" not in done.err


def test_a_log_folder_that_cannot_be_written_ends_it_at_once(tmp_path: Path) -> None:
    """Workers would end for it one by one, and be started again for ever."""
    (tmp_path / "file").write_text("")
    done = Folder(tmp_path).saga("dev", env={"SAGA_LOG_DIR": "file"})
    assert done.code == 2
    assert done.err.startswith("error: SAGA_LOG_DIR=file: no log file can be written there")
    assert "Traceback" not in done.err
    assert not (tmp_path / ".saga" / "redis").exists()


def test_where_nothing_has_run_there_is_nothing_to_read(tmp_path: Path) -> None:
    """It is said instead of shown as an empty list, and looking creates nothing."""
    done = Folder(tmp_path).saga("list", "--json")
    assert done.code == 2
    assert "There is no store in .saga" in done.error["message"]
    known = Folder(tmp_path).saga("definitions", "--json").json
    assert "place-order" in {each["name"] for each in known}
    assert not (tmp_path / ".saga").exists()
