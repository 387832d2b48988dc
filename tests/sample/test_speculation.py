"""Drafts are kept exactly as far as the target would have written them, and change nothing but the steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gemma4_jax.checkpoint import load
from gemma4_jax.model.cache import init_cache
from gemma4_jax.sample import decode, speculation
from gemma4_jax.sample.decode import DecodeState
from gemma4_jax.sample.sampling import Filters, Settings, neutral_settings, row_keys
from tests.oracle.cases import load_case

DRAFTS = 6
GREEDY = load_case("dense").vectors["greedy_tokens"].tolist()
PROMPT = load_case("dense").vectors["greedy_prompt"]
FREE = jnp.zeros(256, bool)

verify = jax.jit(speculation.verify, static_argnums=0, static_argnames="filters")
plain = jax.jit(decode.decode, static_argnums=0, static_argnames=("filters", "room"))


@functools.cache
def model():
    return load(load_case("dense").folder)


@functools.cache
def extend():
    module = model().module
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args, method="extend"))


def read(rows, tokens):
    """A cache that holds a prompt in every row, with room for what is taken back."""
    cache = init_cache(model().config, 1, 72, slack=DRAFTS + 1)
    size = DRAFTS + 1
    for start in range(0, tokens.shape[1], size):
        part = tokens[:, start : start + size]
        whole = jnp.zeros((1, size), jnp.int32).at[:, : part.shape[1]].set(part)
        _, cache = extend()(model().params, whole, jnp.array([part.shape[1]]), cache)
    wide = jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, axis=2), cache.entries)
    return type(cache)(wide, jnp.repeat(cache.length, rows))


def state_of(rows, limit=30, settings=None):
    """Every row has read the prompt and chosen the first token."""
    cache = read(rows, PROMPT)
    whole = jnp.ones(rows, jnp.int32)
    settings = settings or neutral_settings(rows)
    return DecodeState(cache, whole * GREEDY[0], whole < 0, whole, whole * limit, settings)


def right_until(right):
    """Drafts of which the first `right` are what the target writes."""
    drafts = list(GREEDY[1 : 1 + DRAFTS])
    if right < DRAFTS:
        drafts[right] = (drafts[right] + 1) % 256
    return drafts


def round_of(state, drafts, given, stop_ids=(-1,), keep=True):
    rows = len(drafts)
    return verify(
        model().module, model().params, state, jnp.asarray(drafts, jnp.int32), jnp.asarray(given, jnp.int32),
        jnp.broadcast_to(keep, rows), jnp.asarray(stop_ids, jnp.int32), FREE, filters=Filters(),
    )  # fmt: skip


def test_greedy_drafts_are_accepted_up_to_the_first_wrong_one():
    """And the next round goes on from there, whatever the rings have been overwritten with."""
    rights = list(range(DRAFTS + 1))
    rows = len(rights)
    state, chosen, hidden = round_of(
        state_of(rows), [right_until(n) for n in rights], [DRAFTS] * rows
    )
    assert chosen.count.tolist() == [n + 1 for n in rights]
    assert state.cache.length.tolist() == [40 + n + 1 for n in rights]
    assert not state.done.any() and state.generated.tolist() == [n + 2 for n in rights]
    tokens = jnp.asarray([GREEDY[: DRAFTS + 1]], jnp.int32)
    wanted, _ = extend()(model().params, tokens, jnp.array([DRAFTS + 1]), read(1, PROMPT))
    for n in rights:
        assert chosen.drawn.token[: n + 1, n].tolist() == GREEDY[1 : n + 2]
        assert state.token[n] == GREEDY[n + 1]
        np.testing.assert_allclose(hidden[n], wanted[0, n], atol=5e-4)

    # Rows are up to six tokens apart now; the window is 8.
    following = [GREEDY[n + 2 : n + 2 + DRAFTS] for n in rights]
    state, chosen, _ = round_of(state, following, [DRAFTS] * rows)
    assert chosen.count.tolist() == [DRAFTS + 1] * rows
    for n in rights:
        assert chosen.drawn.token[:, n].tolist() == GREEDY[n + 2 : n + 2 + DRAFTS + 1]


def test_the_oracles_drafts_and_accept_count():
    drafts = load_case("draft").vectors["step_token"].tolist()
    accepted = next(i for i in range(DRAFTS) if drafts[i] != GREEDY[1 + i])
    _, chosen, _ = round_of(state_of(7), [drafts] * 7, [DRAFTS] * 7)
    assert chosen.count.tolist() == [accepted + 1] * 7
    assert chosen.drawn.token[:, 0][: accepted + 1].tolist() == GREEDY[1 : accepted + 2]
    v = load_case("dense").vectors["greedy_logits"].astype(np.float64)
    wanted = v[1, GREEDY[1]] - np.log(np.exp(v[1]).sum())
    np.testing.assert_allclose(chosen.drawn.logprob[0], wanted, atol=1e-3)


def test_ends_inside_a_round():
    """A stop id, a limit, fewer drafts, no drafts, a row nobody listens to, one that is over."""
    before = state_of(7)
    limit = jnp.array([30, 4, 30, 30, 30, 30, 2])
    done = jnp.array([False] * 5 + [True, False])
    before = DecodeState(before.cache, before.token, done, before.generated, limit, before.settings)
    keep = jnp.array([True] * 4 + [False, True, True])
    stop = np.full((7, 2), -1)
    stop[0, 1] = GREEDY[2]
    given = [DRAFTS, DRAFTS, 2, 0, DRAFTS, DRAFTS, DRAFTS]
    drafts = [right_until(DRAFTS)] * 7
    state, chosen, _ = round_of(before, drafts, given, stop, keep)
    assert chosen.count.tolist() == [2, 3, 3, 1, 0, 0, 1]
    assert chosen.done.tolist() == [True, True, False, False, True, True, True]
    assert state.cache.length.tolist() == [42, 43, 43, 41, 40, 40, 41]
    for row, count in enumerate(chosen.count.tolist()):
        assert chosen.drawn.token[:count, row].tolist() == GREEDY[1 : 1 + count]


def test_sampling_keeps_the_targets_distribution():
    """First token, accept rate and second token by chi-square; and each row draws what it draws alone."""
    rows, temperature, kept = 4000, 1.5, 6
    real, whole = jnp.ones(rows), jnp.ones(rows, jnp.int32)
    keys = row_keys([5] * rows, list(range(rows)))
    settings = Settings(real * temperature, whole * kept, real, 0 * real, keys)
    filters = Filters(sampled=True, top_k=True, candidates=64)
    state = state_of(rows, settings=settings)
    first, second = (distribution(step, temperature, kept) for step in (1, 2))
    guess = GREEDY[1]
    assert 0.1 < first[guess] < 0.9
    drafts = jnp.broadcast_to(jnp.array([guess, 0]), (rows, 2))
    _, chosen, _ = verify(
        model().module, model().params, state, drafts, whole, whole > 0, jnp.array([-1]), FREE,
        filters=filters,
    )  # fmt: skip
    tokens, count = np.asarray(chosen.drawn.token), np.asarray(chosen.count)
    assert agrees(tokens[0], first) > 0.01
    assert stats.binomtest(int((count == 2).sum()), rows, first[guess]).pvalue > 0.01
    assert agrees(tokens[1][count == 2], second) > 0.01
    # A rule that draws again from the whole after a rejection would be seen.
    assert agrees(np.where(count == 2, tokens[0], tokens[0][::-1]), first) < 1e-6

    _, alone = plain(
        model().module, model().params, state, whole > 0, jnp.int32(2), jnp.array([-1]), FREE,
        filters=filters, room=2,
    )  # fmt: skip
    alone_tokens = np.asarray(alone.drawn.token)
    np.testing.assert_array_equal(tokens[0], alone_tokens[0])
    np.testing.assert_array_equal(tokens[1][count == 2], alone_tokens[1][count == 2])


def distribution(step, temperature, kept):
    """What follows the prompt and so many greedy tokens, from the oracle's logits in float64."""
    logits = load_case("dense").vectors["greedy_logits"][step].astype(np.float64) / temperature
    share = np.where(logits >= np.sort(logits)[-kept], np.exp(logits - logits.max()), 0)
    return share / share.sum()


def agrees(tokens, shares):
    """p value of a chi-square test; ids that cannot be drawn must not have been."""
    counts = np.bincount(tokens, minlength=len(shares))
    possible = shares > 0
    assert counts[~possible].sum() == 0
    return stats.chisquare(counts[possible], shares[possible] * len(tokens)).pvalue


@pytest.mark.parametrize("mistake", ["none", "length"])
def test_taking_back_is_what_makes_the_next_round_right(mistake):
    """The same round with the rejected drafts left in the cache goes wrong: the test above can fail."""
    state, chosen, _ = round_of(state_of(7), [right_until(2)] * 7, [DRAFTS] * 7)
    assert chosen.count.tolist() == [3] * 7
    if mistake == "length":
        cache = type(state.cache)(state.cache.entries, state.cache.length + 4)
        state = DecodeState(
            cache, state.token, state.done, state.generated, state.limit, state.settings
        )
    _, chosen, _ = round_of(state, [GREEDY[4 : 4 + DRAFTS]] * 7, [DRAFTS] * 7)
    assert (chosen.count.tolist() == [DRAFTS + 1] * 7) == (mistake == "none")
