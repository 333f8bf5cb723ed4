#!/usr/bin/env python3
"""Counts the server's instructions for a publish, and for a delivery on each transport.

    cargo build --profile dist --features dist
    benches/instructions.py [--server PATH] [--subscribers N] [--messages N] [--burst N] [--tls]

It needs valgrind, and Python's standard library. The server runs in `valgrind --tool=callgrind`, on one core.
The counts are nearly the same on a busy machine, so they show a difference that a measured time hides.
They leave out the kernel, and a cache that misses costs nothing in them.

With --burst, so many messages are published by one POST /publish, and the next burst follows once all of them have been
read: then many messages are in flight at a time. A burst has no polls, which would be answered in pieces.

Each figure is the least of some rounds, because a task that runs once a second falls into some of them.
"""

import argparse
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time

TOPIC = "bench"
# Of 100 bytes; only the payload has so many of this letter in a row.
PAYLOAD = json.dumps({"fill": "x" * 88}).encode()
MARK = b"x" * 64
ROUNDS = 3
PATIENCE = 120
PAIR = os.path.join(os.path.dirname(__file__), "../tests/support/tls")

STREAMS = {
    "WebSocket": "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "SSE": "accept: text/event-stream\r\n",
    "NDJSON": "accept: application/x-ndjson\r\n",
}


class Server:
    """A server in valgrind. It ends with the block."""

    def __init__(self, program, tls=False):
        self.folder = tempfile.TemporaryDirectory(prefix="rejoin-instructions-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        valgrind = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={self.folder.name}/out"]
        pair = ["--tls-cert", f"{PAIR}/certificate.pem", "--tls-key", f"{PAIR}/key.pem"] if tls else []
        core = min(os.sched_getaffinity(0))
        self.child = subprocess.Popen(
            valgrind + [program, "--listen", f"127.0.0.1:{self.port}"] + pair,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def __enter__(self):
        deadline = time.monotonic() + PATIENCE
        while self.child.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
                return self
            except OSError:
                time.sleep(0.1)
        self.__exit__()
        sys.exit("the server did not start in valgrind")

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        self.folder.cleanup()

    def instructions(self, work):
        """The instructions of all threads of the server while `work` runs."""
        # Let the server come to rest first.
        time.sleep(0.3)
        self.control("--zero")
        work()
        before = set(os.listdir(self.folder.name))
        self.control("--dump")
        (dump,) = set(os.listdir(self.folder.name)) - before
        with open(os.path.join(self.folder.name, dump), encoding="utf-8", errors="replace") as file:
            return int(re.search(r"^(?:summary|totals): (\d+)", file.read(), re.MULTILINE)[1])

    def control(self, what):
        command = ["callgrind_control", what, str(self.child.pid)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


class Connection:
    # How connections are encrypted, if they are.
    tls = None

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if Connection.tls:
            self.socket = Connection.tls.wrap_socket(self.socket, server_hostname="localhost")
        self.inbox = b""

    def ask(self, method, path, headers="", body=b""):
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.socket.sendall(f"{head}\r\n".encode() + body)

    def read_until(self, is_there):
        while not is_there(self.inbox):
            data = self.socket.recv(65536)
            if not data:
                sys.exit("the server closed a connection")
            self.inbox += data

    def head(self):
        self.read_until(lambda inbox: b"\r\n\r\n" in inbox)
        head, self.inbox = self.inbox.split(b"\r\n\r\n", 1)
        return head

    def answer(self, status):
        head = self.head()
        if not head.startswith(f"HTTP/1.1 {status} ".encode()):
            sys.exit(f"expected {status}: {head!r}")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        self.read_until(lambda inbox: len(inbox) >= length)
        body, self.inbox = self.inbox[:length], self.inbox[length:]
        return json.loads(body)

    def publish(self, burst=1):
        if burst == 1:
            self.ask("POST", f"/topics/{TOPIC}", body=PAYLOAD)
            self.answer(201)
            return
        self.ask("POST", "/publish", body=json.dumps([{"topic": TOPIC, "data": json.loads(PAYLOAD)}] * burst).encode())
        if len(self.answer(200)) != burst:
            sys.exit("a message of the burst was not published")


class Stream(Connection):
    """A subscriber on a connection that stays open."""

    def __init__(self, port, headers):
        super().__init__(port)
        self.ask("GET", f"/topics/{TOPIC}", headers)
        self.head()

    def take(self, burst):
        self.read_until(lambda inbox: inbox.count(MARK) >= burst)
        if self.inbox.count(MARK) > burst:
            sys.exit("a message came twice")
        self.inbox = b""


class Poller(Connection):
    """A subscriber that asks again after each answer."""

    def __init__(self, port):
        super().__init__(port)
        self.ask("GET", f"/topics/{TOPIC}?wait=0", "accept: application/json\r\n")
        self.wait(self.answer(200))

    def wait(self, last):
        path = f"/topics/{TOPIC}?after={last['cursor']}&wait=60"
        self.ask("GET", path, "accept: application/json\r\n")

    def take(self, _):
        answer = self.answer(200)
        if len(answer["messages"]) != 1:
            sys.exit(f"expected one message: {answer}")
        self.wait(answer)


def least_of_a_publish(server, publisher, subscribers, messages, burst):
    """The instructions for one message: its publish, and its delivery to all subscribers."""
    bursts = -(-messages // burst)

    def work():
        for _ in range(bursts):
            publisher.publish(burst)
            for subscriber in subscribers:
                subscriber.take(burst)

    # The first messages touch memory for the first time.
    work()
    return min(server.instructions(work) for _ in range(ROUNDS)) / (bursts * burst)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--server", default="target/dist/rejoin", help="path of the server")
    arguments.add_argument("--subscribers", type=int, default=100, help="subscribers of one transport")
    arguments.add_argument("--messages", type=int, default=50, help="messages of each round")
    arguments.add_argument("--burst", type=int, default=1, help="messages that are in flight at a time")
    arguments.add_argument("--tls", action="store_true", help="measure TLS")
    arguments = arguments.parse_args()
    if arguments.tls:
        Connection.tls = ssl.create_default_context(cafile=f"{PAIR}/certificate.pem")
    kinds = {name: lambda port, headers=headers: Stream(port, headers) for name, headers in STREAMS.items()}
    if arguments.burst == 1:
        kinds["long-poll"] = Poller

    with Server(arguments.server, arguments.tls) as server:
        publisher = Connection(server.port)
        alone = least_of_a_publish(server, publisher, [], 10 * arguments.messages, arguments.burst)
    print(f"{'publish':<10} {alone:>8.0f} instructions a message", flush=True)
    for name, connect in kinds.items():
        with Server(arguments.server, arguments.tls) as server:
            publisher = Connection(server.port)
            subscribers = [connect(server.port) for _ in range(arguments.subscribers)]
            together = least_of_a_publish(server, publisher, subscribers, arguments.messages, arguments.burst)
        each = (together - alone) / arguments.subscribers
        print(f"{name:<10} {each:>8.0f} instructions a delivery", flush=True)


if __name__ == "__main__":
    main()
