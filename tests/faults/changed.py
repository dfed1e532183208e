"""``place-order`` as somebody has changed it without a new version."""

from datetime import timedelta

import msgspec

from orchestrator.sagas import place_order

_FIRST, *_OTHERS = place_order.PLACE_ORDER.steps

CHANGED = msgspec.structs.replace(
    place_order.PLACE_ORDER,
    steps=(msgspec.structs.replace(_FIRST, timeout=timedelta(seconds=7)), *_OTHERS),
)
