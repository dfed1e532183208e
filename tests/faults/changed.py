"""``place-order`` as somebody has changed it without a new version."""

from datetime import timedelta

import msgspec

from orchestrator.sagas.place_order import PLACE_ORDER

_FIRST, *_OTHERS = PLACE_ORDER.steps

CHANGED = msgspec.structs.replace(
    PLACE_ORDER,
    steps=(msgspec.structs.replace(_FIRST, timeout=timedelta(seconds=7)), *_OTHERS),
)
