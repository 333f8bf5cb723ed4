#!/usr/bin/env python3
"""Publishes every Debian package record at full speed to readers that are cut off again and again.

The input is real: `apt-cache dumpavail` has some 60 000 records. The script publishes each as text to
`packages.<Section>`. Meanwhile one reader for each transport, and one that changes its transport at every
reconnect, reads `packages.**`. Each is killed in the middle of what it reads, and resumes from its last cursor.

Mode A retains everything: every reader ends with exactly the input, once and in order.
Mode B retains only the newest records of each topic, and readers also stay away for a while: every record that a
reader missed is inside a gap that the server told it, and in every gap something is missing.

The script needs only Python's standard library. Its clients follow docs/protocol.md and know nothing of the
server's code.
"""

import argparse
import base64
import collections
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.parse

PREFIX = "packages"
PATTERN = f"{PREFIX}.**"

# The ratio of Debian's some 60 000 records to the 1 000 messages of a topic that are retained by default.
RECORDS_PER_RETAINED = 60

# The largest publishing request.
BATCH_BYTES = 300_000

# After each batch, this share of its number of records follows in requests of one record.
SINGLE_SHARE = 0.1

# A held poll must end before its reader gives up.
POLL_WAIT_S = 5

Record = collections.namedtuple("Record", "topic text fingerprint")
Published = collections.namedtuple("Published", "id topic fingerprint")
Gap = collections.namedtuple("Gap", "topic after next")
Outcome = collections.namedtuple("Outcome", "name messages gaps cuts ends failure")


class Failure(Exception):
    """The server broke the protocol or a promise."""


# ---------------------------------------------------------------------------------------------------- the input


def read_records(limit):
    """The records in the order of the archive. With a limit every k-th of them, so that all sections occur."""
    if shutil.which("apt-cache") is None:
        return []
    dump = subprocess.run(["apt-cache", "dumpavail"], stdout=subprocess.PIPE, check=False).stdout
    texts = [text for text in dump.decode("utf-8", "replace").split("\n\n") if text.strip()]
    if limit is not None and limit < len(texts):
        texts = [texts[i * len(texts) // limit] for i in range(limit)]
    return [Record(topic_of(text), text, fingerprint(text)) for text in texts]


def topic_of(text):
    found = re.search(r"^Section:[ \t]*(\S+)", text, re.MULTILINE)
    # `contrib/net` becomes `contrib-net`: one section is one segment.
    section = re.sub(r"[^\w+-]", "-", found.group(1)) if found else "unknown"
    return f"{PREFIX}.{section}"


def fingerprint(text):
    """A short name of a record: unique, and readable for a person."""
    return f"{text.partition(chr(10))[0]} #{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


# -------------------------------------------------------------------------------------------------- the clients


class WebSocket:
    """The client's side of RFC 6455, for text frames."""

    def __init__(self, address, cursor, deadline):
        self.socket = socket.create_connection(address, timeout=patience(deadline))
        self.deadline = deadline
        self.received = bytearray()
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {resource(cursor)} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: rejoin.v1\r\n\r\n".encode()
        )
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            self.receive()
        head = self.received[:end].decode("latin-1")
        del self.received[: end + 4]
        accept = base64.b64encode(
            hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        ).decode()
        if not head.startswith("HTTP/1.1 101") or accept not in head:
            raise Failure(f"the handshake was answered with {head!r}")

    def receive(self):
        self.socket.settimeout(patience(self.deadline))
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server ended the connection")
        self.received += data

    def take(self, count):
        while len(self.received) < count:
            self.receive()
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    def send(self, opcode, payload):
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload)) + mask + masked)

    def batches(self):
        """Lists of frames, each frame with the cursor after it. A list is processed as a whole or not at all."""
        message = b""
        while True:
            first, second = self.take(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", self.take(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self.take(8))
            if second & 0x80 or first & 0x70:
                raise Failure("a frame from the server is masked or has a reserved bit")
            payload = self.take(length)
            opcode = first & 0x0F
            if opcode == 0x9:
                self.send(0xA, payload)
            elif opcode == 0x8:
                return
            elif opcode in (0x0, 0x1):
                message += payload
                if first & 0x80:
                    frame = json.loads(message)
                    message = b""
                    yield [(frame, cursor_of(frame))]
            elif opcode != 0xA:
                raise Failure(f"an unexpected frame with opcode {opcode}")

    def cut(self):
        reset(self.socket)


class Stream:
    """A streaming answer over HTTP: the common part of the two formats."""

    def __init__(self, address, cursor, deadline):
        self.deadline = deadline
        self.connection = http.client.HTTPConnection(*address, timeout=patience(deadline))
        self.connection.connect()
        self.socket = self.connection.sock
        self.response = self.start(cursor)
        if self.response.status != 200 or self.response.headers.get_content_type() != self.content_type:
            raise Failure(f"{self.content_type} was answered with {self.response.status} {self.response.headers}")

    def pieces(self, end):
        """The pieces between the ends. A piece without an end is never given out."""
        rest = b""
        while True:
            self.socket.settimeout(patience(self.deadline))
            data = self.response.read1(65536)
            if not data:
                return
            *whole, rest = (rest + data).split(end)
            yield from whole

    def cut(self):
        reset(self.socket)
        self.response.close()
        self.connection.close()


class ServerSentEvents(Stream):
    content_type = "text/event-stream"

    def start(self, cursor):
        headers = {"Accept": self.content_type}
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        self.connection.request("GET", resource(None), headers=headers)
        return self.connection.getresponse()

    def batches(self):
        for block in self.pieces(b"\n\n"):
            fields = collections.defaultdict(list)
            for line in block.decode().split("\n"):
                name, _, value = line.partition(":")
                fields[name].append(value.removeprefix(" "))
            if not fields["data"] or not fields["id"]:
                raise Failure(f"an event without data or without id: {block!r}")
            frame = json.loads("\n".join(fields["data"]))
            expected = "message" if frame["type"] == "message" else f"rejoin.{frame['type']}"
            if (fields["event"] or ["message"]) != [expected]:
                raise Failure(f"{frame['type']} came as the event {fields['event']}")
            yield [(frame, fields["id"][-1])]


class Lines(Stream):
    content_type = "application/x-ndjson"

    def start(self, cursor):
        self.connection.request("GET", resource(cursor), headers={"Accept": self.content_type})
        return self.connection.getresponse()

    def batches(self):
        for line in self.pieces(b"\n"):
            frame = json.loads(line)
            yield [(frame, cursor_of(frame))]


class LongPoll:
    """Requests on one connection, one after the other."""

    def __init__(self, address, cursor, deadline):
        self.cursor = cursor
        self.deadline = deadline
        self.connection = http.client.HTTPConnection(*address, timeout=patience(deadline))
        self.connection.connect()
        self.socket = self.connection.sock

    def ask(self):
        self.socket.settimeout(patience(self.deadline))
        self.connection.request("GET", resource(self.cursor, limit=500, wait=POLL_WAIT_S))
        return self.connection.getresponse()

    def batches(self):
        while True:
            response = self.ask()
            body = response.read()
            if response.status != 200:
                raise Failure(f"a poll was answered with {response.status} {body!r}")
            answer = json.loads(body)
            self.cursor = answer["cursor"]
            frames = answer.get("gaps", []) + answer["messages"]
            yield [(frame, self.cursor) for frame in frames] or [({"type": "cursor"}, self.cursor)]

    def cut(self):
        """Cuts in the middle of an answer, if one comes at once, and drops the part that has arrived."""
        try:
            self.connection.request("GET", resource(self.cursor, limit=500, wait=POLL_WAIT_S))
            self.socket.settimeout(0.02)
            self.socket.recv(random.randint(1, 2000))
        except (OSError, http.client.HTTPException):
            pass
        reset(self.socket)
        self.connection.close()


TRANSPORTS = {"websocket": WebSocket, "sse": ServerSentEvents, "ndjson": Lines, "long-poll": LongPoll}


def resource(cursor, **options):
    if cursor is not None:
        options["after"] = cursor
    return f"/topics/{PATTERN}" + (f"?{urllib.parse.urlencode(options)}" if options else "")


def cursor_of(frame):
    return frame["id"] if frame["type"] == "message" else frame["cursor"]


def patience(deadline):
    return max(0.001, deadline - time.monotonic())


def reset(sock):
    """Ends the connection with a reset, like a crash."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -------------------------------------------------------------------------------------------------- the readers


class Progress:
    """The state that the publisher and the readers share."""

    def __init__(self, readers):
        self.published = multiprocessing.Value("q", 0)
        self.newest = multiprocessing.Value("q", 0)
        # 0 until everything is published.
        self.last = multiprocessing.Value("q", 0)
        # The position of each reader: the id in its cursor, 0 before the first, -1 while it is away.
        self.positions = multiprocessing.Array("q", readers)


class Reader:
    def __init__(self, index, name, kinds, server, plan, progress, seed):
        self.index, self.name, self.kinds = index, name, kinds
        self.server, self.plan, self.progress = server, plan, progress
        self.random = random.Random(seed + index)
        self.cursor = None
        self.newest = 0
        self.messages, self.gaps = [], []
        self.cuts = self.ends = 0

    def run(self, results):
        failure = None
        try:
            self.read_to_the_end()
        except Failure as broken:
            failure = str(broken)
        except Exception:
            failure = traceback.format_exc()
        results.put(Outcome(self.name, self.messages, self.gaps, self.cuts, self.ends, failure))

    def done(self):
        last = self.progress.last.value
        return last != 0 and self.newest >= last

    def read_to_the_end(self):
        while not self.done():
            if time.monotonic() > self.plan.deadline:
                raise Failure(f"not at the end when the time was over; its cursor is {self.cursor}")
            kind = self.kinds[(self.cuts + self.ends) % len(self.kinds)]
            self.session(TRANSPORTS[kind])
            if not self.done() and self.random.random() < self.plan.absence:
                self.stay_away()

    def session(self, transport):
        """Reads until it is time for a cut: by the clock, or by count if the clock is too slow for the input."""
        deadline = time.monotonic() + self.random.uniform(0.5, 1) * self.plan.life_s
        budget = self.random.randint(1, self.plan.life_messages)
        connection = None
        try:
            connection = transport(self.server.address, self.cursor, deadline)
            for batch in connection.batches():
                for frame, cursor in batch:
                    self.take(frame)
                self.cursor = cursor
                self.progress.positions[self.index] = int(cursor)
                budget -= len(batch)
                if budget <= 0 or self.done() or time.monotonic() > deadline:
                    break
            else:
                self.ends += 1
                return
            self.cuts += 1
        except TimeoutError:
            self.cuts += 1
        except (OSError, http.client.HTTPException):
            self.ends += 1
            time.sleep(0.01)
        finally:
            if connection is not None:
                connection.cut()

    def take(self, frame):
        kind = frame["type"]
        if kind == "message":
            message_id = int(frame["id"])
            if message_id <= self.newest:
                raise Failure(f"{message_id} of {frame['topic']} came after {self.newest}")
            self.newest = message_id
            self.messages.append(Published(message_id, frame["topic"], fingerprint(frame["data"])))
        elif kind == "gap":
            if frame["reason"] != "retention":
                raise Failure(f"nothing but retention forgets here: {frame}")
            if int(frame["after"]) < self.newest:
                raise Failure(f"{self.newest} was given before the gap: {frame}")
            upto = frame["next"] and int(frame["next"])
            self.gaps.append(Gap(frame["topic"], int(frame["after"]), upto))
        elif kind not in ("open", "cursor", "closing"):
            raise Failure(f"an unexpected frame: {frame}")

    def stay_away(self):
        """Waits until so much was published that a topic has lost messages which this reader has not read."""
        self.progress.positions[self.index] = -1
        enough = self.progress.published.value + self.plan.absence_messages
        while self.progress.last.value == 0 and self.progress.published.value < enough:
            if time.monotonic() > self.plan.deadline:
                return
            time.sleep(0.002)


class Plan:
    """When readers are cut, and how long they stay away."""

    def __init__(self, count, absence, deadline):
        self.life_s = 2
        self.life_messages = max(1, count // 8)
        self.absence = absence
        self.absence_messages = count // 8
        self.deadline = deadline


# ------------------------------------------------------------------------------------------------ the publisher


def requests_of(records):
    """Batches of the largest size, and after each of them some requests of one record."""
    upto = min(BATCH_BYTES, sum(len(record.text) for record in records) // 24)
    waiting = collections.deque(records)
    while waiting:
        lines, size = [], 0
        while waiting and size < upto:
            record = waiting.popleft()
            item = {"topic": record.topic, "data": record.text, "content_type": "text/plain"}
            lines.append(json.dumps(item, ensure_ascii=False).encode() + b"\n")
            size += len(lines[-1])
        yield "/publish", b"".join(lines), "application/x-ndjson", len(lines)
        for _ in range(min(len(waiting), int(len(lines) * SINGLE_SHARE))):
            record = waiting.popleft()
            path = f"/topics/{urllib.parse.quote(record.topic, safe='')}"
            yield path, record.text.encode(), "text/plain", 1


def publish(server, requests, records, progress, deadline):
    """Publishes everything in order and returns the ids. `requests` were made beforehand, for speed."""
    connection = http.client.HTTPConnection(*server.address, timeout=patience(deadline))
    ids = []
    # Readers in Python fall behind at once. After each wave one of them can catch up, so that the test covers live
    # messages, and the change from the log to live messages, as much as replay.
    wave = max(1, len(records) // 16)
    for path, body, content_type, count in requests:
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status not in (200, 201):
            raise Failure(f"publishing was answered with {response.status} {answer}")
        answers = answer if isinstance(answer, list) else [answer]
        expected = [record.topic for record in records[len(ids) : len(ids) + count]]
        if [one.get("topic") for one in answers] != expected:
            raise Failure(f"not every record was accepted in its place: {str(answers)[:500]}")
        before = len(ids)
        ids += [int(one["id"]) for one in answers]
        progress.newest.value = ids[-1]
        progress.published.value = len(ids)
        if before // wave != len(ids) // wave:
            wait_for_one_reader(progress)
    if any(earlier >= later for earlier, later in zip(ids, ids[1:])):
        raise Failure("the ids do not grow strictly")
    progress.last.value = ids[-1]
    return [Published(id_, record.topic, record.fingerprint) for id_, record in zip(ids, records)]


def wait_for_one_reader(progress):
    until = time.monotonic() + 2
    while time.monotonic() < until:
        here = [position for position in progress.positions if position >= 0]
        if not here or max(here) >= progress.newest.value:
            return
        time.sleep(0.002)


# --------------------------------------------------------------------------------------------------- the server


class Server:
    def __init__(self, binary, options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = free.getsockname()
        self.log = tempfile.TemporaryFile()
        listen = f"{self.address[0]}:{self.address[1]}"
        self.process = subprocess.Popen(
            [binary, "--listen", listen, *options], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL
        )

    def __enter__(self):
        until = time.monotonic() + 10
        while time.monotonic() < until and self.process.poll() is None:
            try:
                socket.create_connection(self.address, timeout=1).close()
                return self
            except OSError:
                time.sleep(0.01)
        self.__exit__()
        raise Failure(f"the server does not listen; it said:\n{self.said()}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def said(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-4000:]


# --------------------------------------------------------------------------------------------------- the checks


def check_everything(outcome, published):
    """Checks that the reader got exactly the input, once and in order."""
    if outcome.gaps:
        raise Failure(f"{len(outcome.gaps)} gaps without cause; the first: {outcome.gaps[0]}")
    for expected, received in zip(published, outcome.messages):
        if expected != received:
            raise Failure(f"expected {expected} and received {received}")
    if len(outcome.messages) != len(published):
        raise Failure(f"{len(outcome.messages)} received of {len(published)} published")


def check_gaps(outcome, published):
    """Returns how many records are missing. Each must be inside a gap."""
    known = set(published)
    foreign = [message for message in outcome.messages if message not in known]
    if foreign:
        raise Failure(f"{len(foreign)} received and never published so; the first: {foreign[0]}")
    missing = known.difference(outcome.messages)

    gaps_of = collections.defaultdict(set)
    for gap in outcome.gaps:
        gaps_of[gap.topic].add(gap)

    def inside(message, gap):
        return gap.after < message.id and (gap.next is None or message.id < gap.next)

    with_missing = set()
    for message in missing:
        told = [gap for gap in gaps_of[message.topic] | gaps_of[PATTERN] if inside(message, gap)]
        if not told:
            raise Failure(f"{message} is missing outside of every gap; {len(missing)} are missing in all")
        with_missing.update(told)
    for message in outcome.messages:
        for gap in gaps_of[message.topic]:
            if inside(message, gap) and gap.next is not None:
                raise Failure(f"{gap} was told, but {message} inside it was sent")
    for gap in outcome.gaps:
        if gap not in with_missing:
            raise Failure(f"{gap} was told, but nothing inside it is missing")
    return len(missing)


# ------------------------------------------------------------------------------------------------------- a mode


def run_mode(title, binary, options, records, absence, seed, deadline):
    """Runs one mode and prints its table. Returns the failures and the number of gaps."""
    requests = list(requests_of(records))
    kinds = {name: [name] for name in TRANSPORTS} | {"changing": list(TRANSPORTS)}
    progress = Progress(len(kinds))
    plan = Plan(len(records), absence, deadline)
    results = multiprocessing.SimpleQueue()
    failures = []
    gaps = 0
    begun = time.monotonic()
    with Server(binary, options) as server:
        readers = [
            Reader(index, name, kinds_of, server, plan, progress, seed)
            for index, (name, kinds_of) in enumerate(kinds.items())
        ]
        processes = [
            multiprocessing.Process(target=reader.run, args=(results,), daemon=True) for reader in readers
        ]
        for process in processes:
            process.start()
        try:
            # No reader may miss the beginning: publishing starts when every reader has its first cursor.
            while not all(progress.positions):
                if server.process.poll() is not None or time.monotonic() > deadline:
                    raise Failure("not every reader was given a cursor")
                if not results.empty():
                    raise Failure(f"a reader stopped before it began: {results.get().failure}")
                time.sleep(0.002)
            start = time.monotonic()
            published = publish(server, requests, records, progress, deadline)
            took = time.monotonic() - start
            outcomes = {}
            while len(outcomes) < len(readers):
                if results.empty():
                    if time.monotonic() > deadline + 5:
                        raise Failure(f"no word from {set(kinds) - set(outcomes)}")
                    time.sleep(0.002)
                else:
                    outcome = results.get()
                    outcomes[outcome.name] = outcome
        except Failure as failure:
            return [f"{title}: {failure}\n{server.said()}"], 0
        except (OSError, http.client.HTTPException) as broken:
            return [f"{title}: the server cannot be reached: {broken!r}\n{server.said()}"], 0
        finally:
            for process in processes:
                process.kill()

    topics = len({record.topic for record in records})
    print(f"\n{title}: {len(records)} records, {topics} topics, {' '.join(options) or 'as it comes'}")
    print(f"published in {took:.1f} s, read in {time.monotonic() - begun:.1f} s")
    print(f"{'reader':<12}{'received':>10}{'cuts':>7}{'ended':>7}{'gaps':>7}{'missing in gaps':>17}")
    for name in kinds:
        outcome = outcomes[name]
        missing = "-"
        try:
            if outcome.failure:
                raise Failure(outcome.failure)
            if absence:
                missing = check_gaps(outcome, published)
            else:
                check_everything(outcome, published)
                missing = 0
            if len(records) >= 100 and outcome.cuts < 3:
                raise Failure(f"cut {outcome.cuts} times only, which proves little")
        except Failure as failure:
            failures.append(f"{title}, {name}: {failure}")
        gaps += len(outcome.gaps)
        print(
            f"{name:<12}{len(outcome.messages):>10}{outcome.cuts:>7}{outcome.ends:>7}"
            f"{len(outcome.gaps):>7}{missing:>17}",
            flush=True,
        )
    return failures, gaps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="BINARY", help="the binary of rejoin to start")
    parser.add_argument("--limit", type=int, metavar="N", help="only N records, spread over all of them")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the cuts and absences")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="for each of the two modes")
    arguments = parser.parse_args()

    records = read_records(arguments.limit)
    if not records:
        print("SKIPPED: `apt-cache dumpavail` is missing or gives nothing, so there is no real input", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    print(f"seed {arguments.seed}")

    everything = ["--retain-messages", str(len(records)), "--retain-age", "24h"]
    everything += ["--retain-bytes", str(1 << 30), "--retain-total", str(1 << 31)]
    few = []
    if arguments.limit is not None:
        few = ["--retain-messages", str(max(5, len(records) // RECORDS_PER_RETAINED))]

    failures = []
    for title, options, absence in [("mode A", everything, 0), ("mode B", few, 0.5)]:
        deadline = time.monotonic() + arguments.timeout
        broken, gaps = run_mode(
            title, arguments.server, options, records, absence, arguments.seed, deadline
        )
        failures += broken
        if absence and not broken and gaps == 0:
            failures.append(f"{title}: no gap was told, so this run tested nothing")
    for failure in failures:
        print(f"\nFAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    # So that the server is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
