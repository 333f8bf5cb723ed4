"""The wire, by hand: requests of HTTP/1.1, frames of WebSocket, frames of HTTP/2."""

import ssl
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def request(method, path, headers=(), body=None):
    lines = [f"{method} {path} HTTP/1.1", "Host: push.example", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def bearer(credential):
    return [f"Authorization: Bearer {credential}"] if credential else []


def upgrade(path, headers=()):
    return request("GET", path, ["Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Version: 13",
                                 "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", *headers])


def websocket(opcode, payload=b"", first=0x80):
    """A frame of a client. `first` has the bits FIN (0x80) and RSV1 (0x40). The mask is zero, so the bytes stay."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack(">H", size)
    else:
        length = b"\xff" + struct.pack(">Q", size)
    return bytes([first | opcode]) + length + b"\0\0\0\0" + payload


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(values=()):
    return frame(4, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in values))


def fields(pairs):
    """Header fields as they stand (RFC 7541 §6.2.2), without any compression."""
    def text(value):
        value = value.encode()
        if len(value) < 127:
            return bytes([len(value)]) + value
        rest, number = b"", len(value) - 127
        while number > 127:
            rest, number = rest + bytes([number & 127 | 128]), number >> 7
        return b"\x7f" + rest + bytes([number]) + value

    return b"".join(b"\0" + text(name) + text(value) for name, value in pairs)


def head(path, method="GET", more=()):
    return fields([(":method", method), (":scheme", "http"), (":path", path), (":authority", "push.example"), *more])


def headers(stream, path, method="GET", more=(), is_end=True):
    return frame(1, 4 | is_end, stream, head(path, method, more))


def tls_context(protocols=()):
    """The certificate is made for this run, and nobody has signed it. The protocols are those of ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(protocols)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_hello():
    """The first bytes of a handshake of TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        tls_context().wrap_bio(incoming, outgoing, server_hostname="push.example").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
