"""The kinds of attack. Each is one round, a few lines, and the attackers do it again and again.

Beside each stands its proof: a count of the attackers that is above 0 only if the server has met the attack, or metrics
of the server that must grow. Other attacks can raise such a metric too, so it proves only the wave that an attack has
alone.
"""

from attacks import bodies, connections, http2, publishing, reading, tls, websockets


def refused(*codes):
    return [f'rejoin_refusals_total{{code="{code}"}}' for code in codes]


def unread(reason):
    return [f'rejoin_unread_requests_total{{reason="{reason}"}}']


def handshakes(*results):
    return [f'rejoin_tls_handshakes_total{{result="{result}"}}' for result in results]


def served(transport):
    return [f'rejoin_connections{{transport="{transport}"}}']


PROOFS = {
    connections.connection_flood: "connections",
    connections.silent_connections: "connections held",
    connections.slow_heads: "connections held",
    connections.header_floods: unread("head"),
    connections.pipelined_requests: "answers 200",
    connections.guessed_credentials: refused("unauthorized"),
    connections.hook_flood: ["rejoin_hook_waiting"],
    connections.proxy_garbage: "closed without an answer",
    tls.unfinished_handshakes: handshakes("unfinished", "ended"),
    tls.many_handshakes: handshakes("done", "ended"),
    tls.no_handshakes: handshakes("plain", "malformed"),
    http2.many_streams: served("ndjson"),
    http2.rapid_resets: "streams reset",
    http2.rapid_resets_over_tls: "streams reset",
    http2.continuation_flood: "CONTINUATION frames",
    http2.settings_flood: "SETTINGS frames",
    http2.ping_flood: "PING frames",
    http2.empty_frames: "bodies held",
    http2.tiny_windows: "answers 200",
    http2.header_bombs: "answers 200",
    http2.broken_frames: "frames",
    bodies.slow_bodies: "bodies held",
    bodies.endless_bodies: unread("body"),
    bodies.garbage_batches: refused("bad_request", "forbidden", "unauthorized"),
    bodies.compressed_bombs: refused("too_large"),
    reading.slow_readers: served("ndjson"),
    reading.wide_patterns: "answers 200",
    reading.many_topics_read: ["rejoin_topics_read"],
    reading.poll_flood: "answers 200",
    reading.presence_flood: ['rejoin_presence_changes_total{change="join"}'],
    reading.list_flood: "lists",
    # Its first wave may make all topics that there is room for, and they stay.
    publishing.topic_flood: ["rejoin_topics"],
    publishing.key_flood: "stored",
    publishing.message_flood: "stored",
    websockets.half_commands: ["rejoin_unparsed_bytes"],
    websockets.command_flood: refused("bad_request"),
    websockets.large_commands: "MiB",
    websockets.control_flood: served("websocket"),
    websockets.command_bombs: served("websocket"),
}
ATTACKS = {function.__name__: function for function in PROOFS}
PROOF = {function.__name__: count for function, count in PROOFS.items()}
