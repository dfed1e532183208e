"""`saga db`: the schema of the store."""

from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json

if TYPE_CHECKING:
    from shared.settings import Settings


def make_db(markup: Any) -> typer.Typer:
    """The group of commands about the schema."""
    app = typer.Typer(no_args_is_help=True, help="The store's schema.", rich_markup_mode=markup)
    app.callback()(_db)
    app.command("upgrade")(upgrade)
    app.command("reseal")(reseal)
    app.command("new-key")(new_key)
    return app


def _db() -> None:
    """The store's schema."""


def upgrade(as_json: Json = False) -> None:
    """Bring the store's schema to the version of this program; repeating it does no harm."""
    where = upgrade_store(session.settings())
    if as_json:
        output.show_json({"store": where, "upgraded": True})
    else:
        output.show([output.line(f"{where} has the schema of this version.")])


def reseal(as_json: Json = False) -> None:
    """Encrypt what is in the stores with the first key of SAGA_ENCRYPTION_KEYS, while sagas run.

    After a new key was put first, or the first one was set. Then the old key can be taken away, once
    no message that was sealed with it is on its way.
    """
    from orchestrator.store.opening import reseal as seal_anew
    from shared.claims import claims_of
    from shared.errors import ConfigurationError
    from shared.sealing import ring

    if not ring().seals:
        raise ConfigurationError(
            "SAGA_ENCRYPTION_KEYS is not set: there is no key to encrypt with.",
            hint="`saga db new-key` prints one.",
        )
    claims = claims_of(session.settings())
    count = seal_anew(session.settings().store_url)
    payloads = claims.reseal() if claims else 0
    if as_json:
        output.show_json({"rows": count, "payloads": payloads})
        return
    others = f" and {payloads} large payloads" if claims else ""
    output.show([output.line(f"{count} rows{others} are encrypted with the first key.")])


def new_key() -> None:
    """Print a new key for SAGA_ENCRYPTION_KEYS."""
    from shared.errors import ConfigurationError

    try:
        from cryptography.fernet import Fernet
    except ImportError as error:
        raise ConfigurationError(
            "A key needs the package cryptography, which is not installed.",
            hint="pip install 'celery-saga-orchestrator[encryption]'",
        ) from error
    output.show([output.line(Fernet.generate_key().decode())])


def upgrade_store(configured: "Settings") -> str:
    """Migrate the store.

    Returns:
        Its URL, without the password.

    Raises:
        UnavailableError: It cannot be reached.
    """
    from sqlalchemy import make_url

    from orchestrator.store.opening import upgrade as migrate

    if not configured.database_url:
        configured.home.mkdir(parents=True, exist_ok=True)
    migrate(configured.store_url)
    return make_url(configured.store_url).render_as_string(hide_password=True)
