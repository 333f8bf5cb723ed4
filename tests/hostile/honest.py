"""Honest clients: subscribers that check what they get, and publishers. Each function with a pipe is a process."""

import array
import asyncio
import collections
import json
import random
import resource
import time

import readers
import wire
from ledger import Ledger
from process import received
from server import HOST, KEY, token

TOPICS = [f"news.{number}" for number in range(20)]

# The refusals after which a publisher sends a message again.
AGAIN = ["overloaded", "rate_limited", "unavailable", "timed_out"]

# The server sends something at least every 25 s.
SILENCE = 60


class Subscriber:
    def __init__(self, number, server, chance):
        self.number = number
        self.transport = readers.TRANSPORTS[number % 4]
        self.is_tls = chance.random() < .25
        self.port = server["tls"] if self.is_tls else server["plain"]
        # Ten subscribers have one address.
        self.address = f"127.0.2.{number // 10 % 250 + 1}"
        self.credential = token(f"reader-{number}") if chance.random() < .25 else None
        # Some read everything, by a pattern.
        self.topics = ["news.*"] if chance.random() < .02 else chance.sample(TOPICS, chance.randint(1, 3))
        self.ledger = Ledger(TOPICS if self.topics == ["news.*"] else self.topics)
        self.cursor, self.spoke, self.writer = None, time.monotonic(), None
        self.ends = self.refusals = self.received = 0

    def name(self):
        return self.number, self.transport.__name__

    async def run(self, latency):
        while True:
            try:
                await self.listen(latency)
                self.ends += 1
            except readers.Refused:
                self.refusals += 1
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self.ends += 1
            finally:
                if self.writer:
                    self.writer.transport.abort()
            await asyncio.sleep(random.uniform(.5, 3))

    async def listen(self, latency):
        context = wire.tls_context() if self.is_tls else None
        self.spoke = time.monotonic()
        self.ledger.connect()
        reader, self.writer = await asyncio.wait_for(
            asyncio.open_connection(HOST, self.port, local_addr=(self.address, 0), ssl=context), 20)
        async for frame in self.transport(reader, self.writer, self.topics, self.cursor, self.credential):
            self.spoke = time.monotonic()
            if frame["type"] == "message":
                if self.ledger.message(frame["topic"], frame["data"]["n"], int(frame["id"])):
                    latency.note_since(made_at(frame["id"]))
                self.received += 1
                # The id of a message is also the cursor.
                frame["cursor"] = frame["id"]
            elif frame["type"] == "gap":
                self.ledger.gap(frame["topic"], frame["after"], frame["next"], frame["cursor"], frame["reason"],
                                int(time.time()))
            # The cursor of a poll counts once all of its page is noted.
            if self.transport is not readers.poll or frame["type"] == "cursor":
                self.cursor = frame.get("cursor") or self.cursor


def made_at(message):
    """When the server made this id, in seconds since 1970: ids follow the clock, in microseconds."""
    return int(message) / 1e6


class Latency:
    """How often each latency came, in milliseconds, and the worst one of what began in each second."""

    def __init__(self):
        self.counts, self.worst = collections.Counter(), {}

    def note_since(self, began):
        self.note(time.time() - began, int(began))

    def note(self, seconds, second):
        milliseconds = max(0, int(seconds * 1000))
        self.counts[milliseconds] += 1
        if milliseconds > self.worst.get(second, -1):
            self.worst[second] = milliseconds


def raise_descriptors():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def subscribers(pipe, server, numbers, seed):
    """Says when all are subscribed. Takes the ids of all that was published, and says what was lost."""
    raise_descriptors()
    asyncio.run(subscribe(pipe, server, numbers, seed))


async def subscribe(pipe, server, numbers, seed):
    latency, pauses = Latency(), Latency()
    everybody = [Subscriber(number, server, random.Random(f"{seed} {number}")) for number in numbers]
    tasks = [asyncio.create_task(each.run(latency)) for each in everybody]
    tasks += [asyncio.create_task(cut_the_silent(everybody)), asyncio.create_task(own_pauses(pauses))]
    while any(each.cursor is None for each in everybody):
        await asyncio.sleep(.1)
        for task in tasks:
            # A task that ends has failed: they all run until the end.
            task.done() and task.result()
    pipe.send("subscribed")
    published = {topic: array.array("q", map(int, ids)) for topic, ids in (await received(pipe, tasks)).items()}
    patience = time.monotonic() + 60
    while time.monotonic() < patience and any(each.ledger.is_behind(published) for each in everybody):
        await asyncio.sleep(.1)
    for task in tasks:
        task.cancel()
    by_transport = collections.Counter({transport.__name__: 0 for transport in readers.TRANSPORTS})
    for each in everybody:
        by_transport[each.transport.__name__] += each.received
    pipe.send({
        "received": by_transport,
        "lost": [(*each.name(), *it) for each in everybody for it in each.ledger.lost(published)],
        "wrong": [(*each.name(), *it) for each in everybody for it in each.ledger.wrong(published)],
        "twice": sum(each.ledger.twice for each in everybody),
        "backwards": sum(each.ledger.backwards for each in everybody),
        "excused": [(*each.name(), *it) for each in everybody for it in each.ledger.excused(published)],
        "gaps": sum((each.ledger.reasons for each in everybody), collections.Counter()),
        "ends": sum(each.ends for each in everybody), "refusals": sum(each.refusals for each in everybody),
        "latency": latency, "pauses": pauses})


async def cut_the_silent(everybody):
    while True:
        await asyncio.sleep(5)
        for each in everybody:
            if each.writer and time.monotonic() - each.spoke > SILENCE:
                each.writer.transport.abort()


async def own_pauses(pauses):
    """How late this process itself is: the latencies contain it."""
    while True:
        began = time.time()
        await asyncio.sleep(.02)
        pauses.note(time.time() - began - .02, int(began))


def publishers(pipe, server, rate, seed):
    """Publishes until the pipe says stop; then it sends the ids of each topic, and its seconds."""
    asyncio.run(publish(pipe, server, rate, seed))


async def publish(pipe, server, rate, seed):
    published = {topic: [] for topic in TOPICS}
    tries, closed, latency, stop = collections.Counter(), [], Latency(), asyncio.Event()
    tasks = [asyncio.create_task(publish_to(topic, ids, server, rate / len(TOPICS), tries, closed, latency, stop,
                                            random.Random(f"{seed} {topic}"))) for topic, ids in published.items()]
    began = time.monotonic()
    await received(pipe, tasks)
    # Each one ends between two messages, so that the ids of all that are stored are known.
    stop.set()
    await asyncio.gather(*tasks)
    pipe.send((published, {"seconds": time.monotonic() - began, "tries": tries, "closed": closed, "latency": latency}))


async def publish_to(topic, ids, server, rate, tries, closed, latency, stop, chance):
    """Publishes to one topic, one message or a few at a time, each again until it is stored."""
    reader = writer = None
    size = chance.choice([1, 1, 4])
    while not stop.is_set():
        await asyncio.sleep(chance.uniform(.5, 1.5) * size / rate)
        batch = [element(topic, len(ids) + 1 + more, chance) for more in range(size)]
        began = time.time()
        while batch:
            stored = []
            try:
                # While most places are taken, the server keeps an idle connection for a short time only.
                if writer and reader.at_eof():
                    closed.append(int(time.time()))
                    writer = None
                if writer is None:
                    reader, writer = await asyncio.wait_for(asyncio.open_connection(HOST, server["plain"]), 20)
                stored = await asyncio.wait_for(send(reader, writer, batch), 60)
                tries["requests"] += 1
            except (OSError, ValueError, asyncio.IncompleteReadError) as fault:
                tries[f"connection lost ({type(fault).__name__})"] += 1
                writer = None
            ids += stored
            batch = batch[len(stored):]
            if batch:
                tries["tried again"] += 1
                await asyncio.sleep(.5)
        latency.note_since(began)


def element(topic, number, chance):
    return {"topic": topic, "idempotency_key": f"{topic}-{number}",
            "data": {"n": number, "pad": "x" * min(int(chance.paretovariate(1) * 20), 20_000)}}


async def send(reader, writer, batch):
    """Sends the messages in one request, in order; the ids of those that were stored."""
    body = "".join(json.dumps(each) + "\n" for each in batch).encode()
    writer.write(wire.request("POST", "/publish?ordered", [
        *wire.bearer(KEY), "Content-Type: application/x-ndjson"], body))
    status, head = await readers.answer_head(reader)
    answer = json.loads(await readers.body(reader, head) or "[]")
    answers = answer if status == 200 else [answer]
    for each in answers:
        if each and each.get("code", "overloaded") not in AGAIN:
            raise RuntimeError(f"an honest publisher is refused: {each}")
    return [each["id"] for each in answers if "id" in each]
