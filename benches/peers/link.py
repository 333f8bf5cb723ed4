"""A TCP path that can be cut: then it accepts and closes, like a balancer without a backend."""

import contextlib
import socket
import threading

CHUNK = 65536


class Link:
    def __init__(self, target_port):
        self.target_port = target_port
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.is_cut = False
        self.open = set()

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.cut()
        self.listener.close()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def cut(self):
        with self.lock:
            self.is_cut = True
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def mend(self):
        self.is_cut = False

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client):
        with client, contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", self.target_port)) as server:
                pair = (client, server)
                with self.lock:
                    if self.is_cut:
                        return
                    self.open.update(pair)
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join()
                with self.lock:
                    self.open.difference_update(pair)


def pump(source, sink):
    with contextlib.suppress(OSError):
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := source.recv(CHUNK):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
