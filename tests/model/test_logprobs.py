"""Chunked log-probabilities and scores against full logits; what masked positions hold reaches nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.logprobs import TokenScores, token_logprobs, token_scores

WIDTH, VOCAB = 5, 11
ROWS, TOKENS = 2, 7


@pytest.mark.parametrize("function", [token_logprobs, token_scores])
def test_masked_positions_may_hold_anything(function):
    hidden = jnp.ones((1, 4, WIDTH)).at[0, 2].set(1e30)
    table = jax.random.normal(jax.random.key(1), (VOCAB, WIDTH))
    mask = jnp.array([[True, True, False, True]])
    targets = jnp.zeros((1, 4), jnp.int32)

    def total(hidden, table):
        found = function(hidden, table, targets, softcap=None, mask=mask, chunk=2)
        return sum(leaf.sum() for leaf in jax.tree.leaves(found))

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, table)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][0, 2])


def full_scores(hidden, table, targets, softcap):
    """The same from all logits at once."""
    logits = jnp.einsum("btd,vd->btv", hidden, table)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logprobs = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(logprobs)
    still = jax.lax.stop_gradient
    return TokenScores(
        logprobs=jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0],
        normalizers=jax.nn.logsumexp(logits, -1),
        mean_logits=logits.mean(-1),
        entropy=still(-(probabilities * logprobs).sum(-1)),
        log_collision=still(jnp.log((probabilities**2).sum(-1))),
        top1=still((logits.argmax(-1) == targets).astype(jnp.float32)),
    )


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_scores_equal_those_of_full_logits(softcap, chunk):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = 2 * jax.random.normal(keys[0], (ROWS, TOKENS, WIDTH))
    table = jax.random.normal(keys[1], (VOCAB, WIDTH))
    targets = jax.random.randint(keys[2], (ROWS, TOKENS), 0, VOCAB)
    mask = jax.random.bernoulli(keys[3], 0.6, (ROWS, TOKENS))
    # A different weight for every number, so that no gradient can hide behind another.
    weights = jax.random.normal(keys[4], (len(dataclasses.fields(TokenScores)), ROWS, TOKENS))

    def total(hidden, table, full):
        found = (
            full_scores(hidden, table, targets, softcap)
            if full
            else token_scores(hidden, table, targets, softcap=softcap, mask=mask, chunk=chunk)
        )
        values = [jnp.where(mask, leaf, 0.0) for leaf in jax.tree.leaves(found)]
        return sum((w * v).sum() for w, v in zip(weights, values, strict=True)), values

    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)
    (_, wanted), wanted_gradients = run(hidden, table, True)
    (_, found), gradients = run(hidden, table, False)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
