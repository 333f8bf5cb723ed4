"""What a run has shown, as text."""

import collections


class Wave:
    """A span of time with one kind of attack, or with all of them, and what the attackers have done."""

    def __init__(self, name, start, end, counts, grown):
        self.name, self.start, self.end, self.grown = name, int(start), int(end), grown
        self.done = collections.defaultdict(collections.Counter)
        for each in counts:
            for kind, done in each.items():
                self.done[kind].update(done)

    def worst(self, series):
        """The highest value of these seconds."""
        return max((value for second, value in series.items() if self.start <= second <= self.end), default=0)

    def proves(self, kind, proof):
        """Whether its count is there, or its metrics have grown. Beside other attacks no metric is asked for."""
        if isinstance(proof, str):
            return self.done[kind][proof] > 0
        return len(self.done) > 1 or sum(self.grown.get(name, 0) for name in proof) > 0

    def told(self, watch):
        counts = sum(self.done.values(), collections.Counter())
        done = ", ".join(f"{count:,} {what}" for what, count in counts.most_common(4))
        return (f"{self.name}: {self.end - self.start} s, at most {self.worst(watch.memory):.0f} MiB and "
                f"{self.worst(watch.descriptors)} descriptors; {done}")


class Result:
    def __init__(self, waves, watch, heard, published, publishing, probed, log_lines, began, figures, cpu, code,
                 evicting, crowded):
        self.waves, self.watch, self.heard, self.published, self.publishing = waves, watch, heard, published, publishing
        self.probed, self.log_lines, self.began, self.figures = probed, log_lines, began, figures
        self.cpu, self.code = cpu, code
        self.lost, self.wrong, self.excused = self.all("lost"), self.all("wrong"), self.all("excused")
        # Those whose gap was told while nothing was evicted.
        self.unexplained = [each for each in self.excused
                            if not is_within(each[-1], evicting)]
        # When publishers found that the server had closed their idle connection, with room for others left.
        self.unneeded = [second for second in publishing["closed"] if not is_within(second, crowded)]
        self.gaps = sum((group["gaps"] for group in heard), collections.Counter())
        self.twice, self.backwards = self.total("twice"), self.total("backwards")
        self.received = collections.Counter()
        for group in heard:
            # Unlike a sum this keeps those with 0.
            self.received.update(group["received"])

    def all(self, name):
        return [each for group in self.heard for each in group[name]]

    def total(self, name):
        return sum(group[name] for group in self.heard)

    def faults_of_messages(self, rate):
        expected = rate * self.publishing["seconds"]
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

    def faults_of_clients(self):
        reasons = {reason: count for reason, count in self.gaps.items() if reason != "retention"}
        if reasons:
            yield f"gaps were told for another reason than retention: {reasons}"
        if self.unexplained:
            yield (f"{len(self.unexplained)} messages are in gaps that were told while nothing is evicted, the first "
                   f"ones: {some(self.unexplained)}")
        for what in ("refusals", "ends"):
            if self.total(what):
                yield f"honest subscribers had {self.total(what)} {what} of their connections"
        troubles = {what: count for what, count in self.publishing["tries"].items() if what != "requests"}
        if troubles:
            yield f"honest publishers had troubles: {troubles}"
        if self.unneeded:
            yield f"{len(self.unneeded)} idle connections of publishers were closed while no wave takes places"

    def faults_of_latency(self, live, delivery):
        for name, counts, most in [("/health/live", self.probed["latency"].counts, live),
                                   ("a delivery", self.latency("latency"), delivery)]:
            if max(counts, default=0) > most:
                yield f"{name} took {max(counts)} ms, and {most} are allowed on a quiet machine"

    def faults_of_server(self, before, after, room, peak):
        """`before` and `after` are memory in MiB and descriptors, and may grow by `room`. Meanwhile the memory may grow
        by `peak`."""
        if self.code:
            yield f"the server was told to end, and its exit code is {self.code}"
        failures = self.probed["failures"]
        if failures:
            yield f"{len(failures)} of /health/live failed: {failures[:5]}"
        for what, had, has, more in zip(("MiB", "descriptors"), before, after, room):
            if has > had + more:
                yield f"the server has {has:.0f} {what} a minute after the attacks, and had {had:.0f} before"
        if self.watch.unscraped:
            yield f"{self.watch.unscraped} of /metrics failed at the listener for operators"
        highest = max(self.watch.memory.values())
        if highest > before[0] + peak:
            yield f"the server had {highest:.0f} MiB, and {before[0]:.0f} before; it may have {peak} more"
        for level, words in [("ERROR", "errors"), ("NONE", "lines that are no JSON")]:
            if self.log_lines[0][level]:
                yield f"the log has {self.log_lines[0][level]} {words}"

    def unproven(self, proof):
        for wave in self.waves:
            for kind in wave.done:
                if not wave.proves(kind, proof[kind]):
                    yield f"{kind} has no proof in the wave {wave.name}: {proof[kind]} did not grow"

    def text(self, before, after):
        parts = [self.table(), self.honest(), self.server(before, after), self.attackers()]
        return "\n".join(line for part in parts for line in [*part, ""])

    def table(self):
        """What was worst in each wave."""
        delivery = merged(group["latency"].worst for group in self.heard)
        rows = [("attack", "seconds", "publish ms", "delivery ms", "live ms", "MiB", "descriptors")]
        for wave in self.waves:
            rows.append((wave.name, wave.end - wave.start, wave.worst(self.publishing["latency"].worst),
                         wave.worst(delivery),
                         wave.worst(self.probed["latency"].worst), round(wave.worst(self.watch.memory)),
                         wave.worst(self.watch.descriptors)))
        return ["", *(f"{row[0]:24}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows)]

    def latency(self, name):
        return sum((group[name].counts for group in self.heard), collections.Counter())

    def honest(self):
        live, failures = self.probed["latency"].counts, self.probed["failures"]
        return [
            f"published {sum(map(len, self.published.values())):,} messages, {dict(self.publishing['tries'])}",
            f"received {sum(self.received.values()):,} {dict(self.received)}; lost {len(self.lost)}, "
            f"twice {self.twice}, wrong ids {len(self.wrong)}, gaps {dict(self.gaps)}, "
            f"excused {len(self.excused)}, of these while nothing is evicted {len(self.unexplained)}",
            f"connections that ended {self.total('ends')}, refused {self.total('refusals')}; idle connections of "
            f"publishers that were closed {len(self.publishing['closed'])}, {len(self.unneeded)} of these without need",
            f"time to publish: {spread(self.publishing['latency'].counts)}",
            f"delivery: {spread(self.latency('latency'))}; the clients' own pauses: {spread(self.latency('pauses'))}",
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


def is_within(second, spans):
    return any(start <= second <= end for start, end in spans)


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
