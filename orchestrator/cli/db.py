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


def upgrade_store(configured: "Settings") -> str:
    """Migrate the store.

    Returns:
        Its URL, without the password.

    Raises:
        UnavailableError: It cannot be reached.
    """
    from sqlalchemy import make_url

    from orchestrator.store.sql import upgrade as migrate

    if not configured.database_url:
        configured.home.mkdir(parents=True, exist_ok=True)
    migrate(configured.store_url)
    return make_url(configured.store_url).render_as_string(hide_password=True)
