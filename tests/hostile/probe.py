"""Asks /health/live every 100 ms at the public listener, each time on a new connection, as an orchestrator does."""

import asyncio
import time

import readers
import wire
from honest import Latency
from process import received
from server import HOST


def probe(pipe, server):
    """Says how long each answer took when the pipe asks for it."""
    asyncio.run(ask_until_told(pipe, server))


async def ask_until_told(pipe, server):
    told = asyncio.create_task(received(pipe))
    latency, failures, asked = Latency(), [], set()
    while not told.done():
        task = asyncio.create_task(ask(server, latency, failures))
        asked.add(task)
        task.add_done_callback(asked.discard)
        await asyncio.sleep(.1)
    await asyncio.gather(*asked)
    pipe.send({"latency": latency, "failures": failures})


async def ask(server, latency, failures):
    began = time.time()
    try:
        status = await asyncio.wait_for(answer(server), 30)
    except (OSError, asyncio.IncompleteReadError) as fault:
        status = type(fault).__name__
    latency.note_since(began)
    if status != 200:
        failures.append((int(time.time()), str(status)))


async def answer(server):
    reader, writer = await asyncio.open_connection(HOST, server["plain"])
    try:
        writer.write(wire.request("GET", "/health/live", ["Connection: close"]))
        return (await readers.answer_head(reader))[0]
    finally:
        writer.close()
