"""Listens with the libraries of Python. It reads a job from each line of standard input, and prints what the
library gave as JSON, one object on each line.

Without `set` a library is used as its README shows. With it the setting of docs/libraries.md is used.
"""

import asyncio, base64, http.client, importlib.util, json, os, sys, threading, time, urllib.error, urllib.request

import aiohttp, aiohttp_sse_client.client, aiohttp_sse_client2.client, httpx, requests, requests_sse, sseclient
import websocket, websockets
from httpx_sse import connect_sse

PAUSE = 0.1
FINAL = (400, 401, 403, 404)
printing = threading.Lock()
# Some libraries print. Their lines go to standard error.
output, sys.stdout = sys.stdout, sys.stderr


class Job:
    def __init__(self, job, library, url, after, token, set):
        self.number, self.library, self.url, self.cursor, self.set = job, library, url, after, set
        self.headers = {"Authorization": "Bearer " + token} if token else {}

    def say(self, **what):
        with printing:
            print(json.dumps({"job": self.number, **what}), file=output, flush=True)

    def error(self, text):
        self.say(type="error", text=str(text))

    def refused(self, status, body):
        """True if the request must not be repeated."""
        self.error(f"{status} {body}")
        return status in FINAL

    def sse(self, id, event, data):
        self.cursor = id or self.cursor
        self.say(type="sse", id=id, event=event, data=data)

    def frame(self, frame):
        if isinstance(frame, bytes):
            self.say(type="bytes", data=base64.b64encode(frame).decode())
            parsed = json.loads(frame.partition(b"\n")[0])
        else:
            self.say(type="frame", frame=frame)
            parsed = json.loads(frame)
        self.cursor = parsed.get("id" if parsed["type"] == "message" else "cursor") or self.cursor
        return parsed

    def resuming(self):
        """The headers of a request for Server-Sent Events."""
        accept = {**self.headers, "Accept": "text/event-stream"}
        return {**accept, "Last-Event-ID": self.cursor} if self.cursor != "0" else accept

    def at_cursor(self):
        return f"{self.url}?after={self.cursor}"


# Libraries that do not come back by themselves: each of these reads until its connection ends, and returns
# True if the server has refused the request.

def httpx_sse(job):
    timeout = httpx.Timeout(5, read=60) if job.set else httpx.Timeout(5)
    with httpx.Client(timeout=timeout, headers=job.resuming()) as client:
        with connect_sse(client, "GET", job.url) as source:
            if source.response.is_error:
                return job.refused(source.response.status_code, source.response.read().decode())
            for event in source.iter_sse():
                job.sse(event.id, event.event, event.data)


def sseclient_py(job):
    response = requests.get(job.url, stream=True, headers=job.resuming())
    if not response.ok:
        return job.refused(response.status_code, response.text)
    for event in sseclient.SSEClient(response).events():
        job.sse(event.id, event.event, event.data)


def old_sseclient():
    """The package sseclient has the module name of sseclient-py, so it lies in a folder of its own."""
    spec = importlib.util.spec_from_file_location("old_sseclient", os.environ["SSECLIENT"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sseclient_alone(job):
    last = job.cursor if job.cursor != "0" else None
    try:
        for event in OLD_SSECLIENT.SSEClient(job.url, last_id=last, headers=dict(job.headers)):
            job.sse(event.id, event.event, event.data)
    except requests.HTTPError as problem:
        return job.refused(problem.response.status_code, "") if job.set else job.error(problem)


def aiohttp_sse(job, module):
    async def read():
        options = {"headers": job.resuming()}
        if job.set:
            options["timeout"] = aiohttp.ClientTimeout(total=None, sock_read=60)
        async with module.EventSource(job.url, **options) as source:
            async for event in source:
                job.sse(event.last_event_id, event.type, event.data)
    try:
        asyncio.run(read())
    except ConnectionError as problem:
        job.error(problem)
        return any(str(status) in str(problem) for status in FINAL)


def websockets_client(job):
    async def read():
        try:
            async with websockets.connect(job.at_cursor(), additional_headers=job.headers) as socket:
                async for frame in socket:
                    job.frame(frame)
        except websockets.InvalidStatus as problem:
            return job.refused(problem.response.status_code, problem.response.body.decode())
        except websockets.ConnectionClosed as problem:
            job.error(problem)
            return problem.rcvd is not None and 4000 <= problem.rcvd.code < 4100
    return asyncio.run(read())


def aiohttp_websocket(job):
    async def read():
        async with aiohttp.ClientSession() as session:
            try:
                async with session.ws_connect(job.at_cursor(), headers=job.headers) as socket:
                    async for message in socket:
                        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                            job.frame(message.data)
                    job.error(f"closed {socket.close_code}")
                    return 4000 <= (socket.close_code or 1006) < 4100
            except aiohttp.WSServerHandshakeError as problem:
                return job.refused(problem.status, problem.message)
    return asyncio.run(read())


def aiohttp_lines(job):
    async def read():
        options = {"timeout": aiohttp.ClientTimeout(total=None, sock_read=60)} if job.set else {}
        headers = {**job.headers, "Accept": "application/x-ndjson"}
        async with aiohttp.ClientSession(**options) as session:
            async with session.get(job.at_cursor(), headers=headers) as answer:
                if not answer.ok:
                    return job.refused(answer.status, await answer.text())
                async for line in answer.content:
                    job.frame(line.decode())
    return asyncio.run(read())


def requests_lines(job):
    headers = {**job.headers, "Accept": "application/x-ndjson"}
    with requests.get(job.at_cursor(), stream=True, headers=headers) as answer:
        if not answer.ok:
            return job.refused(answer.status_code, answer.text)
        for line in answer.iter_lines():
            job.frame(line.decode())


def httpx_lines(job):
    timeout = httpx.Timeout(5, read=60) if job.set else httpx.Timeout(5)
    headers = {**job.headers, "Accept": "application/x-ndjson"}
    with httpx.stream("GET", job.at_cursor(), timeout=timeout, headers=headers) as answer:
        if answer.is_error:
            return job.refused(answer.status_code, answer.read().decode())
        for line in answer.iter_lines():
            job.frame(line)


def urllib_poll(job):
    """The loop of docs/clients.md, with the wait shortened."""
    while True:
        try:
            request = urllib.request.Request(job.at_cursor(), headers=job.headers)
            with urllib.request.urlopen(request, timeout=90) as answer:
                page = json.load(answer)
        except (OSError, http.client.HTTPException) as problem:
            job.error(problem.read().decode() if hasattr(problem, "read") else problem)
            if getattr(problem, "code", 503) < 429:
                return
            time.sleep(PAUSE)
            continue
        for frame in page.get("gaps", []) + page["messages"]:
            job.say(type="frame", frame=json.dumps(frame))
        job.cursor = page["cursor"]


# Libraries that come back by themselves.

def requests_sse_source(job):
    with requests_sse.EventSource(job.url, headers=dict(job.headers)) as source:
        for event in source:
            job.sse(event.last_event_id, event.type, event.data)


def websockets_iterator(job):
    """The iterator always connects to the same URL, so the cursor goes into a command."""
    async def read():
        base, topic = job.url.split("/topics/")
        async for socket in websockets.connect(base + "/events", additional_headers=job.headers):
            try:
                await socket.send(json.dumps({"type": "subscribe", "topic": topic, "after": job.cursor}))
                async for frame in socket:
                    before = job.cursor
                    kind = job.frame(frame)["type"]
                    if kind == "error":
                        return
                    # Until `subscribed`, the cursor of the connection is not that of the topic.
                    if kind == "open":
                        job.cursor = before
            except websockets.ConnectionClosed as problem:
                job.error(problem)
    try:
        asyncio.run(read())
    except websockets.InvalidStatus as problem:
        job.refused(problem.response.status_code, problem.response.body.decode())


def websocket_client(job):
    def on_message(app, frame):
        parsed = job.frame(frame)
        app.url = job.at_cursor()
        if job.set and parsed["type"] == "error" and parsed["code"] != "overloaded":
            app.close()

    app = websocket.WebSocketApp(
        job.at_cursor(), header=job.headers, on_message=on_message, on_error=lambda app, problem: job.error(problem),
        on_close=lambda app, code, reason: job.error(f"closed {code} {reason}"))
    app.run_forever(reconnect=PAUSE)


OLD_SSECLIENT = old_sseclient()
LOOPED = {
    "httpx-sse": httpx_sse,
    "sseclient-py": sseclient_py,
    "sseclient": sseclient_alone,
    "aiohttp-sse-client": lambda job: aiohttp_sse(job, aiohttp_sse_client.client),
    "aiohttp-sse-client2": lambda job: aiohttp_sse(job, aiohttp_sse_client2.client),
    "websockets": websockets_client,
    "aiohttp ws_connect": aiohttp_websocket,
    "aiohttp, line by line": aiohttp_lines,
    "requests iter_lines": requests_lines,
    "httpx iter_lines": httpx_lines,
}
RETURNING = {
    "urllib, in the loop of clients.md": urllib_poll,
    "requests-sse": requests_sse_source,
    "websockets, async for": websockets_iterator,
    "websocket-client": websocket_client,
}


def run(job):
    read = LOOPED.get(job.library)
    while True:
        try:
            refused = read(job) if read else RETURNING[job.library](job)
        except Exception as problem:
            job.error(repr(problem))
            refused = False
        # The setting of these libraries has a loop around them.
        if refused or not job.set or not read:
            break
        time.sleep(PAUSE)
    job.say(type="end")


for line in sys.stdin:
    threading.Thread(target=run, args=[Job(**json.loads(line))], daemon=True).start()
os._exit(0)
