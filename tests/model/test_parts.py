"""Parts with a backward pass of their own equal their plain forms, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.logprobs import token_logprobs
from gemma4_jax.model.layers import gated_gelu, gelu, soft_cap
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("share", [0.0, 0.15, 1.0, None])
def test_chunked_logprobs(softcap, share):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(3, 11, 16)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(50, 16)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 50, (3, 11)), jnp.int32)
    mask = None if share is None else jnp.asarray(rng.random((3, 11)) < share)
    weight = jnp.asarray(rng.normal(size=(3, 11)), jnp.float32)

    def plain(hidden, table):
        logits = soft_cap(jnp.einsum("btd,vd->btv", hidden, table), softcap)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return (weight * (chosen if mask is None else jnp.where(mask, chosen, 0))).sum()

    def chunked(hidden, table):
        logprobs = token_logprobs(hidden, table, targets, softcap=softcap, mask=mask, chunk=4)
        return (weight * logprobs).sum()

    for argument in (0, 1):
        ours = jax.value_and_grad(chunked, argument)(hidden, table)
        theirs = jax.value_and_grad(plain, argument)(hidden, table)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


@pytest.mark.parametrize(("rows", "experts"), [(40, 8), (1, 8), (300, 5), (64, 1)])
def test_blocked_grouped_matmul(rows, experts):
    rng = np.random.default_rng(rows)
    sizes = jnp.asarray(rng.multinomial(rows, rng.dirichlet(np.ones(experts) * 0.5)), jnp.int32)
    x = jnp.asarray(rng.normal(size=(rows, 16)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(experts, 16, 12)), jnp.float32)

    def run(product):
        def loss(x, w):
            return jnp.sin(product(x, w, sizes)).sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(x, w)

    ours, theirs = run(blocked_grouped_matmul), run(jax.lax.ragged_dot)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gated_gelu(dtype):
    gate, up, weight = (
        jnp.asarray(np.random.default_rng(n).normal(size=(5, 400)) * 3, dtype) for n in range(3)
    )

    def plain(gate, up):
        gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
        return (weight.astype(jnp.float32) * gelu(gate) * up).sum()

    def ours(gate, up):
        return (weight * gated_gelu(gate, up)).astype(jnp.float32).sum()

    found = jax.grad(ours, (0, 1))(gate, up)
    expected = jax.grad(plain, (0, 1))(gate, up)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        # Far to the left, 1 + tanh cancels in either form: absolute to the largest gradient.
        limit = 2e-6 if dtype == jnp.float32 else 8e-3
        np.testing.assert_allclose(a, b, atol=limit * np.abs(b).max())
    np.testing.assert_array_equal(gated_gelu(gate, up), gelu(gate) * up)


def test_the_backward_pass_of_a_gated_gelu_keeps_its_operands_alone():
    shape = jax.ShapeDtypeStruct((7, 11), jnp.float32)
    _, pull = jax.eval_shape(lambda gate, up: jax.vjp(gated_gelu, gate, up), shape, shape)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.shape == shape.shape]
    assert len(kept) == 2
