"""How sure an accuracy is where items are answered several times: its interval, and the change between systems.

    clustered(means, samples)          one accuracy, several answers to each item
    compare_means(a, b, samples)       two systems on the same items, several answers to each

Answers to one question are alike: sixteen of them are not sixteen questions. What is counted is questions,
and the truth that an interval holds is the mean over all questions of the kind. How often each does hold it
is in docs/statistics.md. Not here: one answer to each (intervals.py).
"""

import math

import numpy as np
from scipy.special import stdtrit

from gemma4_jax.verify.intervals import (
    Comparison,
    Interval,
    Scores,
    paired,
    score_interval,
    wilson,
    z_quantile,
)


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
    return score_interval(mean, worth, t_quantile(confidence, n - 1))


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
        half = t_quantile(confidence, gain.size - 1) * float(padded.std()) / math.sqrt(padded.size)
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


def t_quantile(confidence: float, freedom: int) -> float:
    """Of Student's distribution, two-sided; ValueError unless 0 < confidence < 1."""
    z_quantile(confidence)
    return float(stdtrit(freedom, (1 + confidence) / 2))
