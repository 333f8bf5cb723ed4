"""The backend of `[hook]`: it knows no client, and takes its time to say so."""

import asyncio

from honest import raise_descriptors
from server import HOST

PAUSE_SECONDS = 2


def backend(pipe, port):
    raise_descriptors()
    asyncio.run(serve(pipe, port))


async def serve(pipe, port):
    server = await asyncio.start_server(answer, HOST, port)
    pipe.send("listens")
    await server.serve_forever()


async def answer(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
            await asyncio.sleep(PAUSE_SECONDS)
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    except (OSError, EOFError):
        pass
    finally:
        writer.close()
