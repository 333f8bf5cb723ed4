#!/usr/bin/env python3
"""Compares compressed readers with plain ones: the server's processor time and the bytes for each delivery.

    cargo build --release
    benches/compression.py [--server PATH] [--readers N] [--bytes N]

The messages are JSON, as long as --bytes says, and no two are the same. The server runs on one core and the readers on
another. Each cell is the least of three rounds, in turns: plain, compressed, plain, and so on.
"""

import argparse
import json
import os
import random
import selectors
import socket
import ssl
import subprocess
import time

ROUNDS = 3
WORDS = "chair table lamp rug oak pine wool blue green paid open sent Berlin Paris Oslo north south".split()
HEADS = {
    "SSE": ("accept: text/event-stream\r\n", "accept-encoding: gzip\r\n"),
    "WebSocket": (
        "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "sec-websocket-extensions: permessage-deflate\r\n",
    ),
}


def message(length):
    """A JSON object of about this length."""
    lines = []
    while len(json.dumps(lines)) < length - 30:
        lines.append({"sku": f"A-{random.randrange(10**6)}", "name": " ".join(random.sample(WORDS, 2)),
                      "price": round(random.uniform(1, 500), 2), "quantity": random.randrange(9)})
    return {"order": random.randrange(10**9), "lines": lines}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Server:
    """A server on these cores, which listens in clear text, and with `flags`."""

    def __init__(self, program, cores, *flags):
        self.port = free_port()
        self.child = subprocess.Popen(
            [program, "--listen", f"http://127.0.0.1:{self.port}", "--log-level", "off", *flags],
            preexec_fn=lambda: os.sched_setaffinity(0, cores))
        while self.child.poll() is None:
            try:
                self.publisher = socket.create_connection(("127.0.0.1", self.port))
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"{program} ended at once")

    def cpu(self):
        """Processor time so far, in seconds."""
        # The system's number for the clock of another process: see clock_getcpuclockid(3). It counts nanoseconds.
        return time.clock_gettime((~self.child.pid << 3) | 2)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port))

    def publish(self, messages):
        body = "".join(json.dumps(message) + "\n" for message in messages).encode()
        self.publisher.sendall(b"POST /publish HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n"
                               b"content-length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.publisher.recv(1 << 16)
        head, rest = answer.split(b"\r\n\r\n", 1)
        assert b" 200 " in head, head
        if b"chunked" in head:
            while not rest.endswith(b"0\r\n\r\n"):
                rest += self.publisher.recv(1 << 16)
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += self.publisher.recv(1 << 16)


class Readers:
    """Connections that only count what comes."""

    def __init__(self, connect, transport, is_compressed, topics):
        self.selector = selectors.DefaultSelector()
        self.sockets = []
        for topic in topics:
            one = connect()
            head, asks = HEADS[transport]
            one.sendall(f"GET /topics/{topic} HTTP/1.1\r\nhost: localhost\r\n{head}{asks if is_compressed else ''}\r\n".encode())
            one.setblocking(False)
            self.selector.register(one, selectors.EVENT_READ)
            self.sockets.append(one)
        self.settle()

    def settle(self):
        """Reads until nothing has come for a while. The number of bytes."""
        total, quiet = 0, time.monotonic()
        while time.monotonic() - quiet < 0.3:
            for key, _ in self.selector.select(0.05):
                try:
                    total += len(key.fileobj.recv(1 << 20))
                except ssl.SSLWantReadError:
                    # A part of a record, or a ticket.
                    continue
                quiet = time.monotonic()
        return total

    def close(self):
        for one in self.sockets:
            one.close()


def measure(server, connect, transport, is_compressed, topics, batches, copies):
    """Microseconds of the server and bytes, for each delivery. Publishing is in them."""
    readers = Readers(connect, transport, is_compressed, topics)
    before, bytes_read = server.cpu(), 0
    for batch in batches:
        server.publish(batch)
        bytes_read += readers.settle()
    cpu = server.cpu() - before
    readers.close()
    time.sleep(0.3)
    deliveries = copies * sum(map(len, batches))
    return cpu * 1e6 / deliveries, bytes_read / deliveries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="target/release/rejoin")
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=1024)
    options = parser.parse_args()
    random.seed(1)
    cores = sorted(os.sched_getaffinity(0))
    server = Server(options.server, cores[:1], "--compress", "all")
    os.sched_setaffinity(0, {cores[-1]})
    count = options.readers
    one, many = ["bench"] * count, [f"bench.{number}" for number in range(count)]
    data = [message(options.bytes) for _ in range(100)]
    burst = [[{"topic": "bench", "data": each} for each in data]]
    single = [[{"topic": "bench", "data": each}] for each in data[:20]]
    apart = [[{"topic": topic, "data": data[number % 100]} for number, topic in enumerate(many)]] * 10
    print("| readers | messages | | µs of the server | bytes | |\n|---|---|---|---|---|---|")
    try:
        for transport in HEADS:
            for name, topics, batches, copies in [
                (f"{count} of one topic", one, burst, count),
                (f"{count} of one topic", one, single, count),
                (f"{count} of a topic each", many, apart, 1),
            ]:
                rounds = [[measure(server, server.connect, transport, is_compressed, topics, batches, copies)
                           for is_compressed in (False, True)] for _ in range(ROUNDS)]
                plain, packed = (tuple(min(each[which][part] for each in rounds) for part in (0, 1)) for which in (0, 1))
                kind = {"100": "100 at once", "1": "20, one by one"}.get(str(len(batches[0])), "10 each")
                print(f"| {transport}, {name} | {kind} | plain → compressed | {plain[0]:.2f} → {packed[0]:.2f} "
                      f"| {plain[1]:.0f} → {packed[1]:.0f} | {packed[1] / plain[1]:.0%} |", flush=True)
    finally:
        server.child.terminate()
        server.child.wait()


if __name__ == "__main__":
    main()
