"""Filters equal a plain numpy reference; draws have the right distribution and depend on nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.sample.sampling import Filters, Settings, filters_for, keep, row_keys, sample

VOCAB = 300
_drawn = jax.jit(sample, static_argnames="filters")
_keep = jax.jit(keep, static_argnames="filters")
EVERYTHING = Filters(sampled=True, top_k=True, top_p=True, min_p=True)


def _sample(*args, **options):
    drawn = _drawn(*args, **options)
    return drawn.token, drawn.logprob


def settings(rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0):
    def array(value, dtype):
        return jnp.asarray(np.broadcast_to(value, rows), dtype)

    return Settings(
        array(temperature, jnp.float32),
        array(top_k, jnp.int32),
        array(top_p, jnp.float32),
        array(min_p, jnp.float32),
        row_keys(np.broadcast_to(seed, rows).tolist(), list(range(rows))),
    )


def reference_keep(scores, top_k, top_p, min_p):
    """Which scores transformers' three filters leave, one row, in float64."""
    left = np.ones(scores.size, bool)
    if top_k:
        left &= scores >= np.sort(scores)[::-1][min(top_k, scores.size) - 1]
    if top_p < 1:
        probs = np.where(left, np.exp(scores - scores.max()), 0)
        probs /= probs.sum()
        above = np.array([probs[scores > score].sum() for score in scores])
        left &= above < top_p
    if min_p:
        probs = np.exp(scores - scores.max())
        left &= probs >= min_p
    return left


def test_filters_equal_the_reference():
    rng = np.random.default_rng(0)
    rows = 64
    scores = rng.normal(0, 3, (rows, VOCAB)).astype(np.float32)
    scores[0, :5] = scores[0].max() + 1  # ties at the top, all kept
    scores[1] = 0.0  # nothing but ties
    scores[2, 7] += 60.0  # one token has it all
    top_k = rng.choice([0, 1, 2, 7, 64, VOCAB, VOCAB + 50], rows)
    top_p = rng.choice([1.0, 0.999, 0.9, 0.5, 0.05, 1e-6], rows)
    min_p = rng.choice([0.0, 0.001, 0.1, 1.0], rows)
    got = np.asarray(_keep(scores, settings(rows, 1.0, top_k, top_p, min_p), filters=EVERYTHING))
    for row in range(rows):
        want = reference_keep(scores[row].astype(np.float64), top_k[row], top_p[row], min_p[row])
        np.testing.assert_array_equal(got[row], want, err_msg=str(row))
    assert got.any(axis=1).all()


def test_draws_follow_the_filtered_distribution():
    rows = 20_000
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, 12)
    temperature, top_k, top_p, min_p = 1.4, 9, 0.9, 0.08
    kept = reference_keep(logits / temperature, top_k, top_p, min_p)
    expected = np.where(kept, np.exp(logits / temperature), 0)
    expected /= expected.sum()
    assert 3 < kept.sum() < 9, kept.sum()
    token, _ = _sample(
        jnp.asarray(np.tile(logits, (rows, 1)), jnp.float32),
        settings(rows, temperature, top_k, top_p, min_p, seed=11),
        jnp.zeros(rows, jnp.int32),
        filters=EVERYTHING,
    )
    _assert_distribution(np.asarray(token), expected)


def test_steps_of_one_row_are_independent_draws():
    steps = 20_000
    logits = np.random.default_rng(2).normal(0, 1, 6)
    expected = np.exp(logits) / np.exp(logits).sum()
    one = settings(1, seed=5)
    many = Settings(
        *(
            jnp.broadcast_to(leaf, (steps,))
            for leaf in (one.temperature, one.top_k, one.top_p, one.min_p)
        ),
        key=jnp.broadcast_to(one.key, (steps,)),
    )
    token, _ = _sample(
        jnp.asarray(np.tile(logits, (steps, 1)), jnp.float32),
        many,
        jnp.arange(steps, dtype=jnp.int32),
        filters=Filters(sampled=True),
    )
    token = np.asarray(token)
    _assert_distribution(token, expected)
    pairs = token[:-1] * 6 + token[1:]
    _assert_distribution(pairs, np.outer(expected, expected).reshape(-1))


def _assert_distribution(tokens, expected):
    """Pearson's chi-square, seeds fixed: far from the 1e-6 quantile where the sampler is right."""
    counts = np.bincount(tokens, minlength=expected.size)
    assert counts[expected == 0].sum() == 0
    expected, counts = expected[expected > 0], counts[expected > 0]
    chi = ((counts - len(tokens) * expected) ** 2 / (len(tokens) * expected)).sum()
    freedom = expected.size - 1
    assert chi < freedom + 5 * np.sqrt(2 * freedom) + 10


@functools.cache
def _big_logits():
    return np.random.default_rng(3).normal(0, 2, (8, 5000)).astype(np.float32)


@pytest.mark.parametrize("candidates", [64, 256])
def test_candidates_and_whole_vocabulary_draw_the_same_tokens(candidates):
    logits, rows = _big_logits(), 8
    top_k = np.array([1, 5, 20, 64, 40, 64, 3, 50])
    chosen = settings(rows, [0, 1, 2, 5, 0.3, 1, 1, 3], top_k, [1, 0.9, 1, 1, 0.8, 0.99, 1, 0.7])
    whole = Filters(sampled=True, top_k=True, top_p=True)
    some = Filters(sampled=True, top_k=True, top_p=True, candidates=candidates)
    seen = []
    for step in range(6):
        at = jnp.full(rows, step, jnp.int32)
        a, la = _sample(logits, chosen, at, filters=whole)
        b, lb = _sample(logits, chosen, at, filters=some)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(la, lb)
        seen.append(np.asarray(a))
    assert np.std(seen, axis=0).max() > 0


def test_a_row_draws_the_same_alone_and_in_company():
    logits, rows = _big_logits(), 8
    both = settings(rows, [0, 1, 2, 1, 1, 1, 1, 1], top_p=0.9, seed=7)
    step = jnp.arange(rows, dtype=jnp.int32) * 3
    filters = Filters(sampled=True, top_p=True)
    together, _ = _sample(logits, both, step, filters=filters)
    for row in (0, 2, 5):
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], both)
        alone, _ = _sample(logits[row : row + 1], one, step[row : row + 1], filters=filters)
        assert alone[0] == together[row]


def test_seeds_steps_and_rows_change_the_draw_and_repeating_does_not():
    logits = jnp.zeros((4, 5000))
    filters = Filters(sampled=True)
    zero = jnp.zeros(4, jnp.int32)
    first, _ = _sample(logits, settings(4, seed=1), zero, filters=filters)
    again, _ = _sample(logits, settings(4, seed=1), zero, filters=filters)
    other, _ = _sample(logits, settings(4, seed=2), zero, filters=filters)
    high, _ = _sample(logits, settings(4, seed=1 + 2**40), zero, filters=filters)
    later, _ = _sample(logits, settings(4, seed=1), zero + 1, filters=filters)
    np.testing.assert_array_equal(first, again)
    assert len(set(np.asarray(first).tolist())) == 4
    for changed in (other, high, later):
        assert not np.any(np.asarray(changed) == np.asarray(first))


def test_logprobs_are_the_models_own_and_blocked_ids_never_come():
    logits = _big_logits()[:, :VOCAB]
    best = logits.argmax(-1)
    blocked = np.zeros(VOCAB, bool)
    blocked[best] = True
    hot = settings(8, 5.0, top_k=3)
    for filters in (Filters(), Filters(sampled=True, top_k=True, candidates=64)):
        token, logprob = _sample(
            logits, hot, jnp.zeros(8, jnp.int32), filters=filters, blocked=blocked
        )
        assert not blocked[np.asarray(token)].any()
        wanted = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
        np.testing.assert_allclose(
            logprob, np.take_along_axis(wanted, np.asarray(token)[:, None], 1)[:, 0], atol=2e-6
        )
    free, _ = _sample(logits, hot, jnp.zeros(8, jnp.int32), filters=Filters())
    np.testing.assert_array_equal(free, best)


def test_logits_that_are_not_finite_show_in_the_logprob():
    logits = np.zeros((3, VOCAB), np.float32)
    logits[1, 5] = np.nan
    logits[2, 5] = np.inf
    for filters in (Filters(), EVERYTHING):
        _, logprob = _sample(
            logits, settings(3, 1.0, 5, 0.9, 0.1), jnp.zeros(3, jnp.int32), filters=filters
        )
        assert np.isfinite(logprob).tolist() == [True, False, False]


def test_programs_are_chosen_by_what_rows_need():
    def needs(temperature, top_k=(0, 0), top_p=(1, 1), min_p=(0, 0)):
        return filters_for(*map(np.array, (temperature, top_k, top_p, min_p)))

    assert needs((0, 0), (5, 5), (0.5, 0.5)) == Filters()
    assert needs((0, 1)) == Filters(sampled=True)
    assert needs((0, 1), (0, 64)) == Filters(sampled=True, top_k=True, candidates=64)
    assert needs((1, 1), (65, 2)) == Filters(sampled=True, top_k=True, candidates=256)
    assert needs((1, 1), (0, 2)) == Filters(sampled=True, top_k=True)
    assert needs((1, 1), (2, 5000)) == Filters(sampled=True, top_k=True)
    assert needs((1, 0), top_p=(1, 0.5)) == Filters(sampled=True)
    assert needs((1, 0), min_p=(0.1, 0)) == Filters(sampled=True, min_p=True)
