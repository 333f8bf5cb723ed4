"""Many readers in one thread: they only count the messages that come."""

import selectors
import socket
import time

# Only a payload has so many of this letter in a row.
MARK = b"x" * 64
PATIENCE = 120
UPGRADE = (
    "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
ACCEPTS = {"WebSocket": UPGRADE, "SSE": "accept: text/event-stream\r\n", "poll": "accept: application/json\r\n"}
# A ping of the protocol, and the empty command that Centrifugo sends instead, each with its answer.
PINGS = {b"\x89\x00": b"\x8a\x80\0\0\0\0", b"\x81\x02{}": b"\x81\x82\0\0\0\0{}"}


def masked(command):
    """A text frame of a client. A mask of zeros changes no byte."""
    length = len(command)
    size = bytes([0x80 | length]) if length < 126 else bytes([0xFE]) + length.to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + command


def ask(port, transport, path):
    """Sends a request, and reads nothing."""
    asking = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    asking.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{ACCEPTS[transport]}\r\n".encode())
    return asking


class Crowd:
    """Readers of one topic, which are all connected. They leave with the block."""

    def __init__(self, server, transport, count, topic):
        self.selector = selectors.DefaultSelector()
        self.counts = {}
        # The end of what came last: a mark may be cut in two.
        self.rests = {}
        self.sockets = []
        for number in range(count):
            self.sockets.append(self.connect(server, transport, topic))
            if number % 100 == 0:
                self.take_what_is_there(0)
        self.take_what_is_there(1)

    def connect(self, server, transport, topic):
        reader = ask(server.port, transport, server.path(transport, topic))
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.received(reader)
        if head.split()[1] not in (b"200", b"101"):
            raise SystemExit(f"{server.name} refuses a reader: {head!r}")
        if transport == "WebSocket":
            for command in server.hello(topic):
                reader.sendall(masked(command))
                self.received(reader)
        reader.setblocking(False)
        self.selector.register(reader, selectors.EVENT_READ)
        self.counts[reader], self.rests[reader] = 0, b""
        return reader

    @staticmethod
    def received(reader):
        data = reader.recv(65536)
        if not data:
            raise SystemExit("the server closed a connection")
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.selector.close()
        for reader in self.sockets:
            reader.close()

    def take(self, messages):
        """Reads until each reader has so many messages in all."""
        missing = sum(count < messages for count in self.counts.values())
        deadline = time.monotonic() + PATIENCE
        while missing:
            if time.monotonic() > deadline:
                raise SystemExit(f"{missing} readers lack messages")
            missing -= self.take_what_is_there(1, messages)

    def take_what_is_there(self, patience, messages=0):
        """Answers pings too. Returns how many readers have so many messages now, and had not before."""
        ready = self.selector.select(patience)
        return sum(self.take_some(key.fileobj, messages) for key, _ in ready)

    def take_some(self, reader, messages):
        """True if this reader has them all now, and had not before."""
        data = self.received(reader)
        for ping, pong in PINGS.items():
            if ping in data:
                reader.send(pong)
        data = self.rests[reader] + data
        had = self.counts[reader]
        self.counts[reader] += data.count(MARK)
        end = data.rfind(MARK)
        self.rests[reader] = data[end + len(MARK) if end >= 0 else 0 :][-len(MARK) :]
        return had < messages <= self.counts[reader]
