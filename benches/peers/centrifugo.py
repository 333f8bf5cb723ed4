"""Centrifugo, with its own client library where a client has to recover."""

import json
import os
import subprocess
import urllib.parse
import urllib.request

from processes import Process, free_port
from publisher import encoded
from sdk import Sdk


class Centrifugo(Process):
    name = "Centrifugo"

    def __init__(self, options, folder, history=1000, redis=None, origin=None):
        port = free_port()
        config = {
            "http_server": {"address": "127.0.0.1", "port": port},
            "client": {
                "insecure": True,
                "allowed_origins": [origin] if origin else [],
                # A crowd of readers may answer a ping late.
                "ping_interval": "100s",
                "pong_timeout": "60s",
            },
            "http_api": {"insecure": True},
            "usage_stats": {"disabled": True},
            "uni_sse": {"enabled": True},
            "channel": {
                "without_namespace": {
                    "history_size": history,
                    "history_ttl": "1h",
                    "force_recovery": True,
                }
            },
        }
        if redis:
            config["engine"] = {"type": "redis", "redis": {"address": redis}}
        path = os.path.join(folder, "config.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        super().__init__([options.centrifugo, "-c", path], port, folder)

    @staticmethod
    def version(options):
        said = subprocess.check_output(["go", "version", "-m", options.centrifugo], text=True)
        return next(line.split()[2] for line in said.splitlines() if line.split()[:1] == ["mod"])

    def publication(self, topic, data):
        body = encoded({"channel": topic, "data": data})
        return "/api/publish", {"content-type": "application/json"}, body

    def is_stored(self, status, body):
        return status == 200 and "result" in json.loads(body)

    def reader(self, topic, options):
        return Sdk(self.port, topic, options)

    def event_source(self, topic):
        return uni_sse({topic: {}}), "none"

    def path(self, transport, topic, _all=False):
        return "/connection/websocket" if transport == "WebSocket" else uni_sse({topic: {}})

    def hello(self, topic):
        """The commands with which a WebSocket begins."""
        return [b'{"id":1,"connect":{}}', encoded({"id": 2, "subscribe": {"channel": topic}})]

    def history(self, topic):
        """The path for all messages that are retained."""
        body = encoded({"channel": topic, "limit": 0})
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/history", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            epoch = json.load(answer)["result"]["epoch"]
        return uni_sse({topic: {"recover": True, "epoch": epoch, "offset": 0}})


def uni_sse(subscriptions):
    connect = json.dumps({"subs": subscriptions}, separators=(",", ":"))
    return "/connection/uni_sse?cf_connect=" + urllib.parse.quote(connect)
