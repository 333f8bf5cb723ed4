"""The server under attack, with the configuration of a public server, and what it shows of itself."""

import base64
import collections
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import socket
import subprocess
import time

from process import Failed

HOST = "127.0.0.1"
KEY = "rejoin_hostile_00000000000000000000000000000000000000"
SECRET = b"a secret of the hostile hour, of more than 32 bytes"

# Small, so that memory beyond it is not that of messages.
RETAIN_TOTAL_MIB = 64

# With a trusted proxy the addresses of the loopback count as those of clients. Only an attacker has this address.
PROXY = "127.0.0.9"

# The users of the attackers, and how long the list of each is.
USERS = [f"mallory-{number}" for number in range(8)]
LISTED = 50

SETTINGS = """
listen = ["{host}:{tls}", "http://{host}:{plain}"]
admin-listen = "http://{host}:{admin}"
tls-cert = "{folder}/cert.pem"
tls-key = "{folder}/key.pem"
state = "{folder}/state"
allowed-origin = ["https://app.example"]
allowed-host = ["push.example"]
trusted-proxy = ["{proxy}"]
proxy-protocol = true
retain-total = "{retain_total}MiB"
max-connections = 4000
publish-rate = 10000

[[key]]
name = "backend"
sha256 = "{sha256}"
publish = ["**"]
admin = true

[[jwt]]
name = "app"
algorithm = "HS256"
secret = "{secret}"
subscribe = ["news.**"]

[jwt.limit]
subscribe = ["news.**", "rooms.**"]
publish = ["rooms.**"]

[anonymous]
subscribe = ["news.**"]

[hook]
url = "http://{host}:{hook}/"
cookies = ["session"]
sub-prefix = "session:"
"""


def token(subject):
    """A token of a user, who may read and write rooms."""
    def encoded(raw):
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    claims = {"sub": subject, "exp": int(time.time()) + 86_400,
              "rejoin": {"subscribe": ["rooms.**"], "publish": ["rooms.**"]}}
    text = encoded(b'{"alg":"HS256","typ":"JWT"}') + b"." + encoded(json.dumps(claims).encode())
    return (text + b"." + encoded(hmac.digest(SECRET, text, "sha256"))).decode()


def free_ports(count):
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Server:
    def __init__(self, binary, folder):
        self.folder = pathlib.Path(folder)
        self.tls, self.plain, self.admin, self.hook = free_ports(4)
        make_certificate(self.folder)
        settings = self.folder / "rejoin.toml"
        settings.touch(mode=0o600)
        settings.write_text(SETTINGS.format(
            host=HOST, tls=self.tls, plain=self.plain, admin=self.admin, hook=self.hook, proxy=PROXY, folder=folder,
            retain_total=RETAIN_TOTAL_MIB,
            secret=SECRET.decode(), sha256=hashlib.sha256(KEY.encode()).hexdigest()))
        self.log = self.folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([binary, "serve", "--config", str(settings)],
                                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        self.wait_until_ready()

    def wait_until_ready(self):
        for _ in range(200):
            try:
                if self.ask("/health/ready")[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(.05)
        raise SystemExit("the server does not start:\n" + self.log.read_text())

    def ask(self, path, lines=None, method=None):
        """Asks the listener for operators, or posts lines to it; the status and the body."""
        connection = http.client.HTTPConnection(HOST, self.admin, timeout=10)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/x-ndjson"}
        try:
            connection.request(method or ("POST" if lines else "GET"), path, lines, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def fill(self):
        """Stores as much as is retained, so that each message of the attackers pushes out another one. The topics are
        those of the attackers: once there are as many as there may be, no new one is made. All are on the list of each
        attacker."""
        size, topics = 20_000, LISTED
        element = {"data": "a" * size}
        for _ in range(RETAIN_TOTAL_MIB * 2**20 // size // topics + 1):
            body = "".join(json.dumps({"topic": f"rooms.{number}", **element}) + "\n" for number in range(topics))
            status, answer = self.ask("/publish", body.encode())
            if status != 200 or any("id" not in each for each in json.loads(answer)):
                raise Failed(f"the server does not store what fills it: {status} {answer[:200]}")
        for path in (f"/subjects/{user}/topics/rooms.{number}" for user in USERS for number in range(topics)):
            status, answer = self.ask(path, method="PUT")
            if status != 204:
                raise Failed(f"the server does not keep a list: {status} {answer[:200]}")

    def metrics(self):
        """Each series with its value, without those of histograms."""
        series = {}
        for line in self.ask("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#") and "_bucket" not in name:
                series[name] = float(value)
        return series

    def memory_mib(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_alive(self):
        return self.process.poll() is None

    def log_lines(self):
        """How many lines of the log have each level, and how often each warning and error is there."""
        levels, loud = collections.Counter(), collections.Counter()
        with open(self.log) as log:
            for line in log:
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = {"level": "NONE", "message": line.strip()}
                levels[entry["level"]] += 1
                if entry["level"] not in ("INFO", "DEBUG"):
                    loud[f"{entry['level']} {entry.get('message')}"] += 1
        return levels, loud

    def last_log_lines(self):
        return self.log.read_text().splitlines()[-20:]

    def stop(self):
        """Ends the server in order; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def make_certificate(folder):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "30", "-subj", "/CN=push.example", "-addext", f"subjectAltName=IP:{HOST},DNS:push.example",
                    "-addext", "basicConstraints=critical,CA:FALSE", "-out", folder / "cert.pem",
                    "-keyout", folder / "key.pem"], check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
