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

`wilson` and `compare` are `gemma4_jax.verify.intervals`, which training reports with too.
"""

import math
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from gemma4_jax.verify.intervals import (
    Comparison,
    Interval,
    Scores,
    compare,
    mcnemar,
    paired,
    score_interval,
    wilson,
    z_quantile,
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


def clustered(means: Scores, samples: int, confidence: float = 0.95) -> Interval:
    """Interval of a mean of per-question means, each from 0 to 1; `samples`: answers to all questions
    together.

    Wilson's interval of as many independent answers as these questions are worth, with Student's quantile,
    as is done for surveys that ask in clusters (Dean and Pagano, J. Surv. Stat. Methodol. 3 (2015) 484). The
    variance between questions counts one more question that is always right or always wrong: few questions of
    an easy or hard set look more alike than the set is. With one answer to each question it is `wilson`.
    One question that is sometimes right says nothing of others: [0, 1].

    Raises ValueError for no means, for means outside 0 to 1, and for fewer samples than means.
    """
    x = np.asarray(means, float)
    if x.ndim != 1 or x.size == 0 or not ((x >= 0) & (x <= 1)).all():
        raise ValueError("clustered needs a list of means from 0 to 1, not empty")
    if samples < x.size:
        raise ValueError(f"{samples} samples are fewer than the {x.size} questions they answer")
    n, mean = x.size, float(x.mean())
    if np.isin(x, (0, 1)).all():
        return wilson(round(x.sum()), n, confidence)
    if n == 1:
        return Interval(mean, 0.0, 1.0)
    away = (x.sum() + 2) / (n + 4)  # from 0 and 1, where a variance would vanish
    variance = ((n - 1) * x.var(ddof=1) + away * (1 - away)) / n
    worth = min(samples, n * mean * (1 - mean) / variance)
    return score_interval(mean, worth, _t(confidence, n - 1))


def standard_error(values: Scores) -> float | None:
    """Of the mean of independent values, from their own spread; None for fewer than two."""
    x = np.asarray(values, float)
    return None if x.size < 2 else float(x.std(ddof=1) / math.sqrt(x.size))


def compare_means(
    first: Scores,
    second: Scores,
    samples: int,
    confidence: float = 0.95,
    flips: int = 20_000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems by their means on the same questions, from 0 to 1, in the same order.

    samples: answers to a question that its means are of, the fewer of the two. The interval is Student's,
    after two more questions that differ by one answer, one each way: of `compare`, where a question has one
    answer, and it never shrinks to nothing. The p-value flips the signs of differences, which two equal
    systems' have by chance. One question alone says nothing: [-1, 1].

    Raises ValueError for empty or unequal lists, means outside 0 to 1, and samples below 1.
    """
    a, b = paired(first, second)
    if samples < 1 or not all(((x >= 0) & (x <= 1)).all() for x in (a, b)):
        raise ValueError("compare_means needs means from 0 to 1 of at least one sample")
    gain = b - a
    interval = Interval(float(gain.mean()), -1.0, 1.0)
    if gain.size > 1:
        padded = np.concatenate([gain, [1 / samples, -1 / samples]])
        middle = float(padded.mean())
        half = _t(confidence, gain.size - 1) * float(padded.std()) / math.sqrt(padded.size)
        interval = Interval(interval.estimate, max(-1.0, middle - half), min(1.0, middle + half))
    return Comparison(
        difference=interval,
        only_first=int(np.sum(gain < 0)),
        only_second=int(np.sum(gain > 0)),
        p_value=sign_flip(gain, flips, seed),
    )


def sign_flip(gains: Scores, flips: int = 20_000, seed: int = 0) -> float:
    """Two-sided p-value that a sum of gains is so far from 0, had each its sign by a fair coin.

    Exact for up to 12 gains that are not 0; beyond from so many `flips`, so never below 1 / (flips + 1).
    """
    x = np.asarray(gains, float)
    x = x[x != 0]
    far = abs(x.sum()) * (1 - 1e-9)
    if x.size <= 12:
        signs = 1 - 2 * ((np.arange(2**x.size)[:, None] >> np.arange(x.size)) & 1)
        return float(np.mean(np.abs(signs @ x) >= far))
    generator = np.random.default_rng(seed)
    block = max(1, 2**22 // x.size)
    hits = 0
    for i in range(0, flips, block):
        signs = 1 - 2 * generator.integers(2, size=(min(block, flips - i), x.size))
        hits += int(np.sum(np.abs(signs @ x) >= far))
    return (hits + 1) / (flips + 1)


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
    tail = NormalDist().cdf(-math.sqrt(x.size / (x.size - 1)) * _t(confidence, x.size - 1))
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


def _t(confidence: float, freedom: int) -> float:
    z_quantile(confidence)
    return float(stdtrit(freedom, (1 + confidence) / 2))
