"""Whether the payload store takes, gives back and deletes, where one is configured."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from orchestrator.doctor.findings import Code, Finding, good, wrong
from shared.claims import claims_of
from shared.errors import SagaError
from shared.ids import new_saga_id
from shared.settings import Settings

CHECK: Final = "payload store"
_PROBE: Final = b'"saga doctor"'


def check_payload_store(settings: Settings) -> Iterator[Finding]:
    """Write, read and delete a payload; nothing where none is configured."""
    try:
        claims = claims_of(settings)
    except SagaError as error:
        yield wrong(CHECK, Code.SETTING, error.message, error.hint)
        return
    if claims is None:
        return
    saga_id, digest = f"doctor-{new_saga_id()}", sha256(_PROBE).hexdigest()
    try:
        claims.put(saga_id, {digest: _PROBE})
        claims.read(saga_id, digest)
        claims.store.delete(saga_id)
    except SagaError as error:
        yield wrong(
            CHECK,
            Code.PAYLOAD_STORE,
            error.message,
            "Sagas with large payloads do not start, and steps with large results fail until it "
            "can be written, read and deleted from: by every process, in one and the same place.",
        )
        return
    yield good(
        CHECK, f"The payload store {claims.store.shown_url} can be written, read and deleted from."
    )
