"""Messages of users with a grant: too many topics, keys and bytes."""

import json

from attacks.bodies import NDJSON


async def publish(attacker, elements):
    body = "".join(json.dumps(element) + "\n" for element in elements).encode()
    answer = json.loads(await attacker.ask("POST", "/publish", NDJSON, body, attacker.user()) or "[]")
    answer = answer if isinstance(answer, list) else []
    attacker.count("stored", sum("id" in each for each in answer))


async def topic_flood(attacker):
    """Publishes each message to a new topic."""
    await publish(attacker, [{"topic": "rooms." + attacker.random.randbytes(100).hex(), "data": 0} for _ in range(2000)])


async def key_flood(attacker):
    """Uses a new idempotency key for each message."""
    await publish(attacker, [{"topic": "rooms.1", "data": 0, "idempotency_key": attacker.random.randbytes(120).hex()}
                             for _ in range(2000)])


async def message_flood(attacker):
    """Publishes large messages to a few topics, so that others are evicted."""
    await publish(attacker, [{"topic": f"rooms.{attacker.random.randrange(50)}", "data": "a" * 20_000}
                             for _ in range(200)])
