#!/usr/bin/env python3
"""Publishes to a rejoin as programs do that set no Content-Type, and checks which message came of it.

REJOIN names the program. Everything here belongs to the languages themselves; docs/libraries.md has the table of the
libraries.
"""

import json, os, re, subprocess, sys, urllib.error, urllib.request

JSON, TEXT, BYTES = '{"total":12}', "h\u00e9llo", b"\x00\xff\xfe"
FETCH = """
const [url, base64] = process.argv.slice(1)
fetch(url, {method: 'POST', body: base64 ? Buffer.from(base64, 'base64') : '{"total":12}'}).then(async answer => {
  process.stdout.write(`${answer.status} ${await answer.text()}`)
})
"""


def urllib_post(url, body):
    try:
        with urllib.request.urlopen(url, body) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def curl_post(url, body):
    said = subprocess.run(["curl", "-s", "-w", "\n%{http_code}", "--data-binary", "@-", url],
                          input=body, capture_output=True, check=True).stdout.decode()
    answer, status = said.rsplit("\n", 1)
    return int(status), answer


def fetch_post(url, *base64):
    said = subprocess.run(["node", "-e", FETCH, url, *base64], capture_output=True, check=True).stdout.decode()
    status, answer = said.split(" ", 1)
    return int(status), answer


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found!r}, and not {wanted!r}")


def main(server):
    def message(topic):
        with urllib.request.urlopen(f"{server}/topics/{topic}?after=0&wait=0") as answer:
            found = json.load(answer)["messages"][-1]
        return found["data"], found.get("encoding")

    for post in [urllib_post, curl_post]:
        for body, wanted in [(JSON.encode(), ({"total": 12}, None)), (TEXT.encode(), (TEXT, None)),
                             (BYTES, ("AP/+", "base64"))]:
            status, answer = post(f"{server}/topics/a", body)
            expect(post.__name__, (status, json.loads(answer)["topic"]), (201, "a"))
            expect(post.__name__, message("a"), wanted)
        for topic, body, code in [("a..b", b"x", "bad_request"), ("a", b"x" * (1 << 20), "too_large")]:
            status, answer = post(f"{server}/topics/{topic}", body)
            expect(post.__name__, (status >= 400, json.loads(answer)["code"]), (True, code))
    # A text without a type is text/plain for fetch, so its JSON stays text.
    expect("fetch", fetch_post(f"{server}/topics/a")[0], 201)
    expect("fetch", message("a"), (JSON, None))
    expect("fetch", fetch_post(f"{server}/topics/a", "AP/+")[0], 201)
    expect("fetch", message("a"), ("AP/+", "base64"))


if __name__ == "__main__":
    for program in [["curl", "--version"], ["node", "--version"]]:
        try:
            subprocess.run(program, capture_output=True, check=True)
        except OSError:
            print(f"SKIPPED {program[0]} is not installed", file=sys.stderr)
            sys.exit()
    rejoin = subprocess.Popen([os.environ["REJOIN"], "--listen", "127.0.0.1:0", "--log-format", "json"],
                              stderr=subprocess.PIPE, text=True)
    try:
        address = next(found for line in rejoin.stderr if (found := re.search(r'"address":"([^"]+)"', line)))
        main(f"http://{address[1]}")
    finally:
        rejoin.kill()
        rejoin.wait()
