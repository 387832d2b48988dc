"""How fast the axes of a mesh exchange: which links an axis has, and what an operation makes of them.

A torus gives whole dimensions to mesh axes, the innermost (`tensor`) first: what exchanges most gets what is
closest. That is what `jax.make_mesh` tries too, which may choose others; figures are those of the links
(`chips.py`), nothing else using them. Not here: what is exchanged (`traffic.py`), what it is hidden behind
(`speed.py`).
"""

import math
from dataclasses import dataclass

from gemma4_jax.plan.traffic import Exchange
from gemma4_jax.sharding import AXES
from gemma4_jax.topology import Topology

# Assumed of every exchange that is not a step of the same collective: its start. The rule that chooses between
# ring and gather (parallel/sequence_exchange.py) assumes the same.
STEP_SECONDS = 10e-6


@dataclass(frozen=True)
class Lines:
    """What one mesh axis is laid over.

    devices: of the axis. bandwidth: bytes a second, one way, that reach one device over all links of the axis
    where all want the same; own: where each wants its own; one_way: from one neighbour. length: devices along
    the longest line; closed: whether it is a ring.
    """

    devices: int
    bandwidth: float
    own: float
    one_way: float
    length: int = 1
    closed: bool = True


def lay_out(topology: Topology, sizes: tuple[int, ...]) -> dict[str, Lines]:
    """The links of every axis that has more than one device."""
    if topology.chip.torus:
        return _on_torus(topology, sizes)
    return _on_hosts(topology, sizes)


def seconds(exchange: Exchange, lines: dict[str, Lines]) -> float:
    """Of one kind of exchange in a step. Over several axes their links work together."""
    used = [lines[axis] for axis in exchange.axes]
    bandwidth = sum(line.bandwidth for line in used)
    if exchange.operation in ("permute", "ring"):
        bandwidth = min(line.one_way for line in used)
    elif exchange.operation == "all-to-all":
        # Rows go as far as their owner: of a ring of n a quarter of the way on average, of a line a third.
        hops = max(line.length / (4 if line.closed else 3) for line in used)
        bandwidth = sum(line.own for line in used) / max(1.0, hops)
    return exchange.sent / bandwidth + exchange.count * STEP_SECONDS


def _on_torus(topology: Topology, sizes: tuple[int, ...]) -> dict[str, Lines]:
    chip = topology.chip
    left = [(size, wraps) for size, wraps in zip(topology.shape, topology.wraps, strict=True)]
    inside = chip.devices  # of one chip, joined by more than a link
    found = {}
    for axis, size in reversed(list(zip(AXES, sizes, strict=True))):
        if size == 1:
            continue
        rest, directions, length, closed = size, 0, 1, True
        # Devices of one chip share its links, unless they want the same or pass on what comes.
        together = inside > 1 and rest % inside == 0
        if together:
            rest, inside = rest // inside, 1
        for number in _whole(left, rest):
            extent, wraps = left[number]
            rest, left[number] = rest // extent, (1, False)
            directions += 2 if wraps else 1
            length, closed = max(length, extent), closed and wraps
        for number, (extent, _) in enumerate(left):
            part = math.gcd(extent, rest)
            if part > 1:
                rest, left[number] = rest // part, (extent // part, False)
                directions, length, closed = directions + 1, max(length, part), False
        # An axis of the devices of one chip alone: as if on one link (they have more).
        directions = max(1, directions)
        own, each = chip.link / chip.devices, chip.link / (1 if together else chip.devices)
        found[axis] = Lines(size, each * directions, own * directions, each, length, closed)
    return found


def _whole(left: list[tuple[int, bool]], size: int) -> list[int]:
    """Which dimensions make up `size`, the longest ones first; none if no set of them does."""
    best: list[int] = []
    for choice in range(1, 1 << len(left)):
        chosen = [number for number in range(len(left)) if choice >> number & 1]
        extents = [left[number][0] for number in chosen]
        if min(extents) > 1 and math.prod(extents) == size and len(chosen) > len(best):
            best = chosen
    return best


def _on_hosts(topology: Topology, sizes: tuple[int, ...]) -> dict[str, Lines]:
    """Inner axes fill a host; an axis that leaves it has an adapter for each of its devices there."""
    chip, inner, found = topology.chip, 1, {}
    for axis, size in reversed(list(zip(AXES, sizes, strict=True))):
        if size == 1:
            continue
        if inner * size <= chip.per_host or not chip.network:
            found[axis] = Lines(size, chip.link, chip.link, chip.link)
        else:
            here = max(1, chip.per_host // inner)
            together = min(chip.link, chip.network * here)
            found[axis] = Lines(size, together, chip.network, chip.network)
        inner *= size
    return found
