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
    started = stack.run("start", "place-order", "--json", "--input", given)
    assert ADDRESS not in started.stderr
    with redis.Redis.from_url(stack.settings.broker_url, decode_responses=True) as broker:
        (message,) = broker.lrange("inventory", 0, -1)
    body = b64decode(msgspec.json.decode(message)["body"])
    assert ADDRESS.encode() not in body
    assert names.SEALED.encode() in body
    stack.participants()
    stack.orchestrator()
    saga_id = msgspec.json.decode(started.stdout)["saga_id"]

    def status() -> str:
        return str(msgspec.json.decode(stack.run("show", saga_id, "--json").stdout)["status"])

    wait_until(lambda: status() == Status.COMPENSATED, timeout=ENDED_WITHIN.total_seconds())
    stack.stop()
    assert not any(ADDRESS.encode() in path.read_bytes() for path in stack.home.glob("saga.db*"))
    # A new key: the old one opens until everything is sealed with the new one.
    stack.use(**{KEYS: f"{new},{old}"})
    assert msgspec.json.decode(stack.run("db", "reseal", "--json").stdout)["rows"] > 10
    stack.use(**{KEYS: new})
    assert status() == Status.COMPENSATED
    stack.use(**{KEYS: old})
    unreadable = stack.run("show", saga_id)
    assert "encrypted with a key that is not on the ring" in unreadable.stderr
