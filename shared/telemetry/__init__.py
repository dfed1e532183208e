"""Traces, logs and metrics: one package, one vocabulary.

`setup` and the modules that export import the OpenTelemetry SDK; everything else uses its API.
"""

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
