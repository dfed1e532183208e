"""Traces and logs: one package, one vocabulary. `setup` alone imports the OpenTelemetry SDK."""

import importlib
import os

_PROPAGATORS = "OTEL_PROPAGATORS"

if os.environ.get(_PROPAGATORS):
    # The API reads this variable when it is imported, and raises for a name that it does not know.
    # Ours is what counts (`propagation`), and it says better what is wrong (`config`).
    _given = os.environ.pop(_PROPAGATORS)
    try:
        importlib.import_module("opentelemetry.propagate")
    finally:
        os.environ[_PROPAGATORS] = _given
