"""Commands and frames of WebSockets."""

import json
import zlib

import wire


def deflated(data):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


BOMB = deflated(b'{"type":"publish","topic":"rooms.1","data":"' + b"a" * (64 << 20) + b'"}')
LONG = deflated(b'{"type":"ping","ref":"' + b"a" * 60_000 + b'"}')
DEFLATE = ["Sec-WebSocket-Extensions: permessage-deflate"]


def command(**fields):
    return wire.websocket(1, json.dumps(fields).encode())


async def half_commands(attacker):
    """Sends the beginning of commands, holds it, and answers nothing."""
    for _ in range(50):
        connection = await attacker.websocket(credential=attacker.user())
        size = attacker.random.choice([10, 60_000, 1_000_000])
        connection.write(wire.websocket(1, b'{"type":"publish","topic":"rooms.1","data":"' + b"a" * size, first=0))
        attacker.count("half commands")
    await connection.discard_some(40)


async def command_flood(attacker):
    """Sends commands as fast as the server takes them, and reads few answers."""
    connection = await attacker.websocket(credential=attacker.user())
    while True:
        number = attacker.random.randrange(20_000)
        some = attacker.random.choice([
            command(type="subscribe", topic=f"rooms.{number}", last=10), command(type="subscribe", topic="rooms.*"),
            command(type="unsubscribe", topic=f"rooms.{number}"), command(type="ping", ref="a" * 1000),
            command(type="publish", topic=f"rooms.{number % 50}", data="a" * 100), command(type="auth", token="a.b.c"),
            command(type="subscribe", topic="rooms.**", after="1"), wire.websocket(1, b"{" * 1000)])
        await connection.flood(some * 20)
        attacker.count("commands", 20)
        if attacker.random.random() < .2:
            await connection.discard_some(.01)


async def large_commands(attacker):
    """Sends commands of megabytes, and frames that only claim to be long."""
    connection = await attacker.websocket(credential=attacker.random.choice([attacker.user(), None]))
    for _ in range(20):
        await connection.flood(wire.websocket(1, b'{"type":"publish","data":"' + b"a" * 1_000_000 + b'"}'))
        attacker.count("MiB")
    connection.write(b"\x81\xff" + b"\x7f" * 8 + b"\0\0\0\0")
    await connection.discard_some(2)


async def control_flood(attacker):
    """Sends pings, pongs and empty fragments, and reads nothing."""
    connection = await attacker.websocket("/topics/news.1", buffer=4096)
    if attacker.random.random() < .5:
        connection.write(wire.websocket(1, b"{", first=0))
    some = attacker.random.choice([wire.websocket(9, b"a" * 125), wire.websocket(10), wire.websocket(0, first=0)])
    while True:
        await connection.flood(some * 100)
        attacker.count("frames", 100)


async def command_bombs(attacker):
    """Sends compressed commands that become very long, and many that become long."""
    connection = await attacker.websocket(credential=attacker.user(), headers=DEFLATE)
    for _ in range(100):
        await connection.flood(wire.websocket(1, LONG, first=0xC0) * 5)
        attacker.count("commands of 60 kB", 5)
        await connection.discard_some(.01)
    connection.write(wire.websocket(1, BOMB, first=0xC0))
    attacker.count("bombs")
    await connection.discard_some(5)
