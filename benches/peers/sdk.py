"""Centrifugo's client library for JavaScript, in a Node of its own."""

import json
import os
import subprocess

from readers import Reader


class Sdk(Reader):
    """`ended` is the reason for which the library gave its subscription up for good."""

    def __init__(self, port, topic, options):
        super().__init__()
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sdk.mjs")
        url = f"ws://127.0.0.1:{port}/connection/websocket"
        self.command = ["node", script, os.path.abspath(options.modules), url, topic]
        self.ended = None

    def read(self):
        self.child = subprocess.Popen(self.command, stdout=subprocess.PIPE)
        for line in self.child.stdout:
            event = json.loads(line)
            if event["type"] == "message":
                self.take(json.dumps(event["data"], separators=(",", ":")).encode())
            elif event["type"] == "subscribed":
                self.told += event["wasRecovering"] and not event["recovered"]
                self.is_open.set()
            elif event["type"] == "unsubscribed":
                self.told += 1
                self.ended = f"{event['code']} {event['reason']}"

    def end(self):
        self.child.kill()
        self.child.wait()
