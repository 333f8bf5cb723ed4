"""The scenario `closes`: the server ends a WebSocket with each close code, and the suite sees what the library shows.

The proxy adds an `Origin` to the handshake, because the server tells a refusal by a close code to pages alone.
"""

import asyncio, hashlib, json, os, time

from wire import token

SECRET, ADMIN = "a-secret-of-these-tests-that-is-long-enough", "backend"
# The word of each close, which is also its reason.
CODES = {"bad_request": 4000, "unauthorized": 4001, "forbidden": 4003, "disconnected": 4010, "overloaded": 4100,
         "timed_out": 4100, "too_slow": 4101, "draining": 4200, "token_expired": 4201}
# How long a client has to take or to give something.
TIMEOUT = "3s"
# More than the buffers between a server and a client that takes nothing, if it is not compressed.
HEAVY = [250_000] * 32
# The first bytes of a command of five letters.
BEGUN = b"\x81\x85\0\0\0\0{"


class Closes:
    def __init__(self, server, folder, runs, full):
        config = os.path.join(folder, "closes.toml")
        with open(config, "w") as file:
            file.write(f'jwt-secret = "{SECRET}"\n[[key]]\nname = "backend"\nadmin = true\npublish = ["**"]\n'
                       f'sha256 = "{hashlib.sha256(ADMIN.encode()).hexdigest()}"\n')
        flags = ["--config", config, "--read-timeout", TIMEOUT, "--write-timeout", TIMEOUT, "--compress", "off"]
        self.strict, self.leaving, self.full = server(*flags), server(*flags), full
        self.strict.key = ADMIN
        self.barrier = asyncio.Barrier(max(runs, 1))

    async def prepare(self):
        for size in HEAVY:
            await self.strict.publish("heavy", "x" * size)

    async def of(self, new_job):
        """What the library shows of each close: the code, the reason, and the words in the frame before."""
        shown = await asyncio.gather(*(self.close(new_job, name) for name in CODES))
        return dict(zip(CODES, shown))

    async def close(self, new_job, name):
        shown = await self.close_once(new_job, name)
        # The server waits a second or two for these clients to take its last frames. On a busy machine that may be too
        # short.
        for _ in range(5):
            if shown["words"] or name not in ("too_slow", "timed_out"):
                break
            shown = await self.close_once(new_job, name)
        return shown

    async def close_once(self, new_job, name):
        job = new_job({"overloaded": self.full, "draining": self.leaving}.get(name, self.strict))
        job.proxy.is_page = True
        grants = {"subscribe": [] if name == "forbidden" else ["**"]}
        ends = time.time() + (3 if name == "token_expired" else 3600)
        credential = "" if name == "unauthorized" else token(SECRET, sub="u1", exp=int(ends), rejoin=grants)
        if name == "too_slow":
            job.proxy.takes.clear()
        await job.start({"bad_request": "a..b", "too_slow": "heavy"}.get(name, "a"), credential=credential)
        if act := getattr(self, name, None):
            await job.until(lambda: job.control("open"))
            await act(job)
        code = str(CODES[name])
        # It is lost if the library connects again without it.
        is_lost = lambda: len(job.control("open")) > 1
        await job.until(lambda: last_words(job, name) or code in job.errors() or is_lost())
        # The next thing that the library gives is the close, or comes from its next connection. That may be refused too.
        is_told = lambda: job.items[-1]["control"] not in ("closing", "error") or len(last_words(job, name)) > 3
        await job.until(lambda: code in job.errors() or is_lost() or job.items and is_told())
        errors, words = job.errors(), last_words(job, name)
        job.proxy.silence()
        return {"code": code in errors, "reason": name in errors, "words": bool(words)}

    async def disconnected(self, job):
        await self.strict.ask("DELETE", f"/connections/{connection_of(job)}")

    async def timed_out(self, job):
        job.proxy.send(BEGUN)

    async def too_slow(self, job):
        # The server has given up, and waits a moment for the client to take the close.
        for _ in range(1000):
            if (await self.strict.ask("GET", f"/connections/{connection_of(job)}"))[0] != 200:
                break
            await asyncio.sleep(0.05)
        job.proxy.takes.set()

    async def draining(self, job):
        # The last of all jobs restarts the server for all.
        if await self.barrier.wait() == 0:
            await self.leaving.end()
            self.drained = await self.leaving.reading
            await self.leaving.start()

    async def untold(self):
        """The codes of which the log does not say the cause. Call it when the servers have ended."""
        log = self.drained + await self.strict.reading + await self.full.reading
        lines = [json.loads(line) for line in log.splitlines()]
        told = {line.get("code") for line in lines if line.get("detail")} | {line["message"] for line in lines}
        return [name for name in CODES if name not in told]


def connection_of(job):
    opened = [json.loads(job.items[at]["frame"])["connection"] for at in job.control("open")]
    return opened[0] if opened else ""


def last_words(job, name):
    """The frame that says why the connection ends, with everything after it."""
    for at, item in enumerate(job.items):
        if item["control"] in ("closing", "error"):
            frame = json.loads(item["frame"])
            if frame["code"] == name and frame["detail"]:
                return job.items[at:]
    return []
