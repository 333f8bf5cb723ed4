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
IN_FLIGHT = 16


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


def fan_out(transport):
    def run(peer, options):
        few, many = (costs(peer, options, transport, count) for count in (FEW, MANY))
        return "; ".join(f"{few[kind]:.2f} → {many[kind]:.2f}" for kind in (0, 1))

    return run


def costs(peer, options, transport, readers):
    """Microseconds of the server for a delivery: one message in flight, and several."""
    with folder() as place, peer(options, place) as server:
        with Crowd(server, transport, readers, TOPIC) as crowd:
            return [cost(server, crowd, readers, in_flight) for in_flight in (1, IN_FLIGHT)]


def cost(server, crowd, readers, in_flight):
    publisher = Publisher(server, TOPIC)
    rounds = max(2, DELIVERIES // readers // in_flight)

    def work(rounds):
        for _ in range(rounds):
            for _ in range(in_flight):
                if not publisher.publish(FILL):
                    raise SystemExit(f"{server.name} refuses a message")
            crowd.take(crowd.counts[crowd.sockets[0]] + missing(crowd, publisher))

    def missing(crowd, publisher):
        return len(publisher.acknowledged) + base - crowd.counts[crowd.sockets[0]]

    base = crowd.counts[crowd.sockets[0]]
    work(1)
    before = server.cpu_s()
    work(rounds)
    return (server.cpu_s() - before) / (rounds * in_flight * readers) * 1e6
