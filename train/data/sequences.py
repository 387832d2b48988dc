"""The arrays of fixed length that a train step reads, made of token sequences.

Here: the one place where next-token targets are made. Not here: where sequences come from (gemma4_jax/data,
prepared.py) and how examples become batches (pipeline.py).
"""

import math
from collections.abc import Sequence as AbstractSequence

import numpy as np

from gemma4_jax.data.encode import Sequence

Example = dict[str, np.ndarray]

# Compiled shapes are multiples of this, so that slightly longer data reuse the compiled step.
_LENGTH_STEP = 64


def fill(sequences: AbstractSequence[Sequence], length: int) -> Example:
    """Put token sequences one after the other into arrays [length], the rest is padding.

    Keys: tokens int32, targets int32 (the next token), loss_mask bool (the target counts), segment_ids
    int32 (0 padding, then 1, 2, ... by sequence), positions int32 (restart in each sequence). The
    first token of a sequence is no target: nothing before it may predict it.
    """
    tokens = np.zeros(length, np.int32)
    targets = np.zeros(length, np.int32)
    loss_mask = np.zeros(length, bool)
    segment_ids = np.zeros(length, np.int32)
    positions = np.zeros(length, np.int32)
    start = 0
    for number, sequence in enumerate(sequences, start=1):
        end = start + len(sequence.tokens)
        tokens[start:end] = sequence.tokens
        targets[start : end - 1] = sequence.tokens[1:]
        loss_mask[start : end - 1] = sequence.loss_mask[1:]
        segment_ids[start:end] = number
        positions[start:end] = np.arange(end - start)
        start = end
    return {
        "tokens": tokens,
        "targets": targets,
        "loss_mask": loss_mask,
        "segment_ids": segment_ids,
        "positions": positions,
    }


def padded_length(lengths: np.ndarray, max_length: int) -> int:
    """T for rows of these lengths: the longest, rounded up, but not above `max_length`."""
    return min(max_length, math.ceil(int(lengths.max()) / _LENGTH_STEP) * _LENGTH_STEP)


def length_steps(length: int) -> list[int]:
    """All T that rows of a data set padded to `length` may have, rising."""
    return [*range(_LENGTH_STEP, length, _LENGTH_STEP), length]
