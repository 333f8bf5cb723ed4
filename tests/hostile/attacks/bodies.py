"""Bodies: slow, without an end, full of mistakes, and such that become very long."""

import asyncio
import gzip
import zlib

import readers
import wire
from attacker import count_held

JSON = ["Content-Type: application/json"]
NDJSON = ["Content-Type: application/x-ndjson"]
BOMB = gzip.compress(bytes(64 << 20), 9)
LINES = gzip.compress(b'{"topic":"rooms.1","data":"' + b"a" * 1000 + b'"}\n' * 50_000, 9)


def begin(path, size, credential, headers=NDJSON):
    return wire.request("POST", path, [*wire.bearer(credential), *headers, f"Content-Length: {size}"])


async def slow_bodies(attacker):
    """Begins bodies, and sends a byte of each now and then."""
    connections = []
    for number in range(100):
        if number == 10:
            await asyncio.sleep(1)
            # A request that the server has refused is closed or answered.
            await count_held(attacker, "bodies held", connections)
        connections.append(await attacker.open())
        path = attacker.random.choice(["/publish", "/topics/rooms.1", "/events"])
        kind = JSON if path == "/events" else NDJSON
        connections[-1].write(begin(path, 200_000, attacker.user(), kind) + b'{"topic":"rooms.1","data":"'
                              + b"a" * attacker.random.choice([1, 1000, 100_000]))
    for _ in range(40):
        for connection in connections:
            if connection.is_open():
                connection.write(b"a")
                attacker.count("bytes")
        await asyncio.sleep(1)


async def endless_bodies(attacker):
    """Sends on and on after the refusal."""
    connection = await attacker.open()
    connection.write(begin("/topics/news.1", 1 << 40, None))
    await note_answer(attacker, connection)
    while True:
        await connection.flood(bytes(1 << 16))
        attacker.count("KiB", 64)


async def garbage_batches(attacker):
    """Sends lists in which each element is a mistake, and whose answer is longer than they are."""
    garbage = [b"x\n", b"{}\n", b'{"topic":"*","data":0}\n', b"[" * 5000 + b"\n", b'{"topic":"news.1","data":0}\n',
               attacker.random.randbytes(100).replace(b"\n", b"") + b"\n"]
    line = attacker.random.choice(garbage)
    connection = await attacker.open()
    connection.write(begin("/publish", 1 << 30, attacker.random.choice([attacker.user(), None])))
    answer = asyncio.ensure_future(note_answer(attacker, connection))
    try:
        while True:
            await connection.flood(line * (50_000 // len(line)))
            attacker.count("elements", 50_000 // len(line))
    finally:
        answer.cancel()


async def note_answer(attacker, connection):
    status, _ = await readers.answer_head(connection.reader)
    attacker.count(f"answers {status}")


async def compressed_bombs(attacker):
    """Sends short bodies that become very long."""
    coding = "Content-Encoding: gzip"
    credential = attacker.user()
    for path, body, kind in [("/topics/rooms.1", BOMB, "text/plain"), ("/publish", BOMB, "application/x-ndjson"),
                             ("/publish", LINES, "application/x-ndjson"), ("/events", BOMB, "application/json")]:
        await attacker.ask("POST", path, [f"Content-Type: {kind}", coding], body, credential)
        attacker.count("bombs")
    await attacker.ask("POST", "/publish", [*NDJSON, "Content-Encoding: deflate"],
                       zlib.compress(b"x\n" * 1_000_000), credential)
