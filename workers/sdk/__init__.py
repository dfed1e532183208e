"""The SDK for services that take part in sagas.

`Participant` registers step functions with a barrier against duplicates; `install` turns the
unmodified tasks of an existing Celery app into steps.
"""

from workers.sdk.context import StepContext
from workers.sdk.install import install
from workers.sdk.outcome import Fail, Later, Reject, StepResult
from workers.sdk.participant import Participant

__all__ = ["Fail", "Later", "Participant", "Reject", "StepContext", "StepResult", "install"]
