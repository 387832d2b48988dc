"""How sure a score is: intervals of a mean and of a difference, and paired tests.

    wilson(correct, n)                 one accuracy, an answer to each question
    clustered(means, samples)          one accuracy, several answers to each question
    compare(before, after)             two systems on the same items, right or wrong
    compare_means(a, b, samples)       two systems on the same items, several answers to each
    bootstrap(values)                  a mean of anything
    bootstrap_difference(a, b)         two systems on the same items, any scores

Answers to one question are alike: sixteen of them are not sixteen questions. What is counted is questions,
and the truth that an interval holds is the mean over all questions of the kind. How often each does hold it
is in docs/statistics.md. Two systems judged on the same items are compared item by item: differences between
items then cancel, and the interval is far narrower than that of two separate accuracies.

Not here: what several answers to a question are worth together (repeats.py).

The first four are those of `gemma4_jax/verify` (intervals.py, clusters.py), which training reports with too.
"""

import math
from statistics import NormalDist

import numpy as np

from gemma4_jax.verify.clusters import clustered, compare_means, sign_flip, t_quantile
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
    "bootstrap",
    "bootstrap_difference",
    "clustered",
    "compare",
    "compare_means",
    "mcnemar",
    "sign_flip",
    "standard_error",
    "wilson",
]


def standard_error(values: Scores) -> float | None:
    """Of the mean of independent values, from their own spread; None for fewer than two."""
    x = np.asarray(values, float)
    return None if x.size < 2 else float(x.std(ddof=1) / math.sqrt(x.size))


def bootstrap(
    values: Scores, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """A mean with a percentile bootstrap interval over values; the same seed gives the same interval.

    The percentiles lie a little further out than the confidence says, so that few values get as wide an
    interval as Student's (T. Hesterberg, The American Statistician 69 (2015) 371). It cannot see what no
    value shows: scores near 0 or 1 are for `clustered`. Raises ValueError for fewer than two values.
    """
    x = np.asarray(values, float)
    if x.ndim != 1 or x.size < 2:
        raise ValueError(
            f"a bootstrap needs a list of at least two values, got an array of shape {x.shape}"
        )
    generator = np.random.default_rng(seed)
    block = max(1, 2**22 // x.size)  # resamples at a time: 32 MiB of indices
    means = [
        x[generator.integers(x.size, size=(min(block, resamples - i), x.size))].mean(1)
        for i in range(0, resamples, block)
    ]
    tail = NormalDist().cdf(-math.sqrt(x.size / (x.size - 1)) * t_quantile(confidence, x.size - 1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high))


def bootstrap_difference(
    first: Scores,
    second: Scores,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """`bootstrap` of second - first over paired items.

    For scores that are no 0 and 1 (averages over samples, graded answers, log-probabilities).
    """
    a, b = paired(first, second)
    return bootstrap(b - a, confidence, resamples, seed)
