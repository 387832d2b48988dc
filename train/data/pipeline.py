"""Prepared rows -> batches of fixed shape, endless, in an order that the seed fixes.

Here: examples by number, of the three kinds there are, and the grain pipeline around them. A pair has
its arrays as [2, T]: chosen, rejected. Not here: tokenising (prepared.py), what the arrays are
(sequences.py), packing plans (packing.py), which examples come when (order.py), devices.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from gemma4_jax.errors import UserError
from train.data.mixture import Sequences
from train.data.order import Order, Part, bucket_sizes
from train.data.packing import first_fit
from train.data.sequences import Example, fill, length_steps, padded_length


class Source(Protocol):
    """Examples by number.

    length: tokens the longest is padded to. lengths: int [examples], tokens of each. parts: of a mixture.
    """

    length: int
    lengths: np.ndarray
    parts: tuple[Part, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Arrays padded to `length`: all examples have one shape."""

    def padded(self, index: int, length: int) -> Example:
        """Arrays padded to `length`, which the example must fit."""


class SFTRows:
    """One sequence per example."""

    def __init__(self, prepared: Sequences, max_length: int):
        """prepared: one sequence a row."""
        self._prepared = prepared
        self.lengths, self.parts = prepared.lengths, prepared.parts
        self.length = padded_length(self.lengths, max_length)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        return self.padded(index, self.length)

    def padded(self, index: int, length: int) -> Example:
        """Arrays [length]."""
        return fill([self._prepared.sequence(index)], length)


class PackedRows:
    """As many sequences per example as first fit puts together; parts of a mixture are packed apart."""

    def __init__(self, prepared: Sequences, max_length: int, seed: int):
        """prepared: one sequence a row; max_length: T of the packed examples."""
        self._prepared = prepared
        self._groups: list[np.ndarray] = []
        parts, lengths = [], prepared.lengths
        for part in prepared.parts:
            start = len(self._groups)
            groups = first_fit(lengths[part.start : part.stop], max_length, seed)
            self._groups += [part.start + group for group in groups]
            parts.append(Part(start, len(self._groups), part.weight))
        self.parts = tuple(parts)
        self.length = max_length
        self.lengths = np.full(len(self._groups), max_length)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Example:
        return self.padded(index, self.length)

    def padded(self, index: int, length: int) -> Example:
        """Arrays [length]."""
        return fill([self._prepared.sequence(i) for i in self._groups[index]], length)


class PairRows:
    """Chosen and rejected per example, arrays [2, T]; `reference_logprobs` [2] float32 if given."""

    def __init__(self, prepared: Sequences, max_length: int, reference: np.ndarray | None = None):
        """prepared: sequences 2i (chosen) and 2i + 1 (rejected); reference: float32 [pairs, 2]."""
        self._prepared = prepared
        self._reference = reference
        self.lengths = prepared.lengths.reshape(-1, 2).max(axis=1)
        self.parts = tuple(Part(p.start // 2, p.stop // 2, p.weight) for p in prepared.parts)
        self.length = padded_length(self.lengths, max_length)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        return self.padded(index, self.length)

    def padded(self, index: int, length: int) -> Example:
        """Arrays [2, length]."""
        sides = [fill([self._prepared.sequence(2 * index + side)], length) for side in (0, 1)]
        example = {name: np.stack([side[name] for side in sides]) for name in sides[0]}
        if self._reference is not None:
            example["reference_logprobs"] = np.asarray(self._reference[index], np.float32)
        return example


@dataclass(frozen=True)
class _MakeBatch:
    """Number of a batch -> its rows [first, last), stacked. A class, so that worker processes get it."""

    source: Source
    order: Order
    first: int
    last: int

    def __call__(self, number: int) -> Example:
        indices, length = self.order.batch(number)
        examples = [self.source.padded(int(i), length) for i in indices[self.first : self.last]]
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


class Batches:
    """Endless iterator of batches; its whole state is how many batches of the run were taken.

    The state is the same on all processes and says nothing of how many there are, nor of workers: a run
    goes on at the very next row on any number of either.
    """

    def __init__(self, make: _MakeBatch, workers: int):
        self._make, self._workers = make, workers
        self._taken = 0
        self._running: Iterator[Example] | None = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Example:
        if self._running is None:
            self._running = self._start()
        batch = next(self._running)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """{"batches": taken so far}."""
        return {"batches": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on after as many batches as `state` says."""
        self.close()
        self._taken = state["batches"]

    def close(self) -> None:
        """Stop the threads or processes that make batches."""
        running: Any = self._running
        self._running = None
        if running is not None:
            running.close()

    def _start(self) -> Iterator[Example]:
        # grain asks absl for flags that a program without absl's main never parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = grain.MapDataset.range(self._taken, sys.maxsize).map(self._make)
        if not self._workers:
            options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
            return iter(batches.to_iter_dataset(options))
        # A thread more in each worker would only wait for the same core.
        reading = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        return iter(
            reading.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
            )
        )


def iterate(
    source: Source,
    rows: int,
    seed: int,
    *,
    buckets: int = 1,
    workers: int = 0,
    share: int = 0,
    shares: int = 1,
) -> Batches:
    """Endless batches of `rows` examples over all processes, reshuffled in every pass over the data.

    A process gets its share of the rows of every batch: all shares, in order, are the batch that one process
    alone would get. Batches run across the ends of passes, so every batch is full and no row is
    left out. buckets: lengths that rows may be padded to; a batch has rows of one. workers: processes that
    make batches, 0 for threads.
    """
    if rows % shares:
        raise UserError(
            f"batch.rows is {rows}; it must be a multiple of {shares}, the parts that processes bring it in"
        )
    sizes = bucket_sizes(source.lengths, length_steps(source.length), buckets)
    order = Order(source.parts, source.lengths, sizes, rows, seed)
    mine = rows // shares
    make = _MakeBatch(source, order, share * mine, (share + 1) * mine)
    return Batches(make, workers)
