"""Weights that stand for matrices: products, merging, norms, quantisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.model.weights import (
    NF4,
    Adapted,
    Quantized,
    column_norms,
    dense,
    project,
    project_groups,
    quantize,
)
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul

RANK = 3
# Equation, shapes of x and of the matrix, number of its input axes.
PRODUCTS = {
    "heads out": ("btd,dnh->btnh", (2, 5, 8), (8, 3, 4), 1),
    "heads in": ("btnh,nhd->btd", (2, 5, 3, 4), (3, 4, 8), 2),
    "plain": ("btd,df->btf", (2, 5, 8), (8, 6), 1),
    "layers": ("btd,dlp->btlp", (2, 5, 8), (8, 3, 4), 1),
}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def adapted(shape, inputs, lead=0, **options):
    stack, ins, outs = shape[:lead], shape[lead : lead + inputs], shape[lead + inputs :]
    return Adapted(
        normal(1, *shape), normal(2, *stack, *ins, RANK), normal(3, *stack, RANK, *outs), **options
    )


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("dora", [False, True])
def test_a_product_with_an_adapter_is_that_with_the_merged_matrix(kind, dora):
    equation, x_shape, shape, inputs = PRODUCTS[kind]
    x, weight = normal(0, *x_shape), adapted(shape, inputs, scale=0.7)
    if dora:
        weight = Adapted(
            weight.base,
            weight.lora_a,
            weight.lora_b,
            1 + normal(4, *shape[inputs:]) ** 2,
            scale=0.7,
        )
    flat = weight.base.reshape(-1, int(np.prod(shape[inputs:])))
    delta = weight.lora_a.reshape(-1, RANK) @ weight.lora_b.reshape(RANK, -1)
    merged = np.asarray(flat + 0.7 * delta, np.float64)
    if dora:
        merged *= np.asarray(weight.magnitude).reshape(-1) / np.linalg.norm(merged, axis=0)
    np.testing.assert_allclose(dense(weight), merged.reshape(shape), rtol=2e-5, atol=2e-5)
    expected = jnp.einsum(equation, x, merged.reshape(shape).astype(np.float32))
    actual = project(x, weight, equation, jnp.float32)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_an_array_is_multiplied_as_ever():
    x, w = normal(0, 2, 5, 8).astype(jnp.bfloat16), normal(1, 8, 6)
    plain = jnp.einsum("btd,df->btf", x, w.astype(jnp.bfloat16))
    np.testing.assert_array_equal(project(x, w, "btd,df->btf", jnp.bfloat16), plain)
    assert dense(w) is w


@pytest.mark.parametrize("equation", ["btd,dnh->btnh", "btnh,nhd->btd", "btd,df->btf"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_a_product(equation, dtype):
    sizes = dict(zip("btdnhf", (2, 5, 8, 3, 4, 6), strict=True))
    rng = np.random.default_rng(0)
    operands, result = equation.split("->")
    left, right = operands.split(",")
    x, matrix, weight = (
        jnp.asarray(rng.normal(size=[sizes[letter] for letter in part]), jnp.float32)
        for part in (left, right, result)
    )
    x = x.astype(dtype)

    def ours(x, matrix):
        return (weight * project(x, matrix, equation, dtype)).sum()

    def plain(x, matrix):
        return (weight * jnp.einsum(equation, x.astype(jnp.float32), matrix)).sum()

    found = jax.value_and_grad(ours, (0, 1))(x, matrix)
    expected = jax.value_and_grad(plain, (0, 1))(x, matrix)
    d_x, d_matrix = found[1]
    assert (d_x.dtype, d_matrix.dtype) == (dtype, jnp.float32)
    limit = 1e-5 if dtype == jnp.float32 else 3e-2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(leaf, np.float32) for leaf in (a, b))
        np.testing.assert_allclose(a, b, rtol=limit, atol=limit * max(1, np.abs(b).max()))


def test_experts_have_an_adapter_each():
    sizes = jnp.asarray([4, 0, 5], jnp.int32)
    rows, weight = normal(0, 9, 8), adapted((3, 8, 6), 1, lead=1, scale=0.5)
    merged = dense(weight)
    expected = np.concatenate([rows[:4] @ merged[0], rows[4:] @ merged[2]])
    actual = project_groups(rows, weight, sizes, blocked_grouped_matmul, jnp.float32)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    by_hand = weight.base[2] + 0.5 * weight.lora_a[2] @ weight.lora_b[2]
    np.testing.assert_allclose(merged[2], by_hand, rtol=1e-5, atol=1e-5)


def test_norms_of_columns_are_constants_and_need_no_product():
    weight = adapted((2, 3, 8, 6), 1, lead=2, scale=0.7)
    merged = np.asarray(dense(weight), np.float64)
    np.testing.assert_allclose(column_norms(weight), np.linalg.norm(merged, axis=-2), rtol=1e-5)
    grads = jax.grad(lambda w: column_norms(w).sum(), allow_int=True)(weight)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("shape", [(8, 6), (8, 3, 64), (4, 8, 192)])
def test_int8_is_within_half_a_step(shape):
    matrix = normal(0, 2, *shape)
    packed = quantize(matrix, "int8", lead=1, inputs=1)
    assert packed.codes.dtype == jnp.int8 and packed.shape == matrix.shape
    assert packed.scales.shape == (2, 1, *shape[1:])
    step = np.abs(matrix).max(axis=1, keepdims=True) / 127
    assert (np.abs(packed.values() - matrix) <= step / 2 * 1.0001).all()
    # What is on the grid already stays where it is.
    again = quantize(packed.values(), "int8", lead=1, inputs=1)
    np.testing.assert_array_equal(again.codes, packed.codes)


@pytest.mark.parametrize(("last", "block"), [(64, 64), (192, 64), (40, 8), (12, 4)])
def test_nf4_takes_the_nearest_of_sixteen(last, block):
    matrix = normal(0, 2, 8, last).at[0, 0].set(0.0)
    packed = quantize(matrix, "nf4", lead=1, inputs=1)
    assert packed.codes.dtype == jnp.uint8 and packed.codes.nbytes == matrix.size // 2
    assert packed.shape == matrix.shape and packed.scales.shape == (2, 8, last // block)
    blocks = np.asarray(matrix).reshape(2, 8, -1, block)
    largest = np.abs(blocks).max(-1, keepdims=True)
    nearest = np.abs(blocks[..., None] - largest[..., None] * NF4).argmin(-1)
    expected = (NF4[nearest] * largest).reshape(matrix.shape)
    np.testing.assert_allclose(packed.values(), expected, rtol=1e-6)
    assert not packed.values()[0, 0].any()  # zeros are exact
    error = np.abs(packed.values() - matrix)
    assert (error <= np.repeat(largest[..., 0], block, -1) * np.diff(NF4).max() / 2).all()
    # A Gaussian loses about 9 % of its standard deviation in blocks of 64, less in smaller ones.
    assert np.sqrt((error**2).mean()) < 0.1


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_quantised_matrix_shards_as_the_matrix_does(form):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("a", None, "b"))
    packed = quantize(normal(0, 2, 8, 512), form, lead=1, inputs=1)
    placed = jax.tree.map(lambda leaf: jax.device_put(leaf, place), packed)
    run = jax.jit(lambda w, x: project(x, w, "bti,io->bto", jnp.float32))
    x = normal(1, 2, 3, 8)

    def first(weight):
        return jax.tree.map(lambda leaf: leaf[0], weight)

    np.testing.assert_allclose(run(first(placed), x), run(first(packed), x), rtol=1e-5, atol=1e-5)


def test_adapter_on_a_quantised_matrix():
    weight = adapted((8, 6), 1)
    packed = quantize(weight.base, "nf4", lead=0, inputs=1)
    on_packed = Adapted(packed, weight.lora_a, weight.lora_b)
    on_values = Adapted(packed.values(), weight.lora_a, weight.lora_b)
    x = normal(0, 2, 5, 8)
    for one, other in ((dense(on_packed), dense(on_values)),):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        project(x, on_packed, "btd,df->btf", jnp.float32),
        project(x, on_values, "btd,df->btf", jnp.float32),
    )
    assert isinstance(packed, Quantized)


def test_dropout_drops_a_share_of_what_the_adapter_reads():
    x = jnp.ones((1, 64, 64))
    identity = jnp.eye(64)
    key = jax.random.key_data(jax.random.key(0))
    weight = Adapted(jnp.zeros((64, 64)), identity, identity, key=key, dropout=0.25)
    out = np.asarray(project(x, weight, "btd,df->btf", jnp.float32))
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert abs((out == 0).mean() - 0.25) < 0.03
