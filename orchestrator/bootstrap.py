"""The only place that picks real adapters: settings in, a client, a reader or a coordinator out."""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.catalog import Catalog
from orchestrator.client import Client
from orchestrator.coordinator import Coordinator
from orchestrator.core.definition import Saga
from orchestrator.core.limits import Bounds, Limits
from orchestrator.engine import Engine
from orchestrator.reader import Reader
from orchestrator.store.opening import open_store
from orchestrator.store.sql import SqlStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.absent import AbsentTransport
from shared.claims import claims_of
from shared.clock import utc_now
from shared.errors import ConfigurationError, DecodeError
from shared.names import ORCHESTRATOR_QUEUE
from shared.sealing import ring
from shared.settings import Settings
from shared.telemetry.names import messaging_system

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.ports import Store, Transport

SERVICE = "orchestrator"

ABSENT = "memory://"
"""Broker URL where there is no broker."""


def import_from_here() -> None:
    """Look for modules in the current folder, too.

    `celery -A` does so for the app alone, and takes the folder back before a worker starts.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def load_sagas(modules: Iterable[str]) -> list[Saga]:
    """Every `Saga` at the top level of these modules.

    Raises:
        ConfigurationError: A module cannot be imported, or holds no saga.
    """
    import_from_here()
    found: dict[int, Saga] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ConfigurationError(
                f"SAGA_DEFINITIONS names the module {name!r}, which cannot be imported: {error}.",
                hint="It is looked for in the installed packages and in the current folder.",
            ) from error
        sagas = {id(value): value for value in vars(module).values() if isinstance(value, Saga)}
        if not sagas:
            raise ConfigurationError(
                f"SAGA_DEFINITIONS names the module {name!r}, which has no Saga at its top level.",
                hint="Assign each one to a name: PLACE_ORDER = Saga(...).",
            )
        found |= sagas
    return list(found.values())


def make_celery(settings: Callable[[], Settings]) -> "Celery[Any]":
    """The orchestrator's own Celery app; the settings are read when it needs them."""
    # Celery and its client of Redis take as long to load as all the rest: not for who only reads.
    from shared.celery_app import make_app

    return make_app(SERVICE, service=SERVICE, settings=settings, default_queue=ORCHESTRATOR_QUEUE)


def make_store(settings: Settings) -> SqlStore:
    """The store; the embedded one is created where it does not exist.

    Raises:
        UnavailableError: It cannot be reached.
        ConfigurationError: Its schema is of another version; says how to upgrade.
    """
    return open_store(settings.store_url, create=not settings.database_url)


def make_engine(settings: Settings, app: "Celery[Any] | None" = None) -> Engine:
    """An engine on the real store and broker.

    Raises:
        ConfigurationError: A setting is wrong; names it.
        DefinitionError: A definition has mistakes.
        UnavailableError: The store cannot be reached.
    """
    from orchestrator.transport.celery import CeleryTransport

    catalog = Catalog(load_sagas(settings.definitions), _bounds(settings))
    transport = CeleryTransport(
        app or make_celery(lambda: settings), events=sorted(catalog.events())
    )
    engine = _engine(settings, catalog, transport, messaging_system(settings.celery_broker_url))
    _require_the_keys(engine.store)
    return engine


def _require_the_keys(store: "Store") -> None:
    """Refuse to write with keys that are not those of the store.

    Every other process would have to open what this one seals: a single saga that the orchestrators
    cannot read ends them, whenever they start.
    """
    if not ring().seals:
        return
    newest = [one.saga_id for one in store.list_sagas(limit=1)]
    try:
        store.load(newest)
    except DecodeError as error:
        store.close()
        raise ConfigurationError(
            f"SAGA_ENCRYPTION_KEYS does not open what is in the store, such as saga {newest[0]}.",
            hint="Give this process the keys that the others have. Nothing was done.",
        ) from error


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        steps_max=settings.steps_max,
        branches_max=settings.branches_max,
        items_max=settings.items_max,
    )


def make_client(settings: Settings) -> Client:
    """A client; raises as `make_engine`."""
    return Client(make_engine(settings))


def make_reader(settings: Settings) -> Reader:
    """A reader: it works without a broker; raises as `make_engine`."""
    try:
        broker_url = settings.celery_broker_url
    except ConfigurationError:
        broker_url = ABSENT
    catalog = Catalog(load_sagas(settings.definitions), _bounds(settings))
    return Reader(_engine(settings, catalog, AbsentTransport(), messaging_system(broker_url)))


def _engine(settings: Settings, catalog: Catalog, transport: "Transport", system: str) -> Engine:
    return Engine(
        store=make_store(settings),
        transport=transport,
        catalog=catalog,
        tracing=SagaTracing(system=system, clock=utc_now),
        clock=utc_now,
        payload_bytes_max=settings.payload_bytes_max,
        limits=Limits(
            events_max=settings.history_events_max, in_flight_max=settings.in_flight_max
        ),
        claims=claims_of(settings),
    )


def make_coordinator(settings: Settings, app: "Celery[Any] | None" = None) -> Coordinator:
    """A coordinator whose definitions are in the store.

    Raises:
        SagaError: As `make_engine`.
        DefinitionChanged: A definition differs from the stored copy of the same version.
    """
    engine = make_engine(settings, app)
    engine.catalog.keep(engine.store, utc_now())
    return Coordinator(
        engine,
        batch_messages_max=settings.batch_messages_max,
        republish_after=settings.republish_after,
    )
