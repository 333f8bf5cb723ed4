"""The messages of the scenario `content`, and the check that one arrived as it was published."""

import base64, json, random, re

LONG = "".join(random.Random(7).choices("abcdefghij é😀\t", k=150_000))

# Kind, content type, payload.
MESSAGES = [
    ("letters", "text/plain", "message"),
    ("letters of other languages", "text/plain", "héllo wörld 日本語 עברית 👩‍👩‍👧‍👦"),
    ("an empty text", "text/plain", ""),
    ("line ends", "text/plain", "a\nb\n\nc"),
    ("line ends", "text/plain", "a\r\nb\r\n\r\nc\rd"),
    ("a line end at the end", "text/plain", "ends\n"),
    ("a line end at the start", "text/plain", "\nstarts"),
    ("an only line end", "text/plain", "\n"),
    ("spaces at the start", "text/plain", "  two"),
    ("spaces at the end", "text/plain", "two  "),
    ("tabs", "text/plain", "\ttab\t"),
    ("JSON", "application/json", '{"n":1,"s":"é\\u2028","x":[1,2.50,1e3],"big":12345678901234567890}'),
    ("JSON", "application/json", '{\n  "n": 1,\r\n  "a": []\n}'),
    ("JSON", "application/json", '"a string"'),
    ("JSON", "application/json", "null"),
    ("fields of SSE", "text/plain", "data: x\nid: 5\nevent: evil\nretry: 1\n: comment"),
    ("fields of SSE", "text/plain", ":colon"),
    ("separators", "text/plain", "a\u2028b\u2029c\u0085d\x0be\x0cf"),
    ("control characters", "text/plain", "a\x01\x1b\x1c\x1d\x1e\x1f\x7f"),
    ("a byte order mark", "text/plain", "\ufeffmark"),
    ("a NUL", "text/plain", "a\0b"),
    ("HTML", "text/html", "<b>bold</b>"),
    ("bytes", "application/octet-stream", bytes(range(256))),
    ("bytes", "text/plain", b"\xff\xfe\xe9 latin"),
    ("the last letters of Unicode", "text/plain", "\uffff\ufffe\U0010ffff"),
    ("66 KB in one line", "text/plain", "x" * 66_000),
    ("200 KiB", "text/plain", LONG),
    ("letters", "text/plain", "the last"),
]


def text_of(body):
    try:
        return body if isinstance(body, str) else body.decode()
    except UnicodeDecodeError:
        return None


def is_right(item, kind, body, is_raw):
    """True if the message that a library gave is the one that was published."""
    text = text_of(body) if kind != "application/octet-stream" else None
    if item["type"] == "bytes":
        return base64.b64decode(item["data"]).partition(b"\n")[2] == (body if text is None else body.encode())
    if item["type"] == "sse" and is_raw and item["event"] != "rejoin.binary":
        return text is not None and item["data"] == re.sub(r"\r\n|\r", "\n", text)
    try:
        data = json.loads(item["frame" if item["type"] == "frame" else "data"])
    except (ValueError, TypeError):
        return False
    if data.get("encoding") == "base64":
        return base64.b64decode(data["data"]) == (body if isinstance(body, bytes) else body.encode())
    return data["data"] == (json.loads(text) if kind == "application/json" else text)
