"""The check of what subscribers were given: each message once and in order, or inside a gap that was told.

Messages of a topic are numbered from 1. A subscriber notes only the numbers that are missing. At the end the ids of
these are known from the publishers, and then a gap that was told covers them, or they are lost.
"""


class Ledger:
    """What one subscriber was given."""

    def __init__(self, topics):
        self.newest = dict.fromkeys(topics, 0)
        self.missing = []
        self.gaps = []
        self.twice = 0

    def message(self, topic, number):
        """Notes a message. Returns whether it is the next one, or one after a hole."""
        expected = self.newest[topic] + 1
        if number < expected:
            self.twice += 1
            return False
        if number > expected:
            self.missing.append((topic, expected, number - 1))
        self.newest[topic] = number
        return True

    def gap(self, topic, after, before):
        """Notes a gap; `before` is the id of the first message after it, or None."""
        self.gaps.append((topic, int(after), int(before) if before else None))

    def is_behind(self, published):
        return any(self.newest[topic] < len(published[topic]) for topic in self.newest)

    def lost(self, published):
        """The messages that are in no gap. `published` has the ids of each topic, in their order."""
        ends = [(topic, newest + 1, len(published[topic])) for topic, newest in self.newest.items()]
        return [(topic, number) for topic, first, last in [*self.missing, *ends] for number in range(first, last + 1)
                if not self.is_told(topic, int(published[topic][number - 1]))]

    def is_told(self, topic, message):
        return any(matches(name, topic) and after < message and (before is None or message < before)
                   for name, after, before in self.gaps)


def matches(pattern, topic):
    """Whether a topic, or a pattern that ends with one `*`, is about this topic."""
    return pattern == topic or (pattern.endswith(".*") and topic.rpartition(".")[0] == pattern[:-2])
