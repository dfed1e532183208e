"""What all exporters share, of spans, log lines and metrics: who sends, and gRPC beside greenlets."""

import os
import socket
import sys

from shared.telemetry import names
from shared.telemetry.config import TracingConfig
from shared.telemetry.spans import AttributeValue


def resource_attributes(config: TracingConfig) -> dict[str, AttributeValue]:
    """The attributes of the resource that spans and log records of this process belong to."""
    known = {
        names.SERVICE_VERSION: config.service_version,
        names.DEPLOYMENT_ENVIRONMENT: config.environment,
    }
    return {
        **dict(config.resource_attributes),
        names.SERVICE_NAME: config.service_name,
        names.SERVICE_INSTANCE_ID: instance_id(),
        **{key: value for key, value in known.items() if value},
    }


def instance_id() -> str:
    """This process among those of its service, on all machines."""
    return f"{os.getpid()}@{socket.gethostname()}"


def make_grpc_cooperate() -> None:
    """Under gevent, gRPC's waits would block every greenlet of the worker."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        from grpc.experimental.gevent import init_gevent

        init_gevent()
