"""With a key ring, what passes by and what is kept can be read by those who have a key, and by nobody else."""

from base64 import b64decode

import msgspec
import redis

from orchestrator.core.state import Status
from shared import names
from tests.faults.stack import ENDED_WITHIN, MakeStack
from tests.waiting import wait_until

ADDRESS = "ada@example.org"
KEYS = "SAGA_ENCRYPTION_KEYS"
DOCUMENT = "docs/encryption.md"


def test_payloads_are_sealed_in_store_and_messages(make_stack: MakeStack) -> None:
    """A saga over sealed messages; then the key is changed under the store: as the guide has it."""
    stack = make_stack()
    with stack.session() as session:
        session.play(DOCUMENT, "Encrypted payloads")
        with redis.Redis.from_url(stack.settings.broker_url, decode_responses=True) as broker:
            (message,) = broker.lrange("inventory", 0, -1)
        body = b64decode(msgspec.json.decode(message)["body"])
        assert ADDRESS.encode() not in body
        assert names.SEALED.encode() in body
        _, key = session.type(f'echo "${KEYS}"')
        stack.use(**{KEYS: key.strip()})
        stack.participants()
        stack.orchestrator()
        wait_until(
            lambda: Status.COMPLETED in stack.run("list", "--key", "o-1", "--json").stdout,
            timeout=ENDED_WITHIN.total_seconds(),
        )
        stack.stop()
        for path in stack.home.glob("saga.db*"):
            assert ADDRESS.encode() not in path.read_bytes()
        session.play(DOCUMENT, "Change the key")
