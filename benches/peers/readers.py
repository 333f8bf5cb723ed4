"""A reader that reconnects, and notes each message and each notice of a loss."""

import contextlib
import http.client
import re
import threading
import time

RECONNECT_AFTER = 1
NUMBER = re.compile(rb'"n":(\d+)')


class Reader:
    """`given` are the numbers of the messages, in the order in which they came."""

    def __init__(self):
        self.given, self.times, self.told = [], [], 0
        self.is_open = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.read, daemon=True).start()
        if not self.is_open.wait(30):
            raise SystemExit(f"{self} was not served")
        return self

    def __exit__(self, *_):
        self.end()

    def take(self, data):
        for number in NUMBER.findall(data):
            self.given.append(int(number))
            self.times.append(time.monotonic())


class EventSource(Reader):
    """Does what a browser does: it sends the last id when it reconnects."""

    def __init__(self, port, path, is_gap):
        super().__init__()
        self.port, self.path, self.is_gap = port, path, is_gap
        self.has_ended = False
        self.last_id = None

    def end(self):
        self.has_ended = True

    def read(self):
        while not self.has_ended:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.read_stream()
            time.sleep(RECONNECT_AFTER)

    def read_stream(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        headers = {"accept": "text/event-stream"}
        if self.last_id:
            headers["last-event-id"] = self.last_id
        connection.request("GET", self.path, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            return
        self.is_open.set()
        event, data, new_id = None, [], None
        while line := answer.readline():
            field, _, value = line.rstrip(b"\r\n").partition(b": ")
            if field == b"event":
                event = value.decode()
            elif field == b"id":
                new_id = value.decode()
            elif field == b"data":
                data.append(value)
            elif not field and not value:
                self.last_id = new_id or self.last_id
                self.told += event is not None and self.is_gap(event)
                self.take(b"\n".join(data))
                event, data, new_id = None, [], None
