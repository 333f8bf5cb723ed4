#!/usr/bin/env python3
"""Publishes to a rejoin as programs do that set no Content-Type, and hears its refusals.

REJOIN names the program. Everything here belongs to the languages themselves; docs/libraries.md has the table of the
libraries.
"""

import base64, contextlib, hashlib, http.client, json, os, re, subprocess, sys, tempfile
import urllib.error, urllib.request

JSON, TEXT, BYTES = '{"total":12}', "h\u00e9llo", b"\x00\xff\xfe"
FETCH = """
const answers = []
for (const [method, url, headers, text, base64] of JSON.parse((await import('fs')).readFileSync(0, 'utf8'))) {
  const answer = await fetch(url, {method, headers, body: text ?? (base64 ? Buffer.from(base64, 'base64') : undefined)})
  answers.push([answer.status, await answer.text()])
}
console.log(JSON.stringify(answers))
"""
KEY, READER = "backend", "reader"
CONFIG = f"""
max-topics = 2
[[key]]
name = "backend"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
publish = ["**"]
subscribe = ["**"]
manage = ["**"]
[[key]]
name = "reader"
sha256 = "{hashlib.sha256(READER.encode()).hexdigest()}"
subscribe = ["a.*"]
"""
BEARER = {"Authorization": f"Bearer {KEY}"}
PATTERNS = [f"p{number}.*" for number in range(100)]
# A request that is refused, its status and its code. {raw} and {many} are connections.
REFUSED = [
    ("POST", "/topics/a..b", BEARER, b"x", 400, "bad_request"),
    ("POST", "/topics/a", {}, b"x", 401, "unauthorized"),
    ("POST", "/topics/a", {"Authorization": "Bearer unknown"}, b"x", 401, "unauthorized"),
    ("POST", "/topics/a", {"Authorization": f"Bearer {READER}"}, b"x", 403, "forbidden"),
    ("GET", "/topics/b?wait=0", {"Authorization": f"Bearer {READER}"}, b"", 403, "forbidden"),
    ("GET", "/nothing", BEARER, b"", 404, "not_found"),
    ("PUT", f"/connections/{'0' * 32}/topics/a", BEARER, b"", 404, "not_found"),
    ("DELETE", "/publish", BEARER, b"", 405, "method_not_allowed"),
    ("PUT", "/connections/{raw}/topics/b", BEARER, b"", 409, "conflict"),
    ("PUT", "/connections/{many}/topics/one.*", BEARER, b"", 409, "conflict"),
    ("PUT", "/subjects/wild/topics/one.*", BEARER, b"", 409, "conflict"),
    ("POST", "/topics/a", {**BEARER, "If-Match": '"5"'}, b"x", 412, "precondition_failed"),
    ("POST", "/topics/a", BEARER, b"x" * (1 << 20), 413, "too_large"),
    ("POST", "/topics/a", {**BEARER, "Content-Encoding": "br"}, b"x", 415, "unsupported_media_type"),
    ("POST", "/topics/a", {**BEARER, "Idempotency-Key": "1"}, b"other", 422, "key_reused"),
    ("POST", "/topics/third", BEARER, b"x", 503, "overloaded"),
]


def urllib_ask(method, url, headers, body):
    request = urllib.request.Request(url, body or None, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def curl_ask(method, url, headers, body):
    fields = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    sent = ["--data-binary", "@-"] if body else []
    said = subprocess.run(["curl", "-s", "-w", "\n%{http_code}", "-X", method, *fields, *sent, url],
                          input=body, capture_output=True, check=True).stdout.decode()
    answer, status = said.rsplit("\n", 1)
    return int(status), answer


def fetch_all(requests):
    """One Node for all requests, because it starts slowly."""
    sent = [(method, url, headers, *((body, None) if isinstance(body, str) else (None, base64.b64encode(body).decode())))
            for method, url, headers, body in requests]
    said = subprocess.run(["node", "--input-type=module", "-e", FETCH], input=json.dumps(sent).encode(),
                          capture_output=True, check=True).stdout
    return [tuple(answer) for answer in json.loads(said)]


def each(ask):
    return lambda requests: [ask(*request) for request in requests]


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found!r}, and not {wanted!r}")


def publishes(server):
    def message(topic):
        with urllib.request.urlopen(f"{server}/topics/{topic}?after=0&wait=0") as answer:
            found = json.load(answer)["messages"][-1]
        return found["data"], found.get("encoding")

    for ask in [urllib_ask, curl_ask]:
        for body, wanted in [(JSON.encode(), ({"total": 12}, None)), (TEXT.encode(), (TEXT, None)),
                             (BYTES, ("AP/+", "base64"))]:
            status, answer = ask("POST", f"{server}/topics/a", {}, body)
            expect(ask.__name__, (status, json.loads(answer)["topic"]), (201, "a"))
            expect(ask.__name__, message("a"), wanted)
    # A text without a type is text/plain for fetch, so its JSON stays text.
    for body, wanted in [(JSON, (JSON, None)), (BYTES, ("AP/+", "base64"))]:
        expect("fetch", fetch_all([("POST", f"{server}/topics/a", {}, body)])[0][0], 201)
        expect("fetch", message("a"), wanted)


def hears_refusals(server):
    for topic, headers in [("a", {"Idempotency-Key": "1"}), ("b", {})]:
        status, _ = urllib_ask("POST", f"{server}/topics/{topic}", {**BEARER, **headers}, b"first")
        expect("publish", status, 201)
    fill_list(server)
    many = "/events?topic=" + "&topic=".join(PATTERNS)
    with stream(server, "/topics/a") as raw, stream(server, many) as many:
        requests = [(method, server + path.format(raw=raw, many=many), headers, body)
                    for method, path, headers, body, _, _ in REFUSED]
        for client, ask_all in [("urllib", each(urllib_ask)), ("curl", each(curl_ask)), ("fetch", fetch_all)]:
            for request, (status, answer) in zip(REFUSED, ask_all(requests), strict=True):
                problem = json.loads(answer)
                expect(f"{client}: {request[:2]}", (status, problem["code"]), request[4:])
                expect(f"{client}: the words of {request[:2]}", bool(problem["detail"]), True)


def fill_list(server):
    """Adds as many patterns to the list of a subject as fit."""
    connection = http.client.HTTPConnection(server.removeprefix("http://"))
    for pattern in PATTERNS:
        connection.request("PUT", f"/subjects/wild/topics/{pattern}", headers=BEARER)
        answer = connection.getresponse()
        expect(pattern, (answer.status, answer.read()), (204, b""))
    connection.close()


@contextlib.contextmanager
def stream(server, path):
    """The name of an event stream that is open meanwhile."""
    request = urllib.request.Request(server + path, headers={**BEARER, "Accept": "text/event-stream"})
    with urllib.request.urlopen(request) as events:
        opening = next(line for line in events if line.startswith(b"data: "))
        yield json.loads(opening.removeprefix(b"data: "))["connection"]


def run(check, *options):
    command = [os.environ["REJOIN"], "--listen", "127.0.0.1:0", "--log-format", "json", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as rejoin:
        try:
            said = ""
            while not (address := re.search(r'"address":"([^"]+)"', said)):
                said = rejoin.stderr.readline() or sys.exit(f"the server has ended: {said}")
            check(f"http://{address[1]}")
        finally:
            rejoin.kill()


if __name__ == "__main__":
    for program in [["curl", "--version"], ["node", "--version"]]:
        try:
            subprocess.run(program, capture_output=True, check=True)
        except OSError:
            print(f"SKIPPED {program[0]} is not installed", file=sys.stderr)
            sys.exit()
    run(publishes)
    with tempfile.NamedTemporaryFile("w") as config:
        config.write(CONFIG)
        config.flush()
        run(hears_refusals, "--config", config.name)
