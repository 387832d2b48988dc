"""Every form of attention equals the dense one, and the mask equals its definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.model import attention
from gemma4_jax.model.attention import KeyValues, attend, dense_attention, rotated_slice
from gemma4_jax.model.rope import rotate, rotation
from gemma4_jax.model.visibility import EMPTY, TokenFacts, media_blocks, visible
from gemma4_jax.presets import preset

CONFIG = preset("tiny-dense")


def facts_of(batch, tokens, segmented, rng):
    segment = None
    if segmented:
        segment = jnp.asarray(np.sort(rng.integers(0, 4, (batch, tokens)), axis=1), jnp.int32)
    index = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (batch, tokens))
    return TokenFacts(index, segment)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(("tokens", "window"), [(33, 4), (64, 8), (65, 32), (17, 8), (50, 1)])
def test_window_blocks_equal_dense(tokens, window, segmented):
    rng = np.random.default_rng(tokens)
    q = jnp.asarray(rng.normal(size=(2, tokens, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, tokens, 2, 8)), jnp.float32) for _ in range(2))
    facts = facts_of(2, tokens, segmented, rng)
    weight = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def run(form):
        def loss(q, k, v):
            return (form(CONFIG, q, KeyValues(v, facts, k), facts, window) * weight).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    (fast, fast_grads), (plain, plain_grads) = run(attend), run(dense_attention)
    np.testing.assert_allclose(fast, plain, rtol=2e-5, atol=2e-4)
    for a, b in zip(fast_grads, plain_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_chunked_queries_equal_dense(monkeypatch):
    monkeypatch.setattr(attention, "DENSE_SCORES", 64)
    monkeypatch.setattr(attention, "QUERY_CHUNK", 16)
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, 41, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, 41, 2, 8)), jnp.float32) for _ in range(2))
    kinds = jnp.asarray(rng.integers(0, 4, (2, 41)))
    facts = dataclasses.replace(facts_of(2, 41, True, rng), block=media_blocks(kinds))
    config = dataclasses.replace(CONFIG, bidirectional="vision")
    for window in (None, 8):

        def run(form, window=window):
            def loss(q, k, v):
                return jnp.sin(form(config, q, KeyValues(v, facts, k), facts, window)).sum()

            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

        (fast, fast_grads), (plain, plain_grads) = run(attend), run(dense_attention)
        np.testing.assert_allclose(fast, plain, rtol=2e-5)
        for a, b in zip(fast_grads, plain_grads, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def branched(tokens):
    """Facts of a row of two segments: a prompt of 20 with three answers, then one of 4 with two."""
    sizes = [(1, 0, 20), (1, 1, 9), (1, 2, 14), (1, 3, 5), (2, 0, 4), (2, 1, 6), (2, 2, 7)]
    segment, branch, index = (np.zeros((1, tokens), np.int32) for _ in range(3))
    start, shared = 0, 0
    for number, which, size in sizes:
        here = slice(start, start + size)
        segment[0, here], branch[0, here] = number, which
        shared = size if which == 0 else shared
        index[0, here] = np.arange(size) + (shared if which else 0)
        start += size
    index, segment, branch = (jnp.asarray(x) for x in (index, segment, branch))
    return TokenFacts(index, segment, branch=branch)


@pytest.mark.parametrize("window", [None, 6])
def test_visible_with_branches_is_its_definition(window):
    facts = branched(70)
    mask = np.asarray(visible(facts, facts, window=window))[0]
    index, segment, branch = (np.asarray(x)[0] for x in (facts.index, facts.segment, facts.branch))
    for q in range(70):
        for k in range(70):
            near = index[k] <= index[q] and (window is None or index[q] - index[k] < window)
            mine = branch[k] in (0, branch[q]) and segment[k] == segment[q]
            assert mask[q, k] == (near and mine), (q, k)
    # As many keys as in a row of its own, however far behind other answers it stands.
    seen = mask.sum(-1)[segment > 0]
    assert (seen == np.minimum(index[segment > 0] + 1, window or 70)).all()


def test_every_form_knows_branches(monkeypatch):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(1, 70, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(1, 70, 2, 8)), jnp.float32) for _ in range(2))
    facts = branched(70)
    kv = KeyValues(v, facts, k)
    for chunked in (False, True):
        if chunked:
            monkeypatch.setattr(attention, "DENSE_SCORES", 64)
            monkeypatch.setattr(attention, "QUERY_CHUNK", 16)
        for window in (None, 6):
            plain = dense_attention(CONFIG, q, kv, facts, window)
            np.testing.assert_allclose(attend(CONFIG, q, kv, facts, window), plain, atol=1e-5)


def test_keys_implied_by_values_give_the_same_scores():
    rng = np.random.default_rng(1)
    heads, head_dim = 2, CONFIG.global_head_dim
    value = jnp.asarray(rng.normal(size=(2, 9, heads, head_dim)), jnp.float32)
    scale = jnp.asarray(rng.uniform(0.3, 1.5, head_dim), jnp.float32)
    by = rotation(jnp.arange(9)[None], head_dim, CONFIG.rope_full)
    whole = KeyValues(value, facts_of(2, 9, False, rng), rotate(value * scale, by))
    implied = KeyValues(
        value, whole.facts, rotated=rotated_slice(value, scale, by), key_scale=scale
    )
    q = jnp.asarray(rng.normal(size=(2, 9, 4, head_dim)), jnp.float32)
    out, expected = (dense_attention(CONFIG, q, kv, whole.facts, None) for kv in (implied, whole))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [None, "vision", "all"])
@pytest.mark.parametrize("window", [None, 3, 8])
def test_visible_is_its_definition(window, bidirectional):
    rng = np.random.default_rng(2)
    tokens = 30  # media blocks up to 12 long: longer than the windows
    kinds = np.zeros((1, tokens), np.int32)
    kinds[0, 3:15], kinds[0, 17:19], kinds[0, 20:24] = 1, 2, 3
    segment = np.sort(rng.integers(1, 3, (1, tokens)), axis=1)
    block = np.asarray(media_blocks(jnp.asarray(kinds)))
    index = np.arange(tokens)[None].copy()
    index[0, 26] = EMPTY  # a key slot that holds nothing
    query = TokenFacts(jnp.arange(tokens)[None], jnp.asarray(segment), jnp.asarray(block))
    key = TokenFacts(jnp.asarray(index), jnp.asarray(segment), jnp.asarray(block))
    mask = np.asarray(visible(query, key, window=window, bidirectional=bidirectional))[0]
    for q in range(tokens):
        for k in range(tokens):
            if bidirectional == "all":
                allowed = window is None or abs(q - k) <= window // 2 + 1
            else:
                together = block[0, q] == block[0, k] >= 0
                two_way = bidirectional == "vision" and window is not None and together
                allowed = (k <= q or two_way) and (window is None or k > q - window)
            allowed = allowed and segment[0, q] == segment[0, k] and k != 26
            assert mask[q, k] == allowed, (q, k)


def test_media_blocks_number_runs():
    kinds = jnp.array([[1, 2, 0, 3, 1, 0, 2, 2], [0, 0, 1, 1, 1, 0, 0, 1]])
    expected = [[0, 0, -1, -1, 1, -1, 2, 2], [-1, -1, 0, 0, 0, -1, -1, 1]]
    np.testing.assert_array_equal(media_blocks(kinds), expected)
