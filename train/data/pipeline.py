"""Prepared rows -> batches of fixed shape, endless, in an order that the seed fixes.

Here: examples by number, of the three kinds there are, and the grain pipeline around them. A pair has
its arrays as [2, T]: chosen, rejected. Not here: tokenising (prepared.py), what the arrays are
(sequences.py), packing plans (packing.py), devices.
"""

from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from train.data.packing import first_fit
from train.data.prepared import Prepared
from train.data.sequences import Example, fill, padded_length


class Source(Protocol):
    """Examples by number, all of one shape."""

    length: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class SFTRows:
    """One sequence per example."""

    def __init__(self, prepared: Prepared, max_length: int):
        """prepared: one sequence a row."""
        self._prepared = prepared
        self.length = padded_length(prepared.lengths, max_length)

    def __len__(self) -> int:
        return len(self._prepared.lengths)

    def __getitem__(self, index: int) -> Example:
        return fill([self._prepared.sequence(index)], self.length)


class PackedRows:
    """As many sequences per example as first fit puts together."""

    def __init__(self, prepared: Prepared, max_length: int, seed: int):
        """prepared: one sequence a row; max_length: T of the packed examples."""
        self._prepared = prepared
        self._groups = first_fit(prepared.lengths, max_length, seed)
        self.length = max_length

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Example:
        return fill([self._prepared.sequence(i) for i in self._groups[index]], self.length)


class PairRows:
    """Chosen and rejected per example, arrays [2, T]; `reference_logprobs` [2] float32 if given."""

    def __init__(self, prepared: Prepared, max_length: int, reference: np.ndarray | None = None):
        """prepared: sequences 2i (chosen) and 2i + 1 (rejected); reference: float32 [pairs, 2]."""
        self._prepared = prepared
        self._reference = reference
        self.length = padded_length(prepared.lengths, max_length)

    def __len__(self) -> int:
        return len(self._prepared.lengths) // 2

    def __getitem__(self, index: int) -> Example:
        sides = [fill([self._prepared.sequence(2 * index + side)], self.length) for side in (0, 1)]
        example = {name: np.stack([side[name] for side in sides]) for name in sides[0]}
        if self._reference is not None:
            example["reference_logprobs"] = np.asarray(self._reference[index], np.float32)
        return example


def iterate(source: Source, rows: int, seed: int) -> Any:
    """Endless grain iterator of batches of `rows` examples, reshuffled every epoch.

    Batches run across the ends of epochs, so every batch is full and no row is left out. The
    iterator's whole state is the number of batches taken (`get_state`, `set_state`).
    """
    # grain asks absl for flags that a program without absl's main never parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    batches = grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(rows)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))
