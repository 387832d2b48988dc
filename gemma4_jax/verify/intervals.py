"""How sure an accuracy is: its interval, and the change between two systems on the same items. numpy only.

    wilson(correct, n)                 one accuracy
    compare(before, after)             two systems on the same items, right or wrong

Two systems judged on the same items are compared item by item: differences between items then cancel, and the
interval is far narrower than that of two separate accuracies. Not here: several answers to an item
(clusters.py), and scores of another kind (eval/stats.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

# Numbers; what is none is a ValueError of the function that gets it.
Scores = Sequence[Any] | np.ndarray


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
    return score_interval(successes / n, n, z_quantile(confidence))


def compare(first: Scores, second: Scores, confidence: float = 0.95) -> Comparison:
    """Compare two systems that were right (1) or wrong (0) on the same items, in the same order.

    The interval is Bonett and Price's (J. Educ. Behav. Stat. 37 (2012) 479): Wald's after one more item
    that each system alone gets right, so that it does not shrink to nothing when two never disagree.

    Raises ValueError for empty or unequal lists, or scores other than 0 and 1.
    """
    a, b = paired(first, second)
    if not np.isin(a, (0, 1)).all() or not np.isin(b, (0, 1)).all():
        raise ValueError("compare needs scores of 0 and 1; bootstrap_difference takes any")
    only_first, only_second = int(np.sum(a > b)), int(np.sum(b > a))
    low, high = _bonett_price(only_first, only_second, a.size, z_quantile(confidence))
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


def score_interval(share: float, worth: float | int, quantile: float) -> Interval:
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


def paired(first: Scores, second: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Two lists of scores as arrays; ValueError unless they have one length and are not empty."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"paired scores must be two lists of one length, not empty; got shapes {a.shape} and {b.shape}"
        )
    return a, b


def z_quantile(confidence: float) -> float:
    """Of the normal distribution, two-sided; ValueError unless 0 < confidence < 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _bonett_price(only_first: int, only_second: int, n: int, z: float) -> tuple[float, float]:
    p_first, p_second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    middle = p_second - p_first
    half = z * math.sqrt((p_first + p_second - middle**2) / (n + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
