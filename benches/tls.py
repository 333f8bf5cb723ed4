#!/usr/bin/env python3
"""Compares readers over TLS with plain ones: the server's processor time for each delivery, the memory of an idle
connection, and the latency of a reader beside a flood of handshakes that nobody finishes.

    cargo build --release
    benches/tls.py [--server PATH] [--readers N] [--idle N] [--seconds N]

The messages are JSON of 100 bytes. For deliveries and memory the server runs on one core and the readers on another; in the
flood both share all cores. Deliveries are the least and the most of two rounds, in turns: plain, TLS, plain, TLS.
"""

import argparse
import multiprocessing
import os
import socket
import ssl
import statistics
import struct
import time

from compression import HEADS, Readers, Server, free_port, measure

PAIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/support/tls")
DATA = {"fill": "x" * 88}
ROUNDS = 2


class Both(Server):
    """A server that listens in clear text, and over TLS beside it."""

    def __init__(self, program, cores):
        self.tls_port = free_port()
        self.trusting = ssl.create_default_context(cafile=f"{PAIR}/certificate.pem")
        super().__init__(program, cores, "--listen", f"127.0.0.1:{self.tls_port}", "--tls-cert",
                         f"{PAIR}/certificate.pem", "--tls-key", f"{PAIR}/key.pem")

    def connect_by_tls(self):
        tcp = socket.create_connection(("127.0.0.1", self.tls_port))
        return self.trusting.wrap_socket(tcp, server_hostname="localhost")

    def resident_bytes(self):
        with open(f"/proc/{self.child.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self):
        self.child.terminate()
        self.child.wait()


def deliveries(program, cores, readers):
    server = Both(program, cores[:1])
    os.sched_setaffinity(0, cores[-1:])
    one = {"topic": "bench", "data": DATA}
    try:
        for transport in HEADS:
            for name, batches in [("20, one by one", [[one]] * 20), ("100 at once", [[one] * 100])]:
                rounds = [[measure(server, connect, transport, False, ["bench"] * readers, batches, readers)[0]
                           for connect in (server.connect, server.connect_by_tls)] for _ in range(ROUNDS)]
                plain, tls = (sorted(each) for each in zip(*rounds))
                print(f"| {readers} {transport}, {name} | {plain[0]:.2f} and {plain[-1]:.2f} µs "
                      f"| {tls[0]:.2f} and {tls[-1]:.2f} µs |", flush=True)
    finally:
        server.end()
        os.sched_setaffinity(0, cores)


def idle(program, cores, count):
    for transport in HEADS:
        kib = []
        for connect in (Both.connect, Both.connect_by_tls):
            # A new server each time, because memory that was freed is used again.
            server = Both(program, cores[:1])
            try:
                # The first connections touch memory for the first time.
                warm = Readers(lambda: connect(server), transport, False, ["warm"] * 50)
                before = server.resident_bytes()
                readers = Readers(lambda: connect(server), transport, False, ["bench"] * count)
                kib.append((server.resident_bytes() - before) / count / 1024)
                readers.close()
                warm.close()
            finally:
                server.end()
        print(f"| an idle {transport}, {count} of them | {kib[0]:.1f} KiB | {kib[1]:.1f} KiB |", flush=True)


def flood(port, hello, count, ends):
    """Sends the beginning of a handshake, waits for the answer, and goes."""
    while not ends.is_set():
        one = socket.create_connection(("127.0.0.1", port))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.sendall(hello)
        if one.recv(1):
            with count.get_lock():
                count.value += 1
        one.close()


def hello_of(context):
    outgoing = ssl.MemoryBIO()
    handshake = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        handshake.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()


def latencies(server, reader, seconds):
    """Milliseconds from the publish to the reader: the median, and the 99th percentile."""
    heard, found, until = b"", [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        text = f"{began:.9f}"
        server.publish([{"topic": "bench", "data": text}])
        while text.encode() not in heard:
            heard += reader.recv(1 << 16)
        heard = b""
        found.append((time.monotonic() - began) * 1000)
        time.sleep(0.01)
    return statistics.median(found), statistics.quantiles(found, n=100)[-1]


def flooded(program, cores, seconds):
    server = Both(program, cores)
    try:
        reader = server.connect_by_tls()
        reader.sendall(b"GET /topics/bench HTTP/1.1\r\nhost: localhost\r\naccept: application/x-ndjson\r\n\r\n")
        while b'"open"' not in reader.recv(1 << 16):
            pass
        quiet = latencies(server, reader, seconds)
        count, ends = multiprocessing.Value("Q"), multiprocessing.Event()
        floods = [multiprocessing.Process(target=flood, args=(server.tls_port, hello_of(server.trusting), count, ends))
                  for _ in range(2)]
        for one in floods:
            one.start()
        busy = latencies(server, reader, seconds)
        ends.set()
        for one in floods:
            one.join()
        print(f"{count.value / seconds:.0f} handshakes a second: median {quiet[0]:.1f} → {busy[0]:.1f} ms, "
              f"99th percentile {quiet[1]:.1f} → {busy[1]:.1f} ms")
    finally:
        server.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="target/release/rejoin")
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=1500)
    parser.add_argument("--seconds", type=int, default=10, help="of each part of the flood")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    print("| | plain | over TLS |\n|---|---|---|")
    deliveries(options.server, cores, options.readers)
    idle(options.server, cores, options.idle)
    flooded(options.server, cores, options.seconds)


if __name__ == "__main__":
    main()
