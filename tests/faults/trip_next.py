"""``pay-trip`` as its team has gone on with it: a new version, without the mail."""

from orchestrator.core.definition import Saga
from tests.faults.trip import PAY_TRIP, Bill

PAY_TRIP_2 = Saga(name="pay-trip", version=2, input=Bill, steps=PAY_TRIP.steps[:1])
