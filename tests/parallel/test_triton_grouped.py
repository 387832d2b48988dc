"""The GPU kernels of the experts' product, interpreted, are `lax.ragged_dot`, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul
from gemma4_jax.parallel.kernels import describe, grouped_matmul_for
from gemma4_jax.parallel.triton_grouped import triton_grouped_matmul


@pytest.mark.parametrize(
    ("rows", "sizes", "inner", "width"),
    [
        (300, [0, 150, 0, 20, 130], 32, 96),  # experts without rows; blocks that are partly filled
        (300, [10, 140, 1, 0, 9], 48, 16),  # rows behind the last group; a low rank
        (7, [0, 0, 3, 4, 0], 64, 192),  # fewer rows than a block
        (40, [20, 20], 20, 16),  # an odd width: goes to the blocked form
    ],
)
def test_it_is_ragged_dot(rows, sizes, inner, width):
    rng = np.random.default_rng(rows)
    x = jnp.asarray(rng.normal(size=(rows, inner)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(len(sizes), inner, width)) * inner**-0.5, jnp.float32)
    sizes = jnp.asarray(sizes, jnp.int32)

    def run(product):
        def loss(x, w):
            return jnp.sin(product(x, w, sizes)).sum(), product(x, w, sizes)

        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, w))

    interpreted = functools.partial(triton_grouped_matmul, interpret=True)
    for ours, theirs in zip(run(interpreted), run(jax.lax.ragged_dot), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_gpu_never_multiplies_by_all_experts():
    """`lax.ragged_dot` does there: 128 times the work of 26B-A4B, and 44 GiB of rows a layer."""
    assert grouped_matmul_for("gpu") is blocked_grouped_matmul is grouped_matmul_for("cpu")
    assert grouped_matmul_for("gpu", True) is triton_grouped_matmul
    assert "Triton" in describe("gpu", True).partition("experts")[2]
