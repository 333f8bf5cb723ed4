"""Faults of Redis: two servers over one, and a reader at the second, whose link to Redis can be cut.

A message is missing if it was acknowledged and has not reached the reader at the end. A loss that is told is
one that the reader's application can see.
"""

import contextlib
import time

from link import Link
from processes import Redis, folder, wait_until
from publisher import Publisher

TOPIC = "fault"
BEFORE_S, CUT_S, AFTER_S = 2, 3, 8
# Centrifugo looks for missed messages every 40 s.
SETTLE_S = 75


@contextlib.contextmanager
def scene(peer, options):
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        redis = enter(Redis(enter(folder())))
        link = enter(Link(redis.port))
        near = enter(peer(options, enter(folder()), redis=redis.url))
        far = enter(peer(options, enter(folder()), redis=link.url))
        publisher = Publisher(near, TOPIC)
        if not wait_until(publisher.publish):
            raise SystemExit(f"{peer.name} refuses messages")
        reader = enter(far.reader(TOPIC, options))

        def is_linked():
            publisher.publish()
            # Messages before this one may not reach a subscription that is new.
            return wait_until(lambda: publisher.acknowledged[-1] in reader.given, 1)

        if not wait_until(is_linked):
            raise SystemExit(f"{peer.name} does not deliver")
        publisher.acknowledged.clear()
        reader.told = 0
        yield redis, link, publisher, reader


def missing(publisher, reader):
    return len(set(publisher.acknowledged) - set(reader.given))


def outcome(publisher, reader):
    """Waits until nothing is missing, or for long, and says what the reader has."""
    end = time.monotonic()
    is_whole = wait_until(lambda: missing(publisher, reader) == 0, SETTLE_S)
    words = [f"{missing(publisher, reader)} of {len(publisher.acknowledged)} missing"]
    words += ["told"] if reader.told else [] if is_whole else ["**not told**"]
    late = reader.times[-1] - end
    words += [f"the last {late:.0f} s late"] if late > 5 else []
    words += ["given up"] if getattr(reader, "ended", None) else []
    doubled = len(reader.given) - len(set(reader.given))
    words += [f"{doubled} twice"] if doubled else []
    return ", ".join(words)


def cut(peer, options, rate=None):
    """The link is cut for some seconds while messages come."""
    with scene(peer, options) as (_, link, publisher, reader):
        with publisher.steadily(rate or options.rate):
            time.sleep(BEFORE_S)
            link.cut()
            time.sleep(CUT_S)
            link.mend()
            time.sleep(AFTER_S)
        return outcome(publisher, reader)


def emptied(peer, options):
    """Redis is killed, and starts again with nothing."""
    with scene(peer, options) as (redis, _, publisher, reader):
        with publisher.steadily(options.rate):
            time.sleep(BEFORE_S)
            redis.kill()
            time.sleep(2)
            redis.start()
            time.sleep(AFTER_S)
        return outcome(publisher, reader)


def quiet(peer, options):
    """One message is published while the link is cut, and none after it."""
    with scene(peer, options) as (_, link, publisher, reader):
        link.cut()
        time.sleep(1)
        wait_until(publisher.publish, 5)
        time.sleep(1)
        link.mend()
        mended = time.monotonic()
        if not wait_until(lambda: missing(publisher, reader) == 0, SETTLE_S):
            return f"not within {SETTLE_S} s" + (", told" if reader.told else ", **not told**")
        return f"{max(0, reader.times[-1] - mended):.1f} s"
