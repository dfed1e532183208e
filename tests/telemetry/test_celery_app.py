from datetime import timedelta
from pathlib import Path

import pytest

from shared.celery_app import RESTORE_LOOK_EVERY, configuration, make_app, transport_options
from shared.errors import ConfigurationError
from shared.settings import Settings


def settings_in(home: Path, **changes: object) -> Settings:
    """Settings that do not depend on the environment of the tests."""
    return Settings.model_validate({"home": home, "broker_url": "redis://h:1/0"} | changes)


def test_an_app_is_made_without_a_broker(tmp_path: Path) -> None:
    """Importing a module that makes an app asks for nothing; using it names what is missing."""

    def nothing_there() -> Settings:
        return settings_in(tmp_path, broker_url="")

    app = make_app("a", service="a", settings=nothing_there)

    @app.task(name="a.b")
    def task() -> None:
        """Do nothing."""

    for _ in range(2):  # the second reader must not get Celery's own default
        with pytest.raises(ConfigurationError, match="No broker: SAGA_BROKER_URL is not set"):
            assert app.conf.broker_url


def test_the_settings_become_the_configuration(tmp_path: Path) -> None:
    """Settings may be given as they are, too."""
    app = make_app("a", service="a", settings=settings_in(tmp_path), default_queue="q")
    assert ("redis://h:1/0", "q") == (app.conf.broker_url, app.conf.task_default_queue)
    assert 300 == app.conf.broker_transport_options["visibility_timeout"]


def test_the_broker_of_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``celery --broker`` decides about the transport's options, and needs no setting."""
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://h//")
    app = make_app("a", service="a", settings=settings_in(tmp_path, broker_url=""))
    assert "amqp://h//" == app.conf.broker_url
    assert {"confirm_publish": True} == app.conf.broker_transport_options


def test_delivery_is_durable_and_json_only(tmp_path: Path) -> None:
    """That no message is lost rests on these settings."""
    found = configuration(settings_in(tmp_path), "redis://h/0", "q")
    assert {
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_ignore_result": True,
        "result_backend": None,
        "worker_prefetch_multiplier": 1,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }.items() <= found.items()


@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel"])
def test_redis_is_asked_for_lost_messages_often(scheme: str, tmp_path: Path) -> None:
    """Interval times throttle is the real period: kombu's default is 100 s."""
    options = transport_options(
        f"{scheme}://h/0", settings_in(tmp_path, visibility_timeout=timedelta(seconds=7))
    )
    period_s = options["unacked_restore_interval"] * options["unacked_restore_throttle"]
    assert RESTORE_LOOK_EVERY == timedelta(seconds=period_s)
    assert 7 == options["visibility_timeout"]


def test_the_filesystem_needs_no_server(tmp_path: Path) -> None:
    """Messages lie under the home folder, both ways in one place."""
    options = transport_options("filesystem://", settings_in(tmp_path))
    assert options["data_folder_in"] == options["data_folder_out"]
    assert Path(options["data_folder_in"]).is_relative_to(tmp_path)
    assert Path(options["data_folder_in"]).is_dir()
    assert 0.01 == options["polling_interval"]


def test_an_unknown_transport_is_left_alone(tmp_path: Path) -> None:
    """Celery knows more brokers than we do."""
    assert {} == transport_options("sqs://", settings_in(tmp_path))
