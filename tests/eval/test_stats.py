"""Intervals and tests against published values, closed forms, and simulated coverage."""

import math

import numpy as np
import pytest

from eval.stats import (
    bootstrap,
    bootstrap_difference,
    clustered,
    compare,
    compare_means,
    mcnemar,
    sign_flip,
    standard_error,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3 (score, no correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(successes, n, low, high):
    got = wilson(successes, n)
    assert got.estimate == successes / n
    assert (round(got.low, 4), round(got.high, 4)) == (low, high)


def test_wilson_is_symmetric_and_stays_inside():
    for n in (1, 7, 400):
        for successes in {0, 1, n // 2, n}:
            one, other = wilson(successes, n), wilson(n - successes, n)
            assert math.isclose(one.low, 1 - other.high, abs_tol=1e-12)
            assert 0 <= one.low <= one.estimate <= one.high <= 1
    assert wilson(5, 10, 0.99).high > wilson(5, 10, 0.9).high


def test_wilson_covers():
    generator = np.random.default_rng(0)
    for p, n in ((0.5, 40), (0.9, 40), (0.03, 100)):
        counts = generator.binomial(n, p, size=4000)
        intervals = {int(k): wilson(int(k), n) for k in np.unique(counts)}
        covered = np.mean([intervals[int(k)].low <= p <= intervals[int(k)].high for k in counts])
        assert 0.92 <= covered <= 0.985


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses(counts):
    with pytest.raises(ValueError, match="successes"):
        wilson(*counts)


def test_confidence_must_be_a_share():
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence=95.0)


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert math.isclose(mcnemar(0, 6), 2 * 0.5**6)
    assert math.isclose(mcnemar(1, 9), 2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    exact = 2 * sum(math.comb(300, k) for k in range(121)) / 2**300
    assert math.isclose(mcnemar(120, 180), exact, rel_tol=1e-9)
    assert 0 < mcnemar(0, 900) < 1e-250
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)


def test_compare_counts_disagreements():
    first = [1, 1, 1, 0, 0, 0, 0, 0]
    second = [1, 1, 0, 1, 1, 1, 0, 0]
    got = compare(first, second)
    assert (got.only_first, got.only_second) == (1, 3)
    assert got.difference.estimate == 2 / 8
    assert got.p_value == mcnemar(1, 3)
    # By hand: (4 - 2) / 10 -+ 1.959964 sqrt((0.6 - 0.04) / 10)
    assert math.isclose(got.difference.low, 0.2 - 1.959964 * math.sqrt(0.056), abs_tol=1e-6)
    assert math.isclose(got.difference.high, 0.2 + 1.959964 * math.sqrt(0.056), abs_tol=1e-6)


def test_agreeing_systems_still_have_an_interval():
    difference = compare([True] * 20, [True] * 20).difference
    assert difference.low < 0 < difference.high


def test_compare_covers():
    generator = np.random.default_rng(1)
    n, only_first, only_second = 60, 0.05, 0.15
    covered = 0
    for _ in range(1000):
        draw = generator.random(n)
        second = draw < only_second
        first = (draw >= only_second) & (draw < only_second + only_first)
        difference = compare(first, second).difference
        covered += difference.low <= only_second - only_first <= difference.high
    assert 0.93 <= covered / 1000 <= 0.985


def test_compare_refuses_graded_scores():
    with pytest.raises(ValueError, match="0 and 1"):
        compare([0.5, 1], [1, 1])


def test_bootstrap_is_close_to_the_normal_interval():
    generator = np.random.default_rng(2)
    first = generator.normal(size=500)
    second = first + generator.normal(0.3, 1.0, size=500)
    gain = second - first
    got = bootstrap_difference(first, second, resamples=4000)
    half = 1.96 * gain.std() / math.sqrt(gain.size)
    assert math.isclose(got.estimate, gain.mean())
    assert math.isclose(got.low, gain.mean() - half, abs_tol=0.1 * half)
    assert math.isclose(got.high, gain.mean() + half, abs_tol=0.1 * half)


def test_bootstrap_repeats_with_its_seed_whatever_the_block():
    first, second = np.arange(2**13) % 3, np.arange(2**13) % 5
    one = bootstrap_difference(first, second, resamples=600)  # 512 at a time
    assert one == bootstrap_difference(first, second, resamples=600)
    assert one != bootstrap_difference(first, second, resamples=600, seed=1)


def test_bootstrap_covers():
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        gain = generator.exponential(size=50)
        interval = bootstrap_difference(np.zeros(50), gain, resamples=400, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.87 <= covered / 300 <= 0.98


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_pairs_must_match(first, second):
    for function in (compare, bootstrap_difference):
        with pytest.raises(ValueError, match="paired scores"):
            function(first, second)


def test_intervals_print():
    assert str(wilson(8, 10)) == "0.800 [0.490, 0.943]"


def test_one_answer_a_question_is_wilson():
    assert clustered([1, 0, 1, 1, 0], 5) == wilson(3, 5)
    assert clustered([1.0] * 30, 30 * 16) == wilson(30, 30)  # no more than 30 questions' worth


def test_clustered_by_hand():
    """n = 4, mean 0.5, variance ((4 - 1) / 6 + (0.5)(0.5)) / 4 with s^2 = 1/6; t(3) = 3.182446."""
    got = clustered([0.0, 0.5, 0.5, 1.0], 8)
    worth = 4 * 0.25 / ((3 * (1 / 6) + 0.25) / 4)
    t = 3.182446305284263
    half = t * math.sqrt(0.25 / worth + t**2 / (4 * worth**2)) / (1 + t**2 / worth)
    assert (got.estimate, worth) == (0.5, pytest.approx(16 / 3))
    assert (got.low, got.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_clustered_is_worth_no_more_than_its_samples():
    alike = clustered([0.5] * 100, 200)
    assert alike.high - alike.low > wilson(100, 200).high - wilson(100, 200).low
    assert clustered([0.25], 4) == type(alike)(0.25, 0.0, 1.0)


def test_clustered_is_symmetric_and_stays_inside():
    means = np.random.default_rng(4).beta(0.3, 3.0, size=12)
    one, other = clustered(means, 48), clustered(1 - means, 48)
    assert math.isclose(one.low, 1 - other.high) and math.isclose(one.high, 1 - other.low)
    assert 0 <= one.low < one.estimate < one.high <= 1


@pytest.mark.parametrize(
    ("means", "samples"), [([], 1), ([0.5, 1.1], 2), ([-0.1], 1), ([1, 0], 1), ([[1.0]], 1)]
)
def test_clustered_refuses(means, samples):
    with pytest.raises(ValueError, match=r"means from 0 to 1|samples are fewer"):
        clustered(means, samples)


def test_standard_error():
    assert standard_error([1.0, 0.0, 0.0, 1.0]) == pytest.approx(math.sqrt(1 / 3) / 2)
    assert standard_error([0.3]) is None


def test_compare_means_is_compare_but_for_the_quantile():
    first = [1, 1, 1, 0, 0, 0, 0, 0]
    second = [1, 1, 0, 1, 1, 1, 0, 0]
    binary, means = compare(first, second), compare_means(first, second, 1)
    assert means.p_value == pytest.approx(binary.p_value)
    assert (means.only_first, means.only_second) == (1, 3)
    # Student's quantile of 7 degrees over the normal one.
    wider = (means.difference.high - 0.2) / (binary.difference.high - 0.2)
    assert wider == pytest.approx(2.364624 / 1.959964, rel=1e-6)


def test_compare_means_of_equals_still_has_an_interval():
    got = compare_means([0.5] * 20, [0.5] * 20, 4)
    assert got.difference.low < 0 < got.difference.high
    assert got.p_value == 1.0
    only = compare_means([0.0], [1.0], 1).difference
    assert (only.low, only.high) == (-1.0, 1.0)
    for means, samples in (([0.5, 1.5], 1), ([0.5, 0.5], 0)):
        with pytest.raises(ValueError, match="compare_means needs"):
            compare_means(means, means, samples)


def test_compare_means_covers_and_rejects_at_its_rate():
    """Two equal models on questions of unlike difficulty, four answers each."""
    generator = np.random.default_rng(5)
    covered = rejected = 0
    for trial in range(400):
        p = generator.beta(0.8, 0.3, size=30)
        a, b = generator.binomial(4, p) / 4, generator.binomial(4, p) / 4
        got = compare_means(a, b, 4, seed=trial)
        covered += got.difference.low <= 0 <= got.difference.high
        # The p-value alone, with few flips to save time.
        rejected += sign_flip(b - a, flips=400, seed=trial) < 0.05
    assert 0.93 <= covered / 400 <= 0.99
    assert rejected / 400 <= 0.08


def test_sign_flip_is_exact_for_few_and_close_for_many():
    assert sign_flip([]) == sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.5, 0.25, 0.25]) == 2 / 8
    assert sign_flip([1.0] * 12) == 2 / 2**12
    many = np.r_[np.ones(12), -np.ones(5)]
    assert sign_flip(many) == pytest.approx(mcnemar(5, 12), abs=0.01)
    assert sign_flip(np.ones(40)) == 1 / 20_001


def test_bootstrap_is_as_wide_as_students_interval():
    x = np.random.default_rng(6).normal(size=10)
    got = bootstrap(x, resamples=40_000)
    # 2.262157 is Student's quantile of 9 degrees; a plain percentile interval has 0.82 of this width.
    assert got.high - got.low == pytest.approx(2 * 2.262157 * standard_error(x), rel=0.05)
    assert got == bootstrap(x, resamples=40_000)
    with pytest.raises(ValueError, match="at least two"):
        bootstrap([1.0])
