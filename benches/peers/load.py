"""An idle connection, the delivery of a message, and how its cost grows with the readers.

Only the server's processor time and memory count: they are nearly the same on a busy machine.
"""

from crowd import MARK, Crowd
from processes import folder
from publisher import Publisher

TOPIC = "crowd"
FILL = MARK.decode() + "y" * 20
IDLE = 1000
FEW, MANY = 1000, 10000
# A large number of readers needs fewer messages for the same number of deliveries.
DELIVERIES = 100_000
AT_ONCE = 16


def idle(peer, options):
    cells = []
    for transport in ("WebSocket", "SSE"):
        with folder() as place, peer(options, place) as server:
            # The first connections fill what is made once.
            with Crowd(server, transport, 50, TOPIC):
                pass
            before = server.memory_kib()
            with Crowd(server, transport, IDLE, TOPIC):
                cells.append(f"{(server.memory_kib() - before) / IDLE:.1f}")
    return " / ".join(cells)


def fan_out(peer, options):
    few, many = (costs(peer, options, count) for count in (FEW, MANY))
    return "; ".join(f"{few[kind]:.1f} → {many[kind]:.1f}" for kind in (0, 1))


def costs(peer, options, readers):
    """Microseconds of the server for a delivery: one message at a time, and several."""
    with folder() as place, peer(options, place) as server:
        with Crowd(server, "WebSocket", readers, TOPIC) as crowd:
            return [cost(server, crowd, readers, at_once) for at_once in (1, AT_ONCE)]


def cost(server, crowd, readers, at_once):
    publisher = Publisher(server, TOPIC)
    base = crowd.counts[crowd.sockets[0]]
    rounds = max(2, DELIVERIES // readers // at_once)

    def work(rounds):
        for _ in range(rounds):
            for _ in range(at_once):
                if not publisher.publish(FILL):
                    raise SystemExit(f"{server.name} refuses a message")
            crowd.take(base + len(publisher.acknowledged))

    work(1)
    before = server.cpu_s()
    work(rounds)
    return (server.cpu_s() - before) / (rounds * at_once * readers) * 1e6
