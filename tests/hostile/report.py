"""What a run has shown, as text."""

import collections
import itertools


class Wave:
    """A span of time with one kind of attack, or with all of them, and what the attackers have done."""

    def __init__(self, name, start, end, counts):
        self.name, self.start, self.end = name, int(start), int(end)
        self.done = collections.defaultdict(collections.Counter)
        for each in counts:
            for kind, done in each.items():
                self.done[kind].update(done)

    def worst(self, series):
        """The highest value of these seconds."""
        return max((value for second, value in series.items() if self.start <= second <= self.end), default=0)

    def told(self, watch):
        counts = sum(self.done.values(), collections.Counter())
        done = ", ".join(f"{count:,} {what}" for what, count in counts.most_common(4))
        return (f"{self.name}: {self.end - self.start} s, at most {self.worst(watch.memory):.0f} MiB and "
                f"{self.worst(watch.descriptors)} descriptors; {done}")


class Result:
    def __init__(self, waves, watch, heard, published, tries, probed, log_lines, began, figures, cpu,
                 code):
        self.waves, self.watch, self.heard, self.published, self.tries = waves, watch, heard, published, tries
        self.probed, self.log_lines, self.began, self.figures = probed, log_lines, began, figures
        self.cpu, self.code = cpu, code
        self.lost, self.wrong = self.all("lost"), self.all("wrong")
        self.twice, self.backwards = self.total("twice"), self.total("backwards")
        self.received = collections.Counter()
        for group in heard:
            # Unlike a sum this keeps those with 0.
            self.received.update(group["received"])

    def all(self, name):
        return [each for group in self.heard for each in group[name]]

    def total(self, name):
        return sum(group[name] for group in self.heard)

    def faults(self, expected, before, after, room, proof):
        """`before` and `after` are memory in MiB and descriptors, and may grow by `room`. `expected` is how many
        messages the publishers were to publish. `proof` names the count that proves each attack."""
        return list(itertools.chain(self.faults_of_messages(expected), self.faults_of_server(before, after, room),
                                    self.unproven(proof)))

    def faults_of_messages(self, expected):
        if self.lost:
            yield f"{len(self.lost)} messages are lost, the first ones: {some(self.lost)}"
        if self.wrong:
            yield f"{len(self.wrong)} messages came with a wrong id, the first ones: {some(self.wrong)}"
        if self.twice:
            yield f"{self.twice} messages came twice, or not in order"
        if self.backwards:
            yield f"{self.backwards} ids are not above those before them on their connection"
        published = sum(map(len, self.published.values()))
        if published < expected / 2:
            yield f"{published} messages were published, fewer than half of {expected:.0f}"
        for transport, messages in self.received.items():
            if not messages:
                yield f"the subscribers of {transport} received nothing"

    def faults_of_server(self, before, after, room):
        if self.code:
            yield f"the server was told to end, and its exit code is {self.code}"
        failures = self.probed["failures"]
        if failures:
            yield f"{len(failures)} of /health/live failed: {failures[:5]}"
        for what, had, has, more in zip(("MiB", "descriptors"), before, after, room):
            if has > had + more:
                yield f"the server has {has:.0f} {what} a minute after the attacks, and had {had:.0f} before"

    def unproven(self, proof):
        done = self.done()
        for kind in done:
            if not done[kind][proof[kind]]:
                yield f"{kind} has no proof: its count of \"{proof[kind]}\" is 0"

    def text(self, before, after):
        parts = [self.table(), self.honest(), self.server(before, after), self.attackers()]
        return "\n".join(line for part in parts for line in [*part, ""])

    def table(self):
        """What was worst in each wave."""
        delivery = merged(group["latency"].worst for group in self.heard)
        rows = [("attack", "seconds", "delivery ms", "live ms", "MiB", "descriptors")]
        for wave in self.waves:
            rows.append((wave.name, wave.end - wave.start, wave.worst(delivery),
                         wave.worst(self.probed["latency"].worst), round(wave.worst(self.watch.memory)),
                         wave.worst(self.watch.descriptors)))
        return ["", *(f"{row[0]:24}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows)]

    def honest(self):
        latency = sum((group["latency"].counts for group in self.heard), collections.Counter())
        pauses = sum((group["pauses"].counts for group in self.heard), collections.Counter())
        live, failures = self.probed["latency"].counts, self.probed["failures"]
        return [
            f"published {sum(map(len, self.published.values())):,} messages, {self.tries}",
            f"received {sum(self.received.values()):,} {dict(self.received)}; lost {len(self.lost)}, "
            f"twice {self.twice}, wrong ids {len(self.wrong)}, gaps {self.total('gaps')}",
            f"connections that ended {self.total('ends')}, refused {self.total('refusals')}",
            f"delivery: {spread(latency)}; the clients' own pauses: {spread(pauses)}",
            f"/health/live: {spread(live)}; {sum(live.values()):,} asked, {len(failures)} failed {failures[:5]}"]

    def server(self, before, after):
        levels, loud = self.log_lines
        memory, descriptors = self.watch.memory.values(), self.watch.descriptors.values()
        return [
            f"memory: {before[0]:.0f} MiB before, {max(memory):.0f} at most, {after[0]:.0f} a minute after",
            f"descriptors: {before[1]} before, {max(descriptors)} at most, {after[1]} a minute after",
            f"processor {self.cpu:.0f} s; exit code {self.code}",
            f"log lines: {dict(levels)}", *(f"  {count:>6} {line}" for line, count in loud.most_common(20)),
            "metrics that the attacks have changed:", *self.changes()]

    def changes(self):
        for name, value in sorted(self.figures.items()):
            change = value - self.began.get(name, 0)
            counts = ("refusals", "unread", "handshakes", "slow_closes", "publishes_total", "gaps", "dropped")
            if change and any(part in name for part in counts):
                yield f"  {change:>12,.0f} {name}"

    def done(self):
        """What each kind of attack has done in all waves."""
        done = collections.defaultdict(collections.Counter)
        for wave in self.waves:
            for kind, counts in wave.done.items():
                done[kind].update(counts)
        return done

    def attackers(self):
        return ["what the attackers did:", *(
            f"  {kind}: " + ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
            for kind, counts in sorted(self.done().items()))]


def some(rows):
    return "; ".join(" ".join(map(str, each)) for each in rows[:5])


def merged(series):
    together = {}
    for each in series:
        for second, value in each.items():
            together[second] = max(value, together.get(second, 0))
    return together


def spread(counts):
    """The median, the 99th of 100, and the worst, in milliseconds."""
    total, seen, found = sum(counts.values()), 0, {}
    for value in sorted(counts):
        seen += counts[value]
        for share in (.5, .99):
            if seen >= total * share:
                found.setdefault(share, value)
    return f"p50 {found.get(.5, 0)} ms, p99 {found.get(.99, 0)} ms, worst {max(counts, default=0)} ms"
