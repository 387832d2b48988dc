"""Reading compiled programs: what a device sends and receives."""

import math
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


_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


def sent_bytes(text: str) -> dict[str, float]:
    """Operation -> bytes that a device sends in the whole program, counted as `plan.traffic` counts them.

    Collectives of less than a kilobyte, and those of integers, are left out, and so is what is in loops
    whose end depends on data (further turns of experts).
    """
    inside, body_of, found = "", {}, []
    for line in text.splitlines():
        if line and not line[0].isspace() and "{" in line:
            inside = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        if " while(" in line:
            trips = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
            body = re.search(r"body=%?([\w.\-]+)", line)
            body_of[body.group(1)] = (inside, int(trips.group(1)) if trips else 0)
        match = re.search(rf"= (.+?) ({_COLLECTIVES})(?:-start)?\(", line)
        if match:
            found.append((match.group(2), match.group(1), _group_size(line), inside))
    total: Counter = Counter()
    for operation, result, parts, where in found:
        size = sum(
            _ITEM_BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n)
            for kind, shape in re.findall(r"\b(\w+)\[([\d,]*)\]", result)
            if kind in ("bf16", "f16", "f32")
        )
        times = 1
        while where in body_of:
            where, trips = body_of[where]
            times *= trips
        if size < 1024 or parts == 1:
            continue
        share = {
            "all-reduce": 2 * (parts - 1) / parts,
            "reduce-scatter": parts - 1,
            "collective-permute": 1,
        }.get(operation, (parts - 1) / parts)
        total[operation] += times * size * share
    return dict(total)


def _group_size(line: str) -> int:
    """Devices that exchange with each other; 2 of a permutation."""
    if "source_target_pairs" in line:
        return 2
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota.group(2))
    # By axes of a mesh: those that are named after it, in braces.
    mesh = dict(re.findall(r"'(\w+)'=(\d+)", line))
    named = re.search(r"replica_groups=mesh\[[^\]]*\][^{]*\{([^}]*)\}", line)
    assert named, line
    return math.prod(int(mesh[axis]) for axis in re.findall(r"'(\w+)'", named.group(1)))
