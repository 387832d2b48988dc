"""pass@k and maj@k against enumeration of all sets, and their bias against a known truth."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest

from eval.repeats import across_runs, majority, majority_at_k, pass_at_k, powers_of_two


def test_pass_at_k_is_the_share_of_sets_with_a_right_answer():
    for n in range(1, 7):
        for right in range(n + 1):
            answers = [1] * right + [0] * (n - right)
            for k in range(1, n + 1):
                sets = list(combinations(answers, k))
                assert pass_at_k(right, n, k) == pytest.approx(sum(map(max, sets)) / len(sets))


def test_pass_at_k_of_many_answers():
    exact = 1 - math.comb(990, 500) / math.comb(1000, 500)
    assert pass_at_k(10, 1000, 500) == pytest.approx(exact, rel=1e-12)
    assert pass_at_k(1000, 1000, 1) == 1.0


@pytest.mark.parametrize("counts", [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_pass_at_k_refuses(counts):
    with pytest.raises(ValueError, match="right"):
        pass_at_k(*counts)


def test_pass_at_k_is_unbiased_and_the_plain_formula_is_not():
    """Exactly: the mean over all counts of right answers, each as likely as the binomial says."""
    for p, n, k in ((0.07, 16, 8), (0.4, 10, 4), (0.9, 5, 2)):
        weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = sum(w * pass_at_k(c, n, k) for c, w in enumerate(weights))
        plain = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights))
        truth = 1 - (1 - p) ** k
        assert mean == pytest.approx(truth, rel=1e-12)
        assert plain < truth - 1e-3


def test_majority():
    assert majority(["7", "8", "7"], [1, 0, 1]) == 1
    assert majority(["7", "8"], [1, 0]) == 0.5  # tied
    assert majority(["7", None, None], [1, 0, 0]) == 1  # None is no vote
    assert majority([None, None], [0, 0]) == 0
    assert majority([], []) == 0
    # One right, two say the same wrong thing, one says nothing.
    assert majority(["7", "8", None, "8"], [1, 0, 0, 0]) == 0
    # Alike and judged differently: their mean, not whichever came first.
    assert majority(["A", "A", "B"], [1, 0, 0]) == 0.5


def test_majority_at_k_takes_sets_that_share_no_answer():
    votes, scores = ["7", "7", "8", "8", "8", "7", "7"], [1, 1, 0, 0, 0, 1, 1]
    assert majority_at_k(votes, scores, 3) == (1 + 0) / 2  # the seventh is left over
    assert majority_at_k(votes, scores, 7) == 1
    assert majority_at_k(votes, scores, 1) == pytest.approx(4 / 7)
    with pytest.raises(ValueError, match="1 <= k <= 7"):
        majority_at_k(votes, scores, 8)


def test_majority_at_k_is_unbiased_over_orders():
    votes, scores = ["7", "7", "8", None], [1, 1, 0, 0]
    orders = list(permutations(zip(votes, scores, strict=True)))
    found = np.mean([majority_at_k(*zip(*order, strict=True), 2) for order in orders])
    sets = [
        majority(*zip(*pair, strict=True))
        for pair in combinations(zip(votes, scores, strict=True), 2)
    ]
    assert found == pytest.approx(np.mean(sets))


def test_powers_and_runs():
    assert [powers_of_two(n) for n in (0, 1, 5, 8)] == [[], [1], [1, 2, 4], [1, 2, 4, 8]]
    assert across_runs([0.5]) is None
    assert across_runs([0.4, 0.6]) == pytest.approx(0.1)
