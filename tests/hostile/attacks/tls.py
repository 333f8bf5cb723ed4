"""Handshakes of TLS."""

import wire
from attacker import hold

CONTEXT = wire.tls_context()


async def unfinished_handshakes(attacker):
    """Begins handshakes, wholly or in halves, and never ends them."""
    async def begin():
        hello = wire.client_hello()
        connection = await attacker.open("tls")
        connection.write(hello[:attacker.random.choice([1, 5, 100, len(hello)])])
        return connection

    await hold(attacker, begin, 200)


async def many_handshakes(attacker):
    """Makes handshakes as fast as it can, and sends nothing on them."""
    # Without a pause: the rounds have one between them.
    for _ in range(500):
        connection = await attacker.open("tls", tls=CONTEXT)
        attacker.count("handshakes")
        connection.close()


async def no_handshakes(attacker):
    """Sends garbage, or plain HTTP, to the port that speaks TLS."""
    connection = await attacker.open("tls")
    connection.write(attacker.random.choice([
        attacker.random.randbytes(2000), b"\x16\x03\x01\xff\xff" + attacker.random.randbytes(70_000),
        wire.request("GET", "/")]))
    attacker.count("sent")
    await connection.closed()
    attacker.count("connections that the server closed")
