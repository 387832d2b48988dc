"""Which examples are in batch n: a pure function of n, whatever was read before it.

So the position of a run is the number of batches it has taken, and nothing else: it can be resumed, on any
number of processes, without replaying or counting anything. Parts of a mixture, and rows of one length,
are streams of their own, each shuffled anew in every pass over it; a fixed rule says which stream is next.
Not here: what an example is (pipeline.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Part:
    """Examples [start, stop) of a data set, and the share of rows that are drawn from them."""

    start: int
    stop: int
    weight: Fraction


@dataclass(frozen=True)
class Share:
    """Deals numbers 0, 1, 2, ... to streams in the proportion of their weights.

    Of the first n numbers a stream gets its share of n, to within one for every other stream, for any n and
    without a table.
    """

    weights: tuple[Fraction, ...]

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Stream that gets `number`, and how many it got before."""
        left = sum(self.weights)
        for stream, weight in enumerate(self.weights[:-1]):
            # Bresenham's line: of what the streams before did not take, this one takes weight / left.
            before = number * weight // left
            if (number + 1) * weight // left > before:
                return stream, int(before)
            number -= int(before)
            left -= weight
        return len(self.weights) - 1, number


class Stream:
    """Some examples endlessly: all of them in a new order, again and again; any position at once.

    (grain's own shuffle finds an index by trial: 12 ms for one of two rows, 1.6 ms for one of twenty.)
    """

    def __init__(self, examples: np.ndarray, seed: int, key: tuple[int, ...]):
        """key: what tells this stream from others of the same seed."""
        self._examples, self._key = examples, [seed, *key]
        # Two passes at a time, by parity: threads that make neighbouring batches may be in either.
        self._passes: list[tuple[int, np.ndarray]] = [(-1, examples), (-1, examples)]

    def __getitem__(self, position: int) -> int:
        number, at = divmod(position, len(self._examples))
        held, order = self._passes[number % 2]
        if held != number:
            order = np.random.default_rng([*self._key, number]).permutation(self._examples)
            self._passes[number % 2] = (number, order)
        return int(order[at])


class Order:
    """Numbers of the examples of every batch, endless.

    With more than one length, every batch has examples of one; a length comes up as often as examples of it
    are drawn.
    """

    def __init__(
        self, parts: Sequence[Part], lengths: np.ndarray, sizes: Sequence[int], rows: int, seed: int
    ):
        """lengths: int [examples], tokens of each. sizes: what they are padded to, rising, the last one at
        least as large as all lengths. rows: examples in a batch."""
        self._rows = rows
        self._sizes: list[int] = []
        self._streams: list[list[Stream]] = []
        self._parts: list[Share] = []
        shares: list[Fraction] = []
        fits = np.searchsorted(np.asarray(sizes), lengths)
        for number, size in enumerate(sizes):
            streams, weights = [], []
            for part in parts:
                chosen = part.start + np.flatnonzero(fits[part.start : part.stop] == number)
                if len(chosen):
                    streams.append(Stream(chosen, seed, (part.start, size)))
                    weights.append(part.weight * len(chosen) / (part.stop - part.start))
            if streams:
                self._sizes.append(size)
                self._streams.append(streams)
                self._parts.append(Share(tuple(weights)))
                shares.append(sum(weights, Fraction(0)))
        self._lengths = Share(tuple(shares))

    def batch(self, number: int) -> tuple[np.ndarray, int]:
        """Example numbers int64 [rows] of a batch, and the length they are padded to."""
        size, before = self._lengths[number]
        streams, share = self._streams[size], self._parts[size]
        examples = []
        for row in range(before * self._rows, (before + 1) * self._rows):
            stream, position = share[row]
            examples.append(streams[stream][position])
        return np.asarray(examples, np.int64), self._sizes[size]


def bucket_sizes(lengths: np.ndarray, steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of `steps` that rows are padded to, rising, for the fewest tokens of padding.

    lengths: int [n] tokens of each row. steps: lengths that may be compiled, rising; the last one holds every
    row and is always among them.
    """
    rows = np.bincount(np.searchsorted(np.asarray(steps), lengths), minlength=len(steps))
    below = np.concatenate([[0], np.cumsum(rows)])
    # cost[k]: tokens of all rows up to steps[k], padded to as many lengths as the round has allowed,
    # of which steps[k] is the largest. before[r][k]: the next smaller one, -1 if
    # fewer lengths do as well.
    cost = below[1:] * np.asarray(steps, np.float64)
    before: list[np.ndarray] = []
    for _ in range(1, min(count, len(steps))):
        best, links = cost.copy(), np.full(len(steps), -1)
        for k in range(1, len(steps)):
            split = cost[:k] + (below[k + 1] - below[1 : k + 1]) * float(steps[k])
            j = int(split.argmin())
            if split[j] < best[k]:
                best[k], links[k] = split[j], j
        before.append(links)
        cost = best
    chosen = [len(steps) - 1]
    for links in reversed(before):
        if links[chosen[0]] >= 0:
            chosen.insert(0, int(links[chosen[0]]))
    return [steps[k] for k in chosen]
