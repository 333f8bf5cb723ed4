"""The check of what subscribers were given: each message once and in order, or inside a gap that was told.

Messages of a topic are numbered from 1. A subscriber notes the id that came with each number. At the end the ids of all
messages are known from the publishers. Then each id must be the right one, and a gap that was told covers each message
that did not come, or it is lost.
"""

import array
import collections


class Ledger:
    """What one subscriber was given."""

    def __init__(self, topics):
        # The id of each number of each topic, and 0 for those that did not come.
        self.ids = {topic: array.array("q") for topic in topics}
        # The name, the ids that it lies between, and the second in which it was told.
        self.gaps, self.reasons = [], collections.Counter()
        # Gaps of which only a later one that is told together with them says where they end.
        self.open_gaps = []
        self.newest = 0
        self.twice = self.backwards = 0

    def connect(self):
        """Begins a connection: the ids that come on it must grow."""
        self.newest = 0
        self.end_gaps()

    def message(self, topic, number, message):
        """Notes a message with its id. Returns whether it is the next one, or one after a hole."""
        self.end_gaps()
        if message <= self.newest:
            self.backwards += 1
        self.newest = max(self.newest, message)
        ids = self.ids[topic]
        if number <= len(ids):
            self.twice += 1
            return False
        ids.extend([0] * (number - 1 - len(ids)))
        ids.append(message)
        return True

    def gap(self, topic, after, before, cursor, reason, second):
        """Notes a gap. `before` is the id of the first message after it; if there is none, the gap ends at the cursor.

        All but the last of several gaps that are told together have the cursor from before them.
        """
        self.reasons[reason] += 1
        after, cursor = int(after), int(cursor)
        if cursor > after:
            self.gaps += [(name, start, cursor + 1, told) for name, start, told in self.open_gaps]
            self.open_gaps = []
        if before or cursor > after:
            self.gaps.append((topic, after, int(before) if before else cursor + 1, second))
        else:
            self.open_gaps.append((topic, after, second))

    def end_gaps(self):
        """A gap without an end excuses nothing."""
        self.open_gaps = []

    def is_behind(self, published):
        return any(len(ids) < len(published[topic]) for topic, ids in self.ids.items())

    def lost(self, published):
        """The messages that are in no gap. `published` has the ids of each topic, in their order."""
        return [(topic, number) for topic, number, told in self.missing(published) if told is None]

    def excused(self, published):
        """The messages that did not come, and the second in which their gap was told."""
        return [each for each in self.missing(published) if each[2] is not None]

    def missing(self, published):
        return [(topic, number, self.told(topic, message)) for topic, ids in self.ids.items()
                for number, message in enumerate(published[topic], 1) if number > len(ids) or not ids[number - 1]]

    def wrong(self, published):
        """The messages that came with the id of another one, or that nobody has published."""
        return [(topic, number) for topic, ids in self.ids.items() for number, message in enumerate(ids, 1)
                if message and (number > len(published[topic]) or published[topic][number - 1] != message)]

    def told(self, topic, message):
        """When the first gap with this message was told, if any was."""
        return min((second for name, after, before, second in self.gaps
                    if matches(name, topic) and after < message < before), default=None)


def matches(pattern, topic):
    """Whether a topic, or a pattern that ends with one `*`, is about this topic."""
    return pattern == topic or (pattern.endswith(".*") and topic.rpartition(".")[0] == pattern[:-2])
