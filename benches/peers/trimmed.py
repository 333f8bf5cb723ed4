"""A browser's own `EventSource` that was away while more was published than is retained."""

import contextlib
import time

from browser import Browser, Home
from link import Link
from processes import folder, wait_until
from publisher import Publisher

TOPIC = "trimmed"
RETAINED, MISSED = 10, 50


def trimmed(peer, options):
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        home = enter(Home())
        server = enter(peer(options, enter(folder()), history=RETAINED, origin=home.origin))
        link = enter(Link(server.port))
        publisher = Publisher(server, TOPIC)
        publisher.publish()
        path, gap = server.event_source(TOPIC)
        browser = enter(Browser(options, home, f"http://127.0.0.1:{link.port}{path}", gap))
        publisher.publish()
        if not wait_until(lambda: 1 in browser.given):
            raise SystemExit(f"the browser gets nothing of {peer.name}")
        link.cut()
        for _ in range(MISSED):
            publisher.publish()
        opened = browser.opened
        link.mend()
        if not wait_until(lambda: browser.opened > opened):
            return "does not come back"
        time.sleep(3)
        came = [number for number in browser.given if number > 1]
        told = "told" if browser.told else "**not told**"
        return f"{len(came)} of the {RETAINED} that are left; the loss is {told}"
