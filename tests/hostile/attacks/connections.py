"""Connections of HTTP/1.1: too many, silent, slow, with huge heads, and with the words of a proxy."""

import asyncio
import socket
import struct

import readers
import wire
from attacker import count_held, hold
from server import KEY, PROXY


async def connection_flood(attacker):
    """Opens connections and closes them at once, half of them by a reset."""
    for _ in range(100):
        connection = await attacker.open()
        if attacker.random.random() < .5:
            connection.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


async def silent_connections(attacker):
    """Opens many connections that send nothing, or only the beginning of something."""
    async def begin():
        connection = await attacker.open()
        connection.write(attacker.random.choice(
            [b"", b"G", b"GET /health/live HTTP/1.1\r\nHost: a\r\n", wire.PREFACE[:10], wire.PREFACE]))
        return connection

    await hold(attacker, begin, 400)


async def slow_heads(attacker):
    """Sends a head byte by byte."""
    connections = [await attacker.open() for _ in range(10)]
    await asyncio.sleep(1)
    # The server may have refused some of them.
    await count_held(attacker, "connections held", connections)
    connections += [await attacker.open() for _ in range(90)]
    for byte in wire.request("GET", "/topics/news.1", ["X-Slow: " + "a" * 50]):
        for connection in connections:
            if connection.is_open():
                connection.write(bytes([byte]))
                attacker.count("bytes")
        await asyncio.sleep(.5)


async def header_floods(attacker):
    """Sends heads with very many fields, very long ones, or without an end."""
    many = [f"X-{number}: a" for number in range(5000)]
    for fields in (many, ["X: " + "a" * 200_000]):
        await attacker.ask("GET", "/topics/news.1", fields)
    connection = await attacker.open()
    connection.write(b"GET / HTTP/1.1\r\nHost: push.example\r\n")
    while True:
        await connection.flood(b"X-Endless: a\r\n" * 1000)
        attacker.count("fields", 1000)


async def pipelined_requests(attacker):
    """Sends many requests at once and reads only the first answer."""
    connection = await attacker.open(buffer=4096)
    requests = wire.request("GET", "/topics/news.1?after=0&wait=0&limit=1000") * 100
    connection.write(requests)
    status, _ = await readers.answer_head(connection.reader)
    attacker.count(f"answers {status}")
    for _ in range(100):
        await connection.flood(requests)
        attacker.count("requests", 100)


async def guessed_credentials(attacker):
    """Tries keys and tokens: random ones, and those that are nearly right."""
    connection = await attacker.open()
    for _ in range(200):
        right = attacker.user()
        guess = attacker.random.choice([
            attacker.random.randbytes(20).hex(), right[:-4] + "AAAA", right.rpartition(".")[0] + ".", "a." * 1000,
            "rejoin_" + attacker.random.randbytes(20).hex(), KEY[:-1] + "1", KEY[:-1], KEY + "0", KEY.upper()])
        connection.write(wire.request("GET", "/topics/rooms.1?wait=0", wire.bearer(guess)))
        status, head = await readers.answer_head(connection.reader)
        await readers.body(connection.reader, head)
        attacker.count(f"answers {status}")


async def hook_flood(attacker):
    """Shows random cookies in long heads, about which the server asks the backend, and leaves while it asks."""
    for _ in range(50):
        connection = await attacker.open()
        cookie = f"Cookie: session={attacker.random.randbytes(10).hex()}"
        connection.write(wire.request("GET", "/topics/rooms.1", [cookie, "X-Long: " + "a" * 40_000]))
        attacker.count("cookies")
    await connection.discard_some(attacker.random.choice([1, 10]))


async def proxy_garbage(attacker):
    """Comes from the address of the proxy without a whole header of the PROXY protocol."""
    second = b"\r\n\r\n\0\r\nQUIT\n"
    connection = await attacker.open(address=PROXY)
    connection.write(attacker.random.choice([
        attacker.random.randbytes(300), wire.request("GET", "/topics/news.1"), b"PROXY TCP4 1.2.3.4", second,
        b"PROXY TCP4 " + b"1" * 5000, b"PROXY TCP4 1.2.3.4 1.2.3.4 0 99999\r\n",
        second + b"\x21\x11\xff\xff" + bytes(70_000), second + b"\x21\x11\0\4" + bytes(4)]))
    try:
        answer = await connection.reader.read(1)
    except OSError:
        answer = b""
    attacker.count("answers" if answer else "closed without an answer")
