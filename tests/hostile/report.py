"""What a run has shown, as text."""

import collections


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
        done = ", ".join(f"{count:,} {what}" for what, count in sum(self.done.values(), collections.Counter()).most_common(4))
        return (f"{self.name}: {self.end - self.start} s, at most {self.worst(watch.memory):.0f} MiB and "
                f"{self.worst(watch.descriptors)} descriptors; {done}")


class Result:
    def __init__(self, waves, watch, heard, published, tries, probed, log_lines, began, figures, cpu, code):
        self.waves, self.watch, self.heard, self.published, self.tries = waves, watch, heard, published, tries
        self.probed, self.log_lines, self.began, self.figures = probed, log_lines, began, figures
        self.cpu, self.code = cpu, code
        self.lost = [each for group in heard for each in group["lost"]]
        self.twice = self.total("twice")

    def total(self, name):
        return sum(group[name] for group in self.heard)

    def faults(self, alive, before, after, room_mib):
        faults = []
        if not alive:
            faults.append(f"the server ended, with exit code {self.code}")
        if self.lost:
            faults.append(f"{len(self.lost)} messages are lost, the first ones: "
                          + "; ".join(" ".join(map(str, each)) for each in self.lost[:5]))
        if self.twice:
            faults.append(f"{self.twice} messages came twice, or not in order")
        if after > before + room_mib:
            faults.append(f"the server has {after:.0f} MiB a minute after the attacks, and had {before:.0f} MiB before")
        unproven = [kind for kind, counts in self.done().items() if not counts]
        if unproven:
            faults.append("nothing was done by " + ", ".join(unproven))
        return faults

    def text(self, before, after):
        return "\n".join([*self.table(), "", *self.honest(), "", *self.server(before, after), "", *self.attackers(), ""])

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
            f"received {self.total('received'):,}; lost {len(self.lost)}, twice {self.twice}, gaps {self.total('gaps')}",
            f"connections that ended {self.total('ends')}, refused {self.total('refusals')}",
            f"delivery: {spread(latency)}; the clients' own pauses: {spread(pauses)}",
            f"/health/live: {spread(live)}; {sum(live.values()):,} asked, {len(failures)} failed {failures[:5]}"]

    def server(self, before, after):
        levels, loud = self.log_lines
        memory, descriptors = self.watch.memory.values(), self.watch.descriptors.values()
        return [
            f"memory: {before:.0f} MiB before, {max(memory):.0f} at most, {after:.0f} a minute after",
            f"descriptors: {max(descriptors)} at most, {list(descriptors)[-1]} at the end; processor {self.cpu:.0f} s; "
            f"exit code {self.code}",
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
