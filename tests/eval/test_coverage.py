"""Intervals hold the truth as often as they say: the simulation whose numbers docs/statistics.md has.

A benchmark is drawn (its questions' difficulties), then answered k times; the truth is the mean over all
questions of the kind. Run this file as a module to print the table.
"""

from collections.abc import Callable

import numpy as np
import pytest

from eval.stats import Interval, bootstrap, clustered, compare_means, standard_error, wilson

Method = Callable[
    [np.ndarray, int], tuple[float, float]
]  # right answers of n questions, k -> low, high
# Difficulties: as of AIME (spec), few right, nearly all right, all alike in the middle.
KINDS = {"0.73": (0.8, 0.3), "0.06": (0.2, 3.0), "0.97": (3.0, 0.1), "0.50": (2.0, 2.0)}
SIZES = ((30, 1), (30, 4), (30, 16), (30, 64), (198, 1), (198, 4), (1055, 1))


def _ours(right: np.ndarray, k: int) -> tuple[float, float]:
    return _ends(clustered(right / k, right.size * k))


def _resampled(right: np.ndarray, k: int) -> tuple[float, float]:
    return _ends(bootstrap(right / k, resamples=400, seed=int(right.sum())))


def _pooled(right: np.ndarray, k: int) -> tuple[float, float]:
    return _ends(wilson(int(right.sum()), right.size * k))


def _normal(right: np.ndarray, k: int) -> tuple[float, float]:
    error = standard_error(right / k) or 0.0
    mean = float(np.mean(right / k))
    return mean - 1.96 * error, mean + 1.96 * error


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


METHODS: dict[str, Method] = {
    "ours": _ours,
    "bootstrap": _resampled,
    "normal": _normal,
    "pooled": _pooled,
}


def coverage(
    kind: tuple[float, float], n: int, k: int, method: Method, trials: int
) -> tuple[float, float]:
    """(share of intervals that hold the truth, mean width)."""
    a, b = kind
    generator = np.random.default_rng(0)
    truth, held, width = a / (a + b), 0, 0.0
    for _ in range(trials):
        low, high = method(generator.binomial(k, generator.beta(a, b, size=n)), k)
        held += low <= truth <= high
        width += high - low
    return held / trials, width / trials


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_holds_the_truth_as_often_as_it_says(kind, n, k):
    # 3000 trials: a true 0.95 stays above 0.938 with three standard errors. Wilson's interval of 30 single
    # answers steps from 0.93 to 0.97, for there are only 31 outcomes.
    held, _ = coverage(KINDS[kind], n, k, _ours, 3000)
    assert held >= (0.92 if (n, k) == (30, 1) else 0.938)


@pytest.mark.slow
def test_intervals_are_no_wider_than_they_need_to_be():
    _, plain = coverage(KINDS["0.73"], 198, 4, _normal, 300)
    _, ours = coverage(KINDS["0.73"], 198, 4, _ours, 300)
    assert ours < 1.05 * plain
    # More samples of 30 questions do not help: about 23 points, whatever k is.
    widths = [coverage(KINDS["0.73"], 30, k, _ours, 300)[1] for k in (16, 64, 256)]
    assert all(0.21 < width < 0.26 for width in widths)


def test_answers_to_one_question_are_not_questions():
    """What must not be used: with 16 answers each, counting all of them as questions holds the truth half
    the time.
    """
    held, _ = coverage(KINDS["0.73"], 30, 16, _pooled, 300)
    assert held < 0.6


@pytest.mark.slow
def test_differences_hold_the_truth_as_often_as_they_say():
    """A second model that is right where the first is, and on a tenth of what it gets wrong."""
    generator = np.random.default_rng(1)
    for n, k in ((30, 4), (198, 1), (198, 4)):
        held, trials = 0, 1000
        for _ in range(trials):
            p = generator.beta(0.8, 0.3, size=n)
            q = p + 0.1 * (1 - p)
            first, second = (generator.binomial(k, each) / k for each in (p, q))
            difference = compare_means(first, second, k, flips=1).difference
            held += difference.low <= 0.1 * (1 - 0.8 / 1.1) <= difference.high
        assert held / trials >= 0.93


if __name__ == "__main__":
    print("| truth | questions | answers each |", *METHODS, sep=" | ")
    for name, kind in KINDS.items():
        for n, k in SIZES:
            cells = [
                "{:.3f} / {:.3f}".format(*coverage(kind, n, k, method, 3000))
                for method in METHODS.values()
            ]
            print(f"| {name} | {n} | {k} |", " | ".join(cells), "|")
