"""nchan, a module of nginx."""

import os
import subprocess

from processes import Process, free_port
from publisher import encoded
from readers import EventSource

CONFIG = """
{modules}
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log {folder}/log warn;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    nchan_max_reserved_memory 512m;
    nchan_message_buffer_length {history};
    nchan_message_timeout 1h;
    {upstream}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/pub/(.+)$ {{ nchan_publisher; nchan_channel_id $1; {passes} }}
        location ~ ^/sub/(.+)$ {{ nchan_subscriber; nchan_channel_id $1; nchan_subscriber_first_message newest; {passes} }}
        location ~ ^/all/(.+)$ {{ nchan_subscriber; nchan_channel_id $1; nchan_subscriber_first_message oldest; {passes} }}
    }}
}}
"""


class Nchan(Process):
    name = "nchan"

    def __init__(self, options, folder, history=1000, redis=None, origin=None):
        port = free_port()
        modules = "\n".join(f"load_module {module};" for module in options.nchan)
        upstream = f"upstream store {{ nchan_redis_server {redis}; }}" if redis else ""
        passes = "nchan_redis_pass store;" if redis else ""
        config = os.path.join(folder, "nginx.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(**locals()))
        super().__init__(["nginx", "-p", folder, "-c", config], port, folder)

    @staticmethod
    def version(_options):
        said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
        packaged = subprocess.run(
            ["apt-cache", "policy", "libnginx-mod-nchan"], capture_output=True, text=True, check=False
        ).stdout
        candidates = [line.split()[-1] for line in packaged.splitlines() if "Candidate" in line]
        return f"{candidates[0] if candidates else '?'} in nginx {said.strip().rsplit('/', 1)[-1]}"

    def publication(self, topic, data):
        return f"/pub/{topic}", {"content-type": "application/json", "accept": "text/json"}, encoded(data)

    def is_stored(self, status, _):
        return status in (201, 202)

    def reader(self, topic, _options):
        # It has no event that tells a loss.
        return EventSource(self.port, f"/sub/{topic}", is_gap=lambda event: False)

    def event_source(self, topic):
        return f"/sub/{topic}", "none"

    def path(self, _transport, topic, _all=False):
        return f"/all/{topic}" if _all else f"/sub/{topic}"

    def hello(self, _topic):
        return []

    def history(self, topic):
        return self.path("SSE", topic, True)
