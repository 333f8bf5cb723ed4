"""The four transports, as an honest subscriber reads them. Each yields frames, and ends when the connection ends.

A frame is the object that the server has sent. The payload of a raw event has no envelope, so its topic is added.
"""

import asyncio
import json
import urllib.parse

import wire


class Refused(Exception):
    """The server has refused the request for now."""


def target(topics, cursor):
    """The path of a subscription. One topic alone is read from its own path, and so without envelopes on SSE."""
    start = {"after": cursor} if cursor else {}
    if len(topics) == 1 and "*" not in topics[0]:
        return f"/topics/{topics[0]}?" + urllib.parse.urlencode(start)
    return "/events?" + urllib.parse.urlencode([("topic", topic) for topic in topics] + list(start.items()))


async def answer_head(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(None, 2)[1])
    return status, dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)


async def http2_frame(reader):
    """The kind, the flags, the stream and the payload of a frame."""
    head = await reader.readexactly(9)
    return head[3], head[4], int.from_bytes(head[5:], "big"), await reader.readexactly(int.from_bytes(head[:3], "big"))


async def body(reader, head):
    if "content-length" in head:
        return await reader.readexactly(int(head["content-length"]))
    return b"".join([chunk async for chunk in chunks(reader)])


async def chunks(reader):
    while size := int(await reader.readline(), 16):
        chunk = await reader.readexactly(size + 2)
        yield chunk[:-2]
    await reader.readline()


async def lines(reader):
    rest = b""
    async for chunk in chunks(reader):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode()


async def ask(reader, writer, path, accept, credential):
    writer.write(wire.request("GET", path, [f"Accept: {accept}", *wire.bearer(credential)]))
    status, head = await answer_head(reader)
    if status != 200:
        await body(reader, head)
        raise Refused(status)
    return head


async def websocket(reader, writer, topics, cursor, credential):
    writer.write(wire.upgrade(target(topics, cursor), wire.bearer(credential)))
    status, head = await answer_head(reader)
    if status != 101:
        await body(reader, head)
        raise Refused(status)
    while True:
        first, size = await reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8), "big")
        payload = await reader.readexactly(size)
        if first & 15 == 1:
            yield json.loads(payload)
        elif first & 15 == 9:
            writer.write(wire.websocket(10, payload))
        elif first & 15 == 8:
            return


async def sse(reader, writer, topics, cursor, credential):
    await ask(reader, writer, target(topics, cursor), "text/event-stream", credential)
    event, cursor, data = None, None, []
    async for line in lines(reader):
        name, _, value = line.partition(": ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id":
            cursor = value
        elif not line and data:
            content = json.loads("\n".join(data))
            if not event and "type" not in content:
                content = {"type": "message", "topic": topics[0], "id": cursor, "data": content}
            yield content
            event, data = None, []


async def ndjson(reader, writer, topics, cursor, credential):
    await ask(reader, writer, target(topics, cursor), "application/x-ndjson", credential)
    async for line in lines(reader):
        yield json.loads(line)


async def poll(reader, writer, topics, cursor, credential):
    """One poll after the other on one connection."""
    while True:
        head = await ask(reader, writer, target(topics, cursor), "application/json", credential)
        page = json.loads(await body(reader, head))
        # The gaps come first, as in a stream.
        for frame in [*page.get("gaps", []), *page["messages"]]:
            yield frame
        cursor = page["cursor"]
        yield {"type": "cursor", "cursor": cursor}
        await asyncio.sleep(0)


TRANSPORTS = [websocket, sse, ndjson, poll]
