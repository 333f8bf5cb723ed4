"""Subscriptions: readers that do not read, that read too much, and that come and go."""

import asyncio
import json

import readers
import wire
from attacks.bodies import JSON
from server import LISTED, token

LARGE = b"a" * 60_000


def body_of(topics, **more):
    return json.dumps({"topics": topics, **more}).encode()


async def slow_readers(attacker):
    """Subscribes on each transport to large messages, which it publishes, and reads nothing of them."""
    credential = attacker.user()
    for number in range(30):
        if number % 3:
            connection = await attacker.open(buffer=4096)
            accept = ["text/event-stream", "application/x-ndjson"][number % 3 - 1]
            connection.write(wire.request("GET", "/topics/rooms.slow?after=0",
                                          [*wire.bearer(credential), f"Accept: {accept}"]))
            status, _ = await readers.answer_head(connection.reader)
            if status != 200:
                raise readers.Refused(status)
        else:
            await attacker.websocket("/events?topic=rooms.slow&topic=news.*&after=0", credential, buffer=4096)
        attacker.count("readers that do not read")
    for _ in range(10):
        await attacker.ask("POST", "/topics/rooms.slow", ["Content-Type: text/plain"], LARGE, credential)
        await asyncio.sleep(1)


async def wide_patterns(attacker):
    """Subscribes to as many patterns as it may, with a start that looks at everything."""
    patterns = ["rooms." + ".".join(attacker.random.choice("a*") for _ in range(17)) + f".{number}.*"
                for number in range(99)] + ["rooms.**"]
    start = attacker.random.choice([{"last": 1}, {"after": "1"}, {"after": "9007199254740990"}, {"since": "1h"}])
    await attacker.ask("POST", "/events", JSON, body_of(patterns, wait=0, **start), attacker.user())
    attacker.count("patterns", len(patterns))


async def many_topics_read(attacker):
    """Reads 10 000 topics on each of many streams."""
    credential = attacker.user()
    for _ in range(10):
        connection = await attacker.open()
        topics = [f"rooms.{attacker.random.randrange(1_000_000)}" for _ in range(10_000)]
        connection.write(wire.request("POST", "/events", [*wire.bearer(credential), *JSON],
                                      body_of(topics, transport="ndjson")))
        status, _ = await readers.answer_head(connection.reader)
        attacker.count(f"answers {status}")
        attacker.count("topics", len(topics))
    await connection.discard_some(10)


async def poll_flood(attacker):
    """Asks for long answers, again and again."""
    for path in ("/topics/news.1?after=0&limit=1000", "/events?topic=news.*&last=1000&wait=0",
                 "/topics/news.2?before=9007199254740991&limit=1000", "/events?topic=news.*&after=1&limit=1000"):
        await attacker.ask("GET", path, ["Accept-Encoding: gzip"])


async def presence_flood(attacker):
    """Comes as a new user, is present in a topic, and leaves, so that each change is told."""
    for _ in range(20):
        user = token(f"guest-{attacker.random.randbytes(10).hex()}")
        connection = await attacker.websocket(f"/topics/rooms.{attacker.random.randrange(LISTED)}?presence", user)
        attacker.count("members")
        connection.close()


async def list_flood(attacker):
    """Reads its list, is present in all topics of it, and leaves."""
    for _ in range(20):
        connection = await attacker.websocket("/events?mine&presence", attacker.user())
        await connection.reader.readuntil(b'"mine":["rooms.')
        attacker.count("lists")
        connection.close()
