"""What masked positions hold reaches neither values nor gradients, not even numbers that overflow."""

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_jax.logprobs import token_logprobs

WIDTH, VOCAB = 5, 11


def test_masked_positions_may_hold_anything():
    hidden = jnp.ones((1, 4, WIDTH)).at[0, 2].set(1e30)
    table = jax.random.normal(jax.random.key(1), (VOCAB, WIDTH))
    mask = jnp.array([[True, True, False, True]])
    targets = jnp.zeros((1, 4), jnp.int32)

    def total(hidden, table):
        return token_logprobs(hidden, table, targets, softcap=None, mask=mask, chunk=2).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, table)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][0, 2])
