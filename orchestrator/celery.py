"""``celery -A orchestrator worker``: an orchestrator that Celery's own tools can see.

The coordinator runs in a thread of the worker, started by a bootstep; the worker around it answers
``celery inspect ping``, handles signals and runs under any process supervisor. It executes no
tasks, so its pool is ``solo``.
"""

import sys
import threading
from typing import Any, Final

import structlog
from celery import Celery, bootsteps
from celery.worker import state as worker_state
from typing_extensions import override

from orchestrator.bootstrap import make_celery, make_coordinator
from orchestrator.coordinator import Coordinator, Dependency
from shared.errors import SagaError
from shared.settings import settings

EXIT_SOFTWARE: Final = 70
"""An error that nobody has foreseen; the supervisor starts the worker again."""

STOP_SECONDS_MAX: Final = 10

log = structlog.stdlib.get_logger(__name__)


class CoordinatorStep(bootsteps.StartStopStep):
    """Runs a coordinator for as long as the worker runs."""

    @override
    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._worker = parent
        self._app: Celery[Any] = parent.app
        self._stopping = threading.Event()
        self._coordinator: Coordinator | None = None
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)

    @override
    def start(self, parent: Any) -> None:
        self._thread.start()

    @override
    def stop(self, parent: Any) -> None:
        self._stopping.set()
        if self._coordinator:
            self._coordinator.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS_MAX)

    @override
    def terminate(self, parent: Any) -> None:
        self.stop(parent)

    def _run(self) -> None:
        try:
            self._coordinator = self._made()
            if self._coordinator and not self._stopping.is_set():
                self._coordinator.run()
        except SagaError as error:
            log.critical("coordinator.cannot_run", error=str(error))
            if settings().log_dir and not settings().log_stdout and sys.__stderr__:
                # The line above is in a file: whoever looks at the terminal sees a worker that ends.
                sys.__stderr__.write(f"error: {error}\n")
            self._end(error.exit_code)
        except BaseException:
            # A thread that dies in silence would leave a worker that does nothing.
            log.critical("coordinator.died", exc_info=True)
            self._end(EXIT_SOFTWARE)

    def _end(self, exit_code: int) -> None:
        """Make the worker end; Celery itself would exit with 0."""
        self._worker.exitcode = exit_code
        worker_state.should_terminate = True  # type: ignore[assignment]  # the stubs say None

    def _made(self) -> Coordinator | None:
        """A coordinator, as soon as its store can be reached."""
        made: list[Coordinator] = []
        store = Dependency("store", self._stopping)
        while not (made or self._stopping.is_set()):
            store.attempt(lambda: made.append(make_coordinator(settings(), self._app)))
        return made[0] if made else None


app = make_celery(settings)
app.add_defaults(lambda: {"worker_pool": "solo"})
app.steps["worker"].add(CoordinatorStep)
