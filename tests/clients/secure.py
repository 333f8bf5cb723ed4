#!/usr/bin/env python3
"""Reads and publishes over TLS: with `websockets` of Python and `ws` of npm, and with the HTTP clients that both
languages have. They trust one certificate, which openssl makes.

REJOIN names the program.
"""

import asyncio, json, os, ssl, subprocess, sys, tempfile, urllib.request

from languages import HERE, LANGUAGES, TARGET, NotInstalled, missing
from wire import Server

REJOIN = os.environ.get("REJOIN") or os.path.join(TARGET, "debug", "rejoin")
MESSAGES = 50
NODE = """
import fs from 'node:fs'
import {createRequire} from 'node:module'
const WebSocket = createRequire(process.argv[1] + '/')('ws')
const [, , url, ca, count] = process.argv
const socket = new WebSocket(url, {ca: fs.readFileSync(ca)})
const heard = []
socket.on('open', () => socket.send(JSON.stringify({type: 'publish', topic: 'a', data: 'by ws'})))
socket.on('message', text => {
  const frame = JSON.parse(text)
  if (frame.type === 'message') heard.push(frame.data)
  if (heard.length === Number(count)) {
    console.log(JSON.stringify(heard))
    socket.close()
  }
})
"""


def certificate(folder):
    """The files of a certificate of localhost, and of its key."""
    files = os.path.join(folder, "certificate.pem"), os.path.join(folder, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                    "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


def publish(url, context, text):
    request = urllib.request.Request(url, text.encode(), {"Content-Type": "text/plain"})
    with urllib.request.urlopen(request, context=context) as answer:
        return json.load(answer)["id"]


async def listen_with_python(url, context, count):
    import websockets
    heard = []
    async with websockets.connect(url, ssl=context) as socket:
        await socket.send(json.dumps({"type": "publish", "topic": "a", "data": "by websockets"}))
        async for text in socket:
            frame = json.loads(text)
            if frame["type"] == "message":
                heard.append(frame["data"])
            if len(heard) == count:
                return heard


async def listen_with_node(url, file, count):
    folder = os.path.join(HERE, "node")
    node = await asyncio.create_subprocess_exec(
        "node", "--input-type=module", "-e", NODE.replace("process.argv[1] + '/'", json.dumps(folder + "/")),
        "-", url, file, str(count), stdout=asyncio.subprocess.PIPE)
    said, _ = await node.communicate()
    return json.loads(said)


async def main(folder):
    certificate_file, key_file = certificate(folder)
    context = ssl.create_default_context(cafile=certificate_file)
    server = await Server(REJOIN, "--tls-cert", certificate_file, "--tls-key", key_file).start()
    try:
        base = f"://localhost:{server.port}/topics/a"
        before = [f"{number}" for number in range(MESSAGES)]
        for text in before:
            await asyncio.to_thread(publish, "https" + base, context, text)
        # What each of them publishes reaches both.
        url, count = f"wss{base}?after=0", MESSAGES + 2
        listening = [listen_with_python(url, context, count), listen_with_node(url, certificate_file, count)]
        async with asyncio.timeout(60):
            for heard in await asyncio.gather(*listening):
                assert heard[:MESSAGES] == before, heard
                assert sorted(heard[MESSAGES:]) == ["by websockets", "by ws"], heard
    finally:
        await server.kill()


for language in ["Python", "Node"]:
    try:
        if lacking := missing(language):
            raise NotInstalled(f"{' and '.join(lacking)} is not installed")
        LANGUAGES[language].prepare()
    except NotInstalled as fault:
        if os.environ.get("CI"):
            sys.exit(f"{language}: {fault}")
        print(f"SKIPPED {language}: {fault}", file=sys.stderr)
        sys.exit()
sys.path.insert(0, os.path.join(LANGUAGES["Python"].folder, "python"))
with tempfile.TemporaryDirectory(prefix="rejoin-secure-") as folder:
    asyncio.run(main(folder))
