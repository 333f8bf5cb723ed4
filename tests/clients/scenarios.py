"""The scenarios: the suite does something to a client, and sees what it makes of it.

Each scenario of each library is a job with a proxy of its own, and all jobs run side by side. A scenario returns a
fault in a few words, or None. The scenario `refused` returns how the library tells a refusal.
"""

import asyncio, base64, json, os, time

from closes import SECRET, Closes
from corpus import MESSAGES, is_right
from wire import Proxy, Server, token

CUTS = 10
RETAINED = 5
# Longer than the default read timeout of httpx. With `--all` it is longer than that of OkHttp.
QUIET_SECONDS = {False: 8, True: 12.5}
# How long a client may need to come back. The proxy shortens the wait that the server asks for, so this is long
# only for a machine with much else to do.
RETURN_SECONDS = 60
# How long a library that does not read the stream is waited for.
UNFIT_SECONDS = 5


class Job:
    """One scenario of one library."""

    numbers = iter(range(10 ** 9))

    def __init__(self, entry, driver, with_setting, server):
        self.entry, self.driver, self.with_setting, self.server = entry, driver, with_setting, server
        self.number, self.items, self.has_ended = next(self.numbers), [], False
        # The ids of the messages, in the order in which the library gave them.
        self.ids = []
        self.proxy, self.event = Proxy(server), asyncio.Event()
        self.proxy.changed = self.event.set

    @property
    def is_sse(self):
        return self.entry["transport"] == "sse"

    async def start(self, topic, options="", credential=""):
        """Begins to read everything that is retained of the topic."""
        self.topic = topic
        await self.proxy.listen()
        scheme = "ws" if self.entry["transport"] == "websocket" else "http"
        url = f"{scheme}://127.0.0.1:{self.proxy.port}/topics/{topic}"
        if self.is_sse:
            url += f"?after=0{options}"
        self.driver.send(self, job=self.number, library=self.entry["library"], url=url, after="0",
                         token=credential, set=self.with_setting)

    def take(self, item):
        """Takes what the driver has printed."""
        self.has_ended |= item["type"] == "end"
        item["control"] = control_of(item)
        if item["type"] in ("sse", "frame", "bytes") and item["control"] is None:
            item["id"] = id_of(item)
            self.ids.append(item["id"])
        self.items.append(item)
        self.event.set()

    async def until(self, is_true, seconds=RETURN_SECONDS):
        """Waits until this is true, the client has ended, or the time is over. Returns if it is true."""
        async def wait():
            while not is_true() and not self.has_ended:
                self.event.clear()
                await self.event.wait()
        try:
            await asyncio.wait_for(wait(), seconds)
        except TimeoutError:
            pass
        return is_true()

    async def connected(self):
        """Waits until the client is connected. Returns how many connections it has opened."""
        if self.entry["transport"] == "poll":
            await self.until(lambda: self.proxy.asked > 0)
        else:
            await self.until(lambda: self.control("open"))
        return self.proxy.connected

    async def publish(self, body, kind="text/plain"):
        return await self.server.publish(self.topic, body, kind)

    async def has_got(self, id):
        return await self.until(lambda: id in self.ids)

    def control(self, name):
        """The control frames of this type, and where they stand among the items."""
        return [at for at, item in enumerate(self.items) if item["control"] == name]

    def errors(self):
        return " ".join(item["text"] for item in self.items if item["type"] == "error")


def parsed(item):
    if item["type"] == "bytes":
        return json.loads(base64.b64decode(item["data"]).partition(b"\n")[0])
    try:
        return json.loads(item["frame"])
    except ValueError:
        return {"type": "broken"}


def control_of(item):
    """The type of a control frame, or None."""
    if item["type"] == "sse":
        name = item["event"] or ""
        return name.removeprefix("rejoin.") if name.startswith("rejoin.") and name != "rejoin.binary" else None
    if item["type"] not in ("frame", "bytes"):
        return None
    name = parsed(item)["type"]
    return None if name == "message" else name


def id_of(item):
    return item["id"] if item["type"] == "sse" else parsed(item).get("id")


def complaint(published, got):
    """How the messages that a client got differ from those that were published."""
    if missing := set(published) - set(got):
        return f"loses {len(missing)} of {len(published)} messages"
    if got != sorted(set(got), key=str):
        return "gets messages twice or out of order"
    return None


class Scenes:
    """The servers, and the scenarios on them."""

    def __init__(self, program, folder, is_all, runs, closed):
        def server(*flags):
            return Server(program, *flags)

        config = os.path.join(folder, "closed.toml")
        with open(config, "w") as file:
            file.write(f'jwt-secret = "{SECRET}"\n')
        # All jobs of the scenario `restart` meet here, and later all libraries.
        self.barrier, self.all_waiting = asyncio.Barrier(runs), asyncio.Barrier(runs)
        self.after = asyncio.get_running_loop().create_future()
        self.quiet_seconds = QUIET_SECONDS[is_all]
        self.lively = server("--heartbeat", "4s")
        self.calm = server()
        self.small = server("--retain-messages", str(RETAINED))
        self.closed = server("--config", config)
        self.full = server("--max-connections", "1")
        self.restarting = server("--state", os.path.join(folder, "state"))
        self.packing = server("--compress", "all")
        self.closes = Closes(server, folder, closed, self.full)
        self.all = [self.lively, self.calm, self.small, self.closed, self.full, self.restarting,
                    self.packing, self.closes.strict, self.closes.leaving]

    async def start(self):
        await asyncio.gather(*(server.start() for server in self.all))
        await self.closes.prepare()
        self.content = [await self.calm.publish("content", body, kind) for _, kind, body in MESSAGES]
        self.before = await self.restarting.publish("restart", "before")
        # This reader takes the only place of the full server.
        reader, self.holder = await asyncio.open_connection("127.0.0.1", self.full.port)
        self.holder.write(b"GET /topics/t HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n")
        await reader.readuntil(b'"open"')

    async def of(self, entry, driver, with_setting):
        """All scenarios of a library: first those with much to do, and then those in which clients wait."""
        def job(server):
            return Job(entry, driver, with_setting, server)

        is_sse, is_best = entry["transport"] == "sse", with_setting or "setting" not in entry or "is_unfit" in entry
        content = {"content": self.content_of(job(self.calm), is_sse)} if is_best or entry.get("limits_messages") else {}
        if content and is_sse:
            content["envelope"] = self.content_of(job(self.calm), False)
        if is_best and entry["transport"] in ("sse", "ndjson"):
            content["packed"] = self.packed(job(self.packing))
        if entry.get("is_unfit"):
            return dict(zip(content, await asyncio.gather(*content.values())))
        busy = content | {
            "cut": self.cut(job(self.calm)),
            "restart": self.restart(job(self.restarting)),
            "gap": self.gap(job(self.small)),
            "overload": self.overload(job(self.full)),
            "unauthorized": self.refused(job(self.closed), ""),
            "forbidden": self.refused(job(self.closed), token(SECRET, sub="u1", exp=int(time.time()) + 3600)),
        }
        if is_best and "close" in entry:
            busy["closes"] = self.closes.of(job)
        shown = dict(zip(busy, await asyncio.gather(*busy.values())))
        await self.all_waiting.wait()
        quiet = {"idle": self.idle(job(self.lively)), "quiet": self.quiet(job(self.calm))}
        return shown | dict(zip(quiet, await asyncio.gather(*quiet.values())))

    async def content_of(self, job, is_raw):
        """Every kind of payload."""
        await job.start("content", "" if is_raw or not job.is_sse else "&format=envelope")
        last = self.content[-1]
        await job.until(lambda: last in job.ids or job.proxy.connected > 5)
        job.proxy.silence()
        items = {item["id"]: item for item in job.items if item.get("id") in self.content}
        for id, (name, _, _) in zip(self.content, MESSAGES):
            if id not in items:
                return f"never gets past {name}"
        wrong = [name for id, (name, kind, body) in zip(self.content, MESSAGES)
                 if not is_right(items[id], kind, body, is_raw)]
        return "changes " + ", ".join(dict.fromkeys(wrong)) if wrong else None

    async def packed(self, job):
        """A stream that is compressed if the library asks for it. Each message must come before the next is published."""
        await job.start(f"packed-{job.number}", "&format=envelope")
        await job.until(lambda: job.proxy.opened > 0)
        seconds = UNFIT_SECONDS if "is_unfit" in job.entry else RETURN_SECONDS
        for body in ["short", "a long one " * 60, "short again"]:
            id = await job.publish(body)
            if not (reads := await job.until(lambda: id in job.ids, seconds)):
                break
        asks = job.proxy.is_packed
        job.proxy.silence()
        return {"asks": asks, "reads": reads}

    async def idle(self, job):
        """Nothing but heartbeats, and then a message."""
        await job.start(f"idle-{job.number}")
        before = await job.connected()
        if job.entry["transport"] != "poll":
            await job.until(lambda: len(job.control("cursor")) >= 2 or job.proxy.connected > before)
        connected, has_ended = job.proxy.connected, job.has_ended
        has_got = not has_ended and await job.has_got(await job.publish("after the heartbeats"))
        job.proxy.silence()
        return None if has_got and connected == before else "does not live through heartbeats"

    async def quiet(self, job):
        """Nothing is sent for longer than usual read timeouts, because a heartbeat is 25 s."""
        await job.start(f"quiet-{job.number}")
        before = await job.connected()
        await job.until(lambda: job.proxy.connected > before, self.quiet_seconds)
        connected, has_ended = job.proxy.connected, job.has_ended
        has_got = not has_ended and await job.has_got(await job.publish("after the quiet"))
        job.proxy.silence()
        if has_ended or not has_got:
            return "ends when it is quiet"
        return None if connected == before else "connects again and again when it is quiet"

    async def cut(self, job):
        """Ten cuts, with messages before, during and after each."""
        await job.start(f"cut-{job.number}")
        published = []
        for number in range(CUTS):
            published.append(await job.publish(f"before cut {number}"))
            if not await job.has_got(published[-1]):
                break
            published.append(await job.publish(f"at cut {number}"))
            job.proxy.cut(with_reset=number % 2 == 0)
            published.append(await job.publish(f"after cut {number}"))
        has_got = await job.has_got(published[-1])
        got = job.ids[:]
        gaps = job.control("gap")
        job.proxy.silence()
        if not has_got and len(got) < 3 * CUTS - 2:
            return "ends at a cut"
        return complaint(published, got) or ("tells a gap without cause" if gaps else None)

    async def restart(self, job):
        """The server ends in order, is away, and comes back with its messages."""
        await job.start("restart")
        await job.has_got(self.before)
        job.proxy.refuse()
        # The last of all jobs restarts the server for all.
        if await self.barrier.wait() == 0:
            await self.restarting.end()
            # Clients come back meanwhile, and are refused.
            await asyncio.sleep(1)
            await self.restarting.start()
            self.after.set_result(await self.restarting.publish("restart", "after"))
        after = await self.after
        await job.proxy.listen()
        has_got = await job.has_got(after)
        was_told = bool(job.control("closing")) or job.entry["transport"] == "poll"
        gaps, got = job.control("gap"), job.ids[:]
        job.proxy.silence()
        if not has_got:
            return "ends at a restart"
        if not was_told:
            return "does not tell that the server drains"
        return complaint([self.before, after], got) or ("tells a gap without cause" if gaps else None)

    async def gap(self, job):
        """The client is away while more messages come than are retained."""
        await job.start(f"gap-{job.number}")
        if not await job.has_got(await job.publish("before")):
            job.proxy.silence()
            return "ends"
        job.proxy.hold()
        missed = [await job.publish(f"missed {number}") for number in range(2 * RETAINED)]
        job.proxy.go_on()
        has_got = await job.has_got(missed[-1])
        gaps, got = job.control("gap"), job.ids[:]
        kept = missed[-RETAINED:]
        first_kept = next((at for at, item in enumerate(job.items) if item.get("id") in kept), 0)
        job.proxy.silence()
        if not has_got:
            return "no"
        return None if gaps and gaps[0] < first_kept and set(kept) <= set(got) else "no"

    async def overload(self, job):
        """The server has no place. A client must try again."""
        await job.start("t")
        has_tried = await job.until(lambda: job.proxy.asked >= 3)
        job.proxy.silence()
        return None if has_tried else "ends at an overload"

    async def refused(self, job, credential):
        await job.start("secret", credential=credential)
        asks_on = await job.until(lambda: job.proxy.asked >= 4)
        has_ended = job.has_ended
        job.proxy.silence()
        if asks_on:
            return "asks again for ever"
        if not has_ended:
            return "waits, and tells nothing"
        code = "forbidden" if credential else "unauthorized"
        said = job.errors() + " ".join(item.get("frame", "") for item in job.items)
        if code in said:
            return "stops, with the reason"
        return "stops, with the status" if ("403" if credential else "401") in said else "stops"
