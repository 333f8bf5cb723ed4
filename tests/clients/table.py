"""The tables of docs/libraries.md: one row for each library, made from what the library did."""

from languages import LANGUAGES

HEAD = ["library", "version", "comes back by itself", "loses nothing", "tells a gap", "a refusal",
        "raw text is exact", "it needs", "without that"]
CLOSES, CLOSE_HEAD = "Close codes", ["library", "your code finds it in", "the code", "the reason", "the words"]
PACKED, PACKED_HEAD = "Compressed streams", ["library", "asks for gzip", "reads event by event"]
TRANSPORTS = {"sse": "Server-Sent Events", "websocket": "WebSocket", "ndjson": "NDJSON", "poll": "Polling"}
# The scenarios, and how the table names what they show.
RETURNS = ["cut", "restart", "overload"]
LOSSES = ["envelope", "cut", "restart", "quiet", "idle"]
REFUSALS = ["unauthorized", "forbidden"]


def name_of(entry):
    return f"{entry['library']} ({entry['language']})"


def version_of(entry):
    if "version" in entry:
        return entry["version"]
    return LANGUAGES[entry["language"]].version(entry.get("package", entry["library"]))


def refusal(faults):
    """How the library tells a refusal."""
    shown = dict.fromkeys(faults[name] for name in REFUSALS)
    return "; ".join(shown)


def failures(entry, faults):
    """What goes wrong, in a few words each."""
    names = [*RETURNS, "idle", "quiet", "envelope" if entry["transport"] == "sse" else "content"]
    found = [faults[name] for name in names if faults.get(name)]
    if faults["gap"] and not found:
        found.append("a gap is not told")
    found += [word for word in [refusal(faults)] if word.startswith(("asks again", "waits"))]
    return merged(found)


def merged(found):
    """`ends at a cut` and `ends at a restart` become `ends at a cut, at a restart`."""
    ends = [words.removeprefix("ends ") for words in found if words.startswith("ends ")]
    others = [words for words in found if not words.startswith("ends ")]
    return list(dict.fromkeys(([f"ends {', '.join(ends)}"] if ends else []) + others))


def row(entry, bare, best):
    """The cells of a library. `best` is what it did with its setting, or bare if it needs none."""
    if entry.get("is_unfit"):
        return [name_of(entry), version_of(entry), "-", f"no: {best['envelope']}", "-", "-",
                "no", entry["setting"], "-"]
    returns = "yes" if not any(bare[name] for name in RETURNS) else "no"
    losses = [best[name] for name in LOSSES if best.get(name)]
    if entry["transport"] != "sse" and best["content"]:
        losses.append(best["content"])
    if entry["transport"] == "sse":
        raw = best["content"].replace("changes ", "no: ") if best["content"] else "yes"
    else:
        raw = "-"
    return [
        name_of(entry), version_of(entry), returns, "yes" if not losses else "; ".join(merged(losses)),
        "no" if best["gap"] else "yes", refusal(best), raw,
        entry.get("setting", "-"), "; ".join(failures(entry, bare)) or "-" if "setting" in entry else "-",
    ]


def by_name(results):
    """The entry, what it did without its setting, and with it, for each library."""
    found = {}
    for entry, with_setting, faults in results:
        _, bare, _ = found.get(name_of(entry), (None, faults, None))
        found[name_of(entry)] = (entry, bare, faults)
    return found


def shows(closes, part):
    """At which close codes the library shows this part."""
    lacking = [name for name, shown in closes.items() if not shown[part]]
    if not lacking:
        return "yes"
    return "no" if len(lacking) == len(closes) else "not at " + ", ".join(f"`{name}`" for name in lacking)


def close_row(entry, closes):
    return [name_of(entry), entry["close"], *(shows(closes, part) for part in ["code", "reason", "words"])]


def packed_row(entry, shown):
    return [name_of(entry), *("yes" if shown[part] else "no" for part in ["asks", "reads"])]


def line_of(cells):
    return "| " + " | ".join(cells) + " |"


def rows(results):
    """The lines of the tables, by their section and the name of the library."""
    found = {}
    for name, (entry, bare, best) in by_name(results).items():
        found[TRANSPORTS[entry["transport"]], name] = line_of(row(entry, bare, best))
        if "closes" in best:
            found[CLOSES, name] = line_of(close_row(entry, best["closes"]))
        if "packed" in best:
            found[PACKED, name] = line_of(packed_row(entry, best["packed"]))
    return found


def wrong(results):
    """Settings that are not needed or not enough."""
    found = []
    for name, (entry, bare, best) in by_name(results).items():
        if entry.get("is_unfit"):
            if not bare["envelope"]:
                found.append(f"{name}: it is fit")
            continue
        if "setting" in entry and not failures(entry, bare):
            found.append(f"{name}: it works without its setting")
        if failures(entry, best):
            found.append(f"{name}: {'; '.join(failures(entry, best))}, even with its setting")
    return found


def lines_of(path):
    with open(path) as file:
        return file.read().split("\n")


def old_rows(lines):
    """The rows that stand in the document, by their section and the name of the library."""
    found, title = {}, None
    for line in lines:
        title = line.removeprefix("## ") if line.startswith("## ") else title
        if line.startswith("| "):
            found[title, line.split(" | ")[0].removeprefix("| ")] = line
    return found


def differences(path, new):
    """The rows in which the document says something else."""
    old = old_rows(lines_of(path))
    return [f"docs/libraries.md has another row than the run:\n- {old.get(place)}\n+ {line}"
            for place, line in new.items() if old.get(place) != line]


def write(path, new, entries):
    """Writes the rows into the document. A library that was not run keeps its row."""
    lines = lines_of(path)
    all_rows = old_rows(lines) | new
    for title in [*TRANSPORTS.values(), CLOSES, PACKED]:
        start = lines.index(f"## {title}") + 1
        while not lines[start].startswith("|"):
            start += 1
        end = start
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        head = {CLOSES: CLOSE_HEAD, PACKED: PACKED_HEAD}.get(title, HEAD)
        listed = [all_rows[title, name_of(entry)] for entry in entries if (title, name_of(entry)) in all_rows]
        lines[start:end] = [line_of(head), "|" + "---|" * len(head)] + listed
    with open(path, "w") as file:
        file.write("\n".join(lines))
