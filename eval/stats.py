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
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

Scores = Sequence[float] | Sequence[bool] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds the truth with the confidence asked for."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems on the same items. difference: second minus first, as shares of the items.

    only_first, only_second: items that one alone got right, or on which it is better. p_value, two-sided: how
    often chance would split those items at least so unevenly between two equal systems (McNemar's exact test,
    or signs flipped).
    """

    difference: Interval
    only_first: int
    only_second: int
    p_value: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: sound for few items and near 0 and 1.

    Source: E. B. Wilson, JASA 22 (1927) 209. Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    return _score(successes / n, n, _z(confidence))


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
    return _score(mean, worth, _t(confidence, n - 1))


def standard_error(values: Scores) -> float | None:
    """Of the mean of independent values, from their own spread; None for fewer than two."""
    x = np.asarray(values, float)
    return None if x.size < 2 else float(x.std(ddof=1) / math.sqrt(x.size))


def compare(first: Scores, second: Scores, confidence: float = 0.95) -> Comparison:
    """Compare two systems that were right (1) or wrong (0) on the same items, in the same order.

    The interval is Bonett and Price's (J. Educ. Behav. Stat. 37 (2012) 479): Wald's after one more item
    that each system alone gets right, so that it does not shrink to nothing when two never disagree.

    Raises ValueError for empty or unequal lists, or scores other than 0 and 1.
    """
    a, b = _paired(first, second)
    if not np.isin(a, (0, 1)).all() or not np.isin(b, (0, 1)).all():
        raise ValueError("compare needs scores of 0 and 1; bootstrap_difference takes any")
    only_first, only_second = int(np.sum(a > b)), int(np.sum(b > a))
    low, high = _bonett_price(only_first, only_second, a.size, _z(confidence))
    return Comparison(
        difference=Interval((only_second - only_first) / a.size, low, high),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that items which one system alone got right fall to either by a fair coin."""
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts must not be negative, got {only_first} and {only_second}")
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = math.fsum(math.exp(_log_choose(n, k) - n * math.log(2)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


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
    a, b = _paired(first, second)
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
    a, b = _paired(first, second)
    return bootstrap(b - a, confidence, resamples, seed)


def _score(share: float, worth: float, quantile: float) -> Interval:
    """Wilson's interval of a share of `worth` independent answers."""
    square = quantile * quantile
    scale = 1 + square / worth
    middle = (share + square / (2 * worth)) / scale
    spread = share * (1 - share) / worth + square / (4 * worth * worth)
    half = quantile * math.sqrt(spread) / scale
    # At the ends the formula gives 0 and 1 exactly, arithmetic not quite.
    low = 0.0 if share == 0 else middle - half
    high = 1.0 if share == 1 else middle + half
    return Interval(share, low, high)


def _bonett_price(only_first: int, only_second: int, n: int, z: float) -> tuple[float, float]:
    p_first, p_second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    middle = p_second - p_first
    half = z * math.sqrt((p_first + p_second - middle**2) / (n + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def _paired(first: Scores, second: Scores) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"paired scores must be two lists of one length, not empty; got shapes {a.shape} and {b.shape}"
        )
    return a, b


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _t(confidence: float, freedom: int) -> float:
    _z(confidence)
    return float(stdtrit(freedom, (1 + confidence) / 2))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
