"""Rejoin, as a server to compare."""

import subprocess

from processes import Process, free_port
from publisher import encoded
from readers import EventSource


class Rejoin(Process):
    name = "Rejoin"

    def __init__(self, options, folder, history=1000, redis=None, origin=None):
        port = free_port()
        command = [options.rejoin, "--listen", f"127.0.0.1:{port}", "--retain-messages", history]
        # 300 messages of 60 KB are more than the default retains of a topic.
        command += ["--retain-bytes", "64MiB", "--log", redis or "memory"]
        command += ["--allowed-origin", origin] if origin else []
        super().__init__(command, port, folder)

    @staticmethod
    def version(options):
        return subprocess.check_output([options.rejoin, "--version"], text=True).split()[-1]

    def publication(self, topic, data):
        return f"/topics/{topic}", {"content-type": "application/json"}, encoded(data)

    def is_stored(self, status, _):
        return status == 201

    def reader(self, topic, _options):
        return EventSource(self.port, f"/topics/{topic}", is_gap=lambda event: event == "rejoin.gap")

    def event_source(self, topic):
        """The path for a plain `EventSource`, and the name of the event that tells a loss."""
        return f"/topics/{topic}", "rejoin.gap"

    def path(self, _transport, topic, _all=False):
        return f"/topics/{topic}" + ("?after=0" if _all else "")

    def hello(self, _topic):
        return []

    def history(self, topic):
        return self.path("SSE", topic, True)
