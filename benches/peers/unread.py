"""Readers that ask for all that is retained, and read nothing."""

import contextlib
import time

from crowd import ask
from processes import folder
from publisher import Publisher

TOPIC = "unread"
READERS, MESSAGES, BYTES = 100, 300, 60_000
WATCHED_S = 10


def unread(peer, options):
    with folder() as place, peer(options, place, history=MESSAGES) as server:
        publisher = Publisher(server, TOPIC)
        for _ in range(MESSAGES):
            if not publisher.publish("z" * BYTES):
                raise SystemExit(f"{peer.name} refuses a message")
        time.sleep(2)
        before, cpu_s = server.memory_kib(), server.cpu_s()
        path = server.history(TOPIC)
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(ask(server.port, "SSE", path)) for _ in range(READERS)]
            peak, deadline = before, time.monotonic() + WATCHED_S
            while time.monotonic() < deadline:
                peak = max(peak, server.memory_kib())
                time.sleep(0.05)
            cpu_s = server.cpu_s() - cpu_s
            heads = [reader.recv(12) for reader in readers]
        # A server may drop a reader that takes nothing before it has sent a byte.
        if not set(heads) <= {b"HTTP/1.1 200", b""}:
            raise SystemExit(f"{peer.name} answers {set(heads)}")
        dropped = f", {heads.count(b'')} dropped" if b"" in heads else ""
        return f"{(peak - before) / 1024:.0f} MiB, {cpu_s:.1f} s of processor time{dropped}"
