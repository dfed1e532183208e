"""With a key ring, what passes by and what is kept can be read by those who have a key, and by nobody else."""

from base64 import b64decode

import msgspec
import redis
from cryptography.fernet import Fernet

from orchestrator.core.state import Status
from shared import names
from tests.faults.stack import ENDED_WITHIN, MakeStack
from tests.waiting import wait_until

ADDRESS = "plain.jane@sealed.example"
KEYS = "SAGA_ENCRYPTION_KEYS"


def test_payloads_are_sealed_in_store_and_messages(make_stack: MakeStack) -> None:
    """A saga is undone over sealed messages; then the key is changed under the store."""
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    stack = make_stack(**{KEYS: old})
    given = f'{{"order_id": "o", "region": "moon", "email": "{ADDRESS}"}}'
    out, err = stack.saga("start", "place-order", "--json", "--input", given).communicate(
        timeout=60
    )
    assert ADDRESS not in err
    with redis.Redis.from_url(stack.settings.broker_url, decode_responses=True) as broker:
        (message,) = broker.lrange("inventory", 0, -1)
    body = b64decode(msgspec.json.decode(message)["body"])
    assert ADDRESS.encode() not in body
    assert names.SEALED.encode() in body
    stack.participants()
    stack.orchestrator()
    saga_id = msgspec.json.decode(out)["saga_id"]

    def status() -> str:
        shown, _ = stack.saga("show", saga_id, "--json").communicate(timeout=60)
        return str(msgspec.json.decode(shown)["status"])

    wait_until(lambda: status() == Status.COMPENSATED, timeout=ENDED_WITHIN.total_seconds())
    stack.stop()
    assert not any(ADDRESS.encode() in path.read_bytes() for path in stack.home.glob("saga.db*"))
    # A new key: the old one opens until everything is sealed with the new one.
    stack.use(**{KEYS: f"{new},{old}"})
    sealed, _ = stack.saga("db", "reseal", "--json").communicate(timeout=60)
    assert msgspec.json.decode(sealed)["rows"] > 10
    stack.use(**{KEYS: new})
    assert status() == Status.COMPENSATED
    stack.use(**{KEYS: old})
    _, err = stack.saga("show", saga_id).communicate(timeout=60)
    assert "encrypted with a key that is not on the ring" in err
