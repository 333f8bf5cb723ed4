"""The kinds of attack. Each is one round, a few lines, and the attackers do it again and again.

Beside each stands the count that proves it: it is above 0 only if the server has met the attack.
"""

from attacks import bodies, connections, http2, publishing, reading, tls, websockets

PROOFS = {
    connections.connection_flood: "connections",
    connections.silent_connections: "connections held",
    connections.slow_heads: "connections held",
    connections.header_floods: "answers 431",
    connections.pipelined_requests: "answers 200",
    connections.guessed_credentials: "answers 401",
    tls.unfinished_handshakes: "connections held",
    tls.many_handshakes: "handshakes",
    tls.no_handshakes: "connections that the server closed",
    http2.many_streams: "polls held",
    http2.rapid_resets: "streams reset",
    http2.continuation_flood: "CONTINUATION frames",
    http2.settings_flood: "SETTINGS frames",
    http2.ping_flood: "PING frames",
    http2.empty_frames: "bodies held",
    http2.tiny_windows: "answers 200",
    http2.header_bombs: "answers 200",
    http2.broken_frames: "frames",
    bodies.slow_bodies: "bodies held",
    bodies.endless_bodies: "answers 401",
    bodies.garbage_batches: "answers 200",
    bodies.compressed_bombs: "answers 413",
    reading.slow_readers: "readers that do not read",
    reading.wide_patterns: "answers 200",
    reading.many_topics_read: "answers 200",
    reading.poll_flood: "answers 200",
    publishing.topic_flood: "stored",
    publishing.key_flood: "stored",
    publishing.message_flood: "stored",
    websockets.half_commands: "half commands",
    websockets.command_flood: "commands",
    websockets.large_commands: "MiB",
    websockets.control_flood: "frames",
    websockets.command_bombs: "WebSockets that compress",
}
ATTACKS = {function.__name__: function for function in PROOFS}
PROOF = {function.__name__: count for function, count in PROOFS.items()}
