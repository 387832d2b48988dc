"""How sure a score is: intervals of a proportion and of a difference, and paired tests. numpy only.

    wilson(correct, n)                 one accuracy
    compare(before, after)             two systems on the same items, right or wrong
    bootstrap_difference(a, b)         two systems on the same items, any scores

The first two are `gemma4_jax.verify.intervals`, which training reports with too.
"""

import numpy as np

from gemma4_jax.verify.intervals import (
    Comparison,
    Interval,
    Scores,
    compare,
    mcnemar,
    paired,
    wilson,
)

__all__ = [
    "Comparison",
    "Interval",
    "Scores",
    "bootstrap_difference",
    "compare",
    "mcnemar",
    "wilson",
]


def bootstrap_difference(
    first: Scores,
    second: Scores,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of second - first over paired items, with a percentile bootstrap interval over items.

    For scores that are no 0 and 1 (averages over samples, graded answers, log-probabilities). Too narrow
    for fewer than about 20 items. The same seed gives the same interval.
    """
    a, b = paired(first, second)
    gain = b - a
    generator = np.random.default_rng(seed)
    block = max(1, 2**22 // gain.size)  # resamples at a time: 32 MiB of indices
    means = [
        gain[generator.integers(gain.size, size=(min(block, resamples - i), gain.size))].mean(1)
        for i in range(0, resamples, block)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(gain.mean()), float(low), float(high))
