"""Publishes numbered messages over one HTTP connection, and knows which were acknowledged."""

import contextlib
import http.client
import json
import threading
import time

TIMEOUT = 5


class Publisher:
    def __init__(self, server, topic):
        self.server, self.topic = server, topic
        self.connection = None
        self.next = 0
        self.acknowledged = []

    def publish(self, fill=""):
        """True if the server says that it has the message."""
        number, self.next = self.next, self.next + 1
        data = {"n": number, "fill": fill} if fill else {"n": number}
        path, headers, body = self.server.publication(self.topic, data)
        try:
            self.connection = self.connection or http.client.HTTPConnection(
                "127.0.0.1", self.server.port, timeout=TIMEOUT
            )
            self.connection.request("POST", path, body, headers)
            answer = self.connection.getresponse()
            is_stored = self.server.is_stored(answer.status, answer.read())
        except (OSError, http.client.HTTPException):
            self.connection, is_stored = None, False
        if is_stored:
            self.acknowledged.append(number)
        return is_stored

    @contextlib.contextmanager
    def steadily(self, rate):
        """Publishes this many messages a second in the background."""
        ended = threading.Event()

        def publish():
            due = time.monotonic()
            while not ended.is_set():
                self.publish()
                due = max(due + 1 / rate, time.monotonic() - 1)
                ended.wait(max(0, due - time.monotonic()))

        thread = threading.Thread(target=publish, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def encoded(data):
    return json.dumps(data, separators=(",", ":")).encode()
