"""Preference pairs whose prompt stands in a row once, packed: what both answers share is computed once.

Of a prompt p and its answers c and r, a row holds

    tokens     p0 p1 .. p(n-2) | p(n-1) c0 c1 .. | p(n-1) r0 r1 ..
    branches    0  0 ..  0     |   1     1  1 .. |   2     2  2 ..
    positions   0  1 .. n-2    |  n-1    n n+1.. |  n-1    n n+1..

The prompt's last token stands in both branches: it predicts the first token of each, so each has a place to
do that. A token sees branch 0 and its own (gemma4_jax/model/visibility.py), by position, so every token
has the very past that it has in a row of its own. Not here: sums over branches (train/branches.py).
"""

import numpy as np

from gemma4_jax.data.encode import Sequence
from train.data.mixture import Sequences
from train.data.order import Part
from train.data.packing import first_fit
from train.data.sequences import Example, padded_length

Pair = tuple[Sequence, Sequence]


def shared_length(pair: Pair) -> int:
    """Tokens of branch 0: the prompt without its last token."""
    first = min(int(side.loss_mask.argmax()) for side in pair)
    return max(first - 1, 0)


def pair_length(pair: Pair) -> int:
    """Tokens of a pair in a row."""
    return sum(len(side.tokens) for side in pair) - shared_length(pair)


def fill_pairs(pairs: list[Pair], length: int) -> Example:
    """Put pairs one after the other into arrays [length], the rest is padding.

    Keys as in `sequences.fill`, with a segment for each pair, and branches int32: 0 what its answers share
    (and padding), 1 chosen, 2 rejected.
    """
    arrays = {
        name: np.zeros(length, np.int32)
        for name in ("tokens", "targets", "segment_ids", "positions", "branches")
    }
    arrays["loss_mask"] = np.zeros(length, bool)
    start = 0
    for number, pair in enumerate(pairs, start=1):
        shared = shared_length(pair)
        begin = start
        for branch, side in enumerate((pair[0], *pair)):
            first = 0 if branch == 0 else shared
            last = shared if branch == 0 else len(side.tokens)
            end = begin + last - first
            here = slice(begin, end)
            arrays["tokens"][here] = side.tokens[first:last]
            arrays["positions"][here] = np.arange(first, last)
            arrays["branches"][here] = branch
            arrays["segment_ids"][here] = number
            if branch:
                arrays["targets"][begin : end - 1] = side.tokens[first + 1 :]
                arrays["loss_mask"][begin : end - 1] = side.loss_mask[first + 1 :]
            else:
                # The last of them is followed by a token of each branch, and predicts neither's answer.
                arrays["targets"][here] = side.tokens[1 : last + 1]
            begin = end
        start = begin
    return arrays


class SharedPrefixRows:
    """As many pairs per example as first fit puts together, each prompt once; arrays [T].

    pairs: most pairs in an example, S. Beside the arrays of `fill_pairs` an example has `pair_mask` bool [S],
    and `reference_logprobs` float32 [S, 2] if given (0 where there is no pair); pair s is segment s + 1.
    """

    def __init__(
        self,
        prepared: Sequences,
        max_length: int,
        seed: int,
        reference: np.ndarray | None = None,
    ):
        """prepared: sequences 2i (chosen) and 2i + 1 (rejected). max_length: T, or more where one pair needs
        it: both of its answers stand in one row. reference: float32 [pairs, 2]."""
        self._prepared, self._reference = prepared, reference
        tokens = prepared.lengths
        joined = np.asarray([pair_length(self._pair(i)) for i in range(len(tokens) // 2)])
        self.length = max(max_length, padded_length(joined, int(joined.max()) + 64))
        self._groups: list[np.ndarray] = []
        parts = []
        for part in prepared.parts:
            start, first = len(self._groups), part.start // 2
            groups = first_fit(joined[first : part.stop // 2], self.length, seed)
            self._groups += [first + group for group in groups]
            parts.append(Part(start, len(self._groups), part.weight))
        self.parts = tuple(parts)
        self.lengths = np.full(len(self._groups), self.length)
        self.pairs = max(map(len, self._groups))
        kept, apart = int(joined.sum()), int(tokens.sum())
        self.summary = (
            f"{len(joined)} pairs in {len(self)} sequences of {self.length}, prompts once: {kept} tokens "
            f"instead of {apart} ({1 - kept / apart:.0%} saved)"
        )

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Example:
        return self.padded(index, self.length)

    def padded(self, index: int, length: int) -> Example:
        """Arrays [length]."""
        group = self._groups[index]
        example = fill_pairs([self._pair(int(i)) for i in group], length)
        example["pair_mask"] = np.arange(self.pairs) < len(group)
        if self._reference is not None:
            logprobs = np.zeros((self.pairs, 2), np.float32)
            logprobs[: len(group)] = self._reference[group]
            example["reference_logprobs"] = logprobs
        return example

    def _pair(self, index: int) -> Pair:
        return self._prepared.sequence(2 * index), self._prepared.sequence(2 * index + 1)
