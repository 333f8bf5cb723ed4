"""The base of every attack: connections from addresses of attackers, and counts that prove that it happened."""

import asyncio
import collections
import contextvars
import logging
import os
import random
import socket

import readers
import wire
from honest import raise_descriptors
from process import received
from server import HOST, USERS, token

# A round that neither ends nor is ended by the server is given up, so that the next one begins anew.
ROUND_SECONDS = 60

TOKENS = [token(user) for user in USERS]
HTTP2_OVER_TLS = wire.tls_context(["h2"])


class Attacker:
    """One kind of attack: what it opens is closed with its round, and what it does is counted."""

    def __init__(self, server, seed, kind):
        self.server, self.kind = server, kind
        self.random = random.Random(f"{seed} {kind}")
        self.done = collections.Counter()

    def count(self, what, more=1):
        self.done[what] += more

    def user(self):
        return self.random.choice(TOKENS)

    async def open(self, port="plain", tls=None, buffer=None, address=None):
        """A connection from some address of the attackers, or from this one."""
        address = address or f"127.0.1.{self.random.randint(1, 40)}"
        async with asyncio.timeout(20):
            connection = Connection(*await asyncio.open_connection(
                HOST, self.server[port], local_addr=(address, 0), limit=buffer or 1 << 16,
                ssl=tls, server_hostname="push.example" if tls else None))
        if buffer:
            connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.count("connections")
        ROUND.get().append(connection)
        return connection

    async def http2(self, settings=(), is_tls=False):
        connection = await (self.open("tls", tls=HTTP2_OVER_TLS) if is_tls else self.open())
        connection.write(wire.PREFACE + wire.settings(settings))
        # The server speaks HTTP/2 once its SETTINGS are there.
        while (await readers.http2_frame(connection.reader))[0] != 4:
            pass
        self.count("HTTP/2 connections")
        return connection

    async def websocket(self, path="/events", credential=None, headers=(), buffer=None):
        connection = await self.open(buffer=buffer)
        connection.write(wire.upgrade(path, [*wire.bearer(credential), *headers]))
        status, head = await readers.answer_head(connection.reader)
        if status != 101:
            raise readers.Refused(status)
        self.count("WebSockets")
        if "permessage-deflate" in head.get("sec-websocket-extensions", ""):
            self.count("WebSockets that compress")
        return connection

    async def ask(self, method, path, headers=(), body=None, credential=None):
        """One request on a connection of its own; the status."""
        connection = await self.open()
        connection.write(wire.request(method, path, [*wire.bearer(credential), *headers], body))
        status, head = await readers.answer_head(connection.reader)
        answer = await readers.body(connection.reader, head)
        self.count(f"answers {status}")
        connection.close()
        return answer


async def hold(attacker, begin, number):
    """Begins many connections, and waits until the server has closed all. Counts the first ones that it has held."""
    connections = []
    for index in range(number):
        connections.append(await begin())
        if index == 10:
            await asyncio.sleep(1)
            await count_held(attacker, "connections held", connections)
    await asyncio.gather(*(each.closed() for each in connections))
    attacker.count("connections that the server closed", number)


async def count_held(attacker, what, connections):
    attacker.count(what, sum(await asyncio.gather(*(each.is_held() for each in connections))))


class Connection:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def is_open(self):
        return not self.writer.transport.is_closing() and not self.reader.at_eof()

    def write(self, data):
        """Fails once the server has closed."""
        if self.writer.transport.is_closing():
            raise ConnectionResetError
        self.writer.write(data)

    async def flood(self, data):
        """Sends as fast as the server takes it."""
        self.write(data)
        await self.writer.drain()
        # Without this a server that takes everything would keep this task running alone.
        await asyncio.sleep(0)

    async def discard(self):
        """Reads to the end, and keeps nothing."""
        while await self.reader.read(1 << 16):
            pass

    async def discard_some(self, seconds):
        try:
            async with asyncio.timeout(seconds):
                await self.discard()
        except asyncio.TimeoutError:
            pass

    async def is_held(self):
        """Whether the server has neither answered nor closed."""
        try:
            async with asyncio.timeout(.05):
                await self.reader.read(1)
            return False
        except asyncio.TimeoutError:
            return True
        except OSError:
            return False

    async def closed(self):
        """Waits until the server closes, in whatever way."""
        try:
            await self.discard()
        except OSError:
            pass

    def close(self):
        self.writer.transport.abort()


# The connections of the round that the running task does.
ROUND = contextvars.ContextVar("round")


def attack(pipe, server, attacks, seed):
    """A process: it takes lists of attacks with a number of seconds, and says what each has done."""
    raise_descriptors()
    # The attackers are elsewhere: they take no processor from the server and from the honest clients.
    os.nice(15)
    # It warns of each connection that the server has cut.
    logging.getLogger("asyncio").disabled = True
    asyncio.run(serve(pipe, server, attacks, seed))


async def serve(pipe, server, attacks, seed):
    while True:
        wave, kinds, seconds, tasks_each = await received(pipe)
        attackers = [Attacker(server, f"{seed} {wave}", kind) for kind in kinds]
        tasks = [asyncio.create_task(rounds(attacks[each.kind], each)) for each in attackers for _ in range(tasks_each)]
        # An attack that has a fault of its own ends the run.
        ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in ended:
            task.result()
        while tasks:
            for task in tasks:
                task.cancel()
            ended, tasks = await asyncio.wait(tasks, timeout=1)
            for task in ended:
                task.cancelled() or task.result()
        pipe.send({each.kind: each.done for each in attackers})


async def rounds(function, attacker):
    """Does the attack again and again."""
    while True:
        connections = []
        ROUND.set(connections)
        try:
            # `wait_for` of Python 3.11 may pass over a cancellation, and then the attack goes on in later waves.
            async with asyncio.timeout(ROUND_SECONDS):
                await function(attacker)
        except asyncio.TimeoutError:
            attacker.count("rounds without an end")
        except readers.Refused as refused:
            attacker.count(f"answers {refused.args[0]}")
        except (OSError, EOFError, ValueError):
            attacker.count("rounds that the server ended")
        finally:
            for connection in connections:
                connection.close()
        await asyncio.sleep(.02)
