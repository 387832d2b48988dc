"""Reading compiled programs: what a device sends and receives."""

import re
from collections import Counter

_COLLECTIVES = (
    "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    "collective-broadcast"
)


def travels(text: str) -> Counter:
    """(collective, shape) -> how often a device executes it, from a compiled program's text.

    The body of a loop whose end depends on data counts once. Of a tuple, the first shape alone.
    """
    counts: Counter = Counter()
    inside, body_of = "", {}
    found = []
    for line in text.splitlines():
        if line and not line[0].isspace() and "{" in line:
            inside = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        if " while(" in line:
            trips = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
            body = re.search(r"body=%?([\w.\-]+)", line)
            body_of[body.group(1)] = (inside, int(trips.group(1)) if trips else 1)
        match = re.search(rf"= \(?(\w+\[[\d,]*\]).* ({_COLLECTIVES})(?:-start)?\(", line)
        if match:
            found.append((match.group(2), match.group(1), inside))
    for operation, shape, where in found:
        times = 1
        while where in body_of:
            where, trips = body_of[where]
            times *= trips
        counts[operation, shape] += times
    return counts
