"""Servers, the requests of the suite to them, and the proxies between them and the clients."""

import asyncio, base64, hashlib, hmac, json, os, re, signal, socket, struct

WAIT = re.compile(rb"\nretry: (\d+)\n")


def token(secret, **claims):
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
    signed = part(b'{"alg":"HS256"}') + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.digest(secret.encode(), signed, hashlib.sha256))).decode()


class Server:
    """A rejoin in a process of its own. It keeps its port when it is started again."""

    def __init__(self, program, *flags):
        self.program, self.flags, self.port, self.process = program, flags, 0, None
        self.publishing, self.publisher, self.key = asyncio.Lock(), None, ""

    async def start(self):
        flags = ["--listen", f"127.0.0.1:{self.port}", "--log-format", "json", "--drain-grace", "3s", *self.flags]
        self.process = await asyncio.create_subprocess_exec(
            self.program, *flags, env={}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
        said = b""
        while not (found := re.search(rb'"address":"127\.0\.0\.1:(\d+)"', said)):
            line = await self.process.stderr.readline()
            if not line:
                raise SystemExit(f"the server did not start: {said.decode()}")
            said += line
        self.port = int(found[1])
        self.reading = asyncio.create_task(self.process.stderr.read())
        return self

    async def end(self):
        """Ends it in order: it drains first."""
        self.process.send_signal(signal.SIGTERM)
        await self.process.wait()
        self.publisher = None

    async def kill(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def publish(self, topic, body, kind="text/plain"):
        """Publishes, and returns the id."""
        body = body.encode() if isinstance(body, str) else body
        status, answer = await self.ask("POST", f"/topics/{topic}", body, kind)
        if status != 201:
            raise SystemExit(f"publishing failed: {answer.decode()}")
        return json.loads(answer)["id"]

    async def ask(self, method, path, body=b"", kind="text/plain"):
        """Asks over one connection for all, and returns the status and the body."""
        credential = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{credential}"
                f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n")
        async with self.publishing:
            # The server closes a connection that has been idle for long.
            if self.publisher is None or self.publisher[0].at_eof():
                self.publisher = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.publisher
            writer.write(head.encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            answer = await reader.readexactly(int(length[1]) if length else 0)
        return int(head.split()[1]), answer


class Proxy:
    """Carries the connections of one client. It counts requests, cuts connections and refuses new ones.

    It also shortens the wait that the server asks for, so that ten cuts take seconds and not minutes.
    """

    def __init__(self, server):
        self.server, self.port, self.listener = server, 0, None
        self.asked = self.connected = self.opened = 0
        self.pairs, self.is_silent, self.flowing = set(), False, asyncio.Event()
        self.flowing.set()
        # A client whose handshakes look like those of a page.
        self.is_page = False
        # While it is not set, the client takes nothing after its first frame.
        self.takes = asyncio.Event()
        self.takes.set()
        # True if an answer was compressed.
        self.is_packed = False
        self.changed = lambda: None

    async def listen(self):
        if self.listener is None:
            self.listener = await asyncio.start_server(self.carry, "127.0.0.1", self.port)
            self.port = self.listener.sockets[0].getsockname()[1]

    def refuse(self):
        """Refuses new connections. Those that are open live on."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def cut(self, with_reset=True):
        for writer in [writer for pair in self.pairs for writer in pair]:
            if with_reset and not writer.is_closing():
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()
        self.pairs.clear()

    def hold(self):
        """Cuts every connection, and answers a new one only after `go_on`."""
        self.flowing.clear()
        self.cut()

    def go_on(self):
        self.flowing.set()

    def send(self, data):
        """Sends these bytes to the server, as if the client had."""
        for _, to_server in self.pairs:
            to_server.write(data)

    def silence(self):
        """From here on connections are accepted, and nothing is answered: the client has nothing to do."""
        self.is_silent = True
        self.cut()

    async def carry(self, reader, writer):
        if self.is_silent:
            self.pairs.add((writer,))
            return
        self.connected += 1
        self.changed()
        await self.flowing.wait()
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.server.port)
        except OSError:
            writer.transport.abort()
            return
        if self.listener is None or not self.flowing.is_set():
            # It was accepted before the proxy began to refuse or to hold.
            writer.transport.abort()
            to_server.transport.abort()
            return
        pair = (writer, to_server)
        self.pairs.add(pair)
        try:
            await asyncio.gather(self.up(reader, to_server), self.down(from_server, writer))
        except asyncio.CancelledError:
            # The suite ends.
            pass
        self.pairs.discard(pair)

    async def up(self, reader, writer):
        try:
            while data := await reader.read(65536):
                self.asked += data.count(b" HTTP/1.1\r\n")
                if self.is_page and b" HTTP/1.1\r\n" in data and b"\r\norigin:" not in data.lower():
                    data = data.replace(b"\r\n", b"\r\nOrigin: http://127.0.0.1:%d\r\n" % self.port, 1)
                self.changed()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def down(self, reader, writer):
        seen = b""
        try:
            while data := await reader.read(65536):
                if not seen:
                    self.opened += 1
                # The wait stands at the beginning of a stream.
                if len(seen) < 1000:
                    seen += data
                    self.is_packed |= b"\r\ncontent-encoding: gzip\r\n" in seen
                    data = WAIT.sub(lambda found: b"\nretry: %0*d\n" % (len(found[1]), 50), data, count=1)
                writer.write(data)
                await writer.drain()
                self.changed()
                if b'"type":"open"' in seen:
                    await self.takes.wait()
        except OSError:
            pass
        writer.close()
