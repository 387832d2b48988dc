"""What may stand in a parameter tree in the place of a matrix: itself, packed, or itself and an adapter.

A weight is an array, a `Quantized` one, or an `Adapted` one of either; in decoding also one of a slot's layers,
left where it lies (`Stacked`, `Apart`). `Quantized` and `Adapted` are pytree nodes whose arrays lead with the
axes that the matrix leads with (layers of a segment, of a run; experts), so that scans slice them as they
slice arrays. `project` and `project_groups` multiply by any of them; an array is
multiplied as if this file did not exist. Nothing here materialises a low-rank product except `dense`.
Not here: which matrices are adapted (`adapters.py`).

Letters: I inputs, O outputs (each one axis or several), r rank, E experts, M rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# What `jax.checkpoint` policies know the results of products with parameters by.
PRODUCT = "product"

Quantization = Literal["int8", "nf4"]
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "nf4")

# The 16 quantiles of a Gaussian that "NormalFloat" rounds to (QLoRA, arXiv 2305.14314, appendix E).
NF4 = np.asarray(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
NF4_BLOCK = 64  # numbers that share a scale, where the last axis is a multiple of it (all releases)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A matrix in 8 or 4 bits, of the same axes as the matrix; read-only.

    int8: symmetric, one scale per output. nf4: two codes a byte along the last axis, a scale per block of
    64 there. Axes are kept so that a quantised matrix shards as the matrix does.
    """

    codes: Any  # int8 [..., I, O], or uint8 [..., I, O / 2]
    scales: Any  # float32 [..., 1, O], or [..., I, O / block]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        packed = self.codes.dtype == jnp.uint8
        return (*self.codes.shape[:-1], self.codes.shape[-1] * (2 if packed else 1))

    def values(self) -> Array:
        """The matrix, float32."""
        if self.codes.dtype == jnp.int8:
            return self.codes.astype(jnp.float32) * self.scales
        pairs = jnp.stack([self.codes & 15, self.codes >> 4], axis=-1)
        blocks = jnp.asarray(NF4)[pairs].reshape(*self.scales.shape, -1)
        return (blocks * self.scales[..., None]).reshape(self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """W + scale * A B (LoRA, arXiv 2106.09685); with a magnitude, that with columns of that length (DoRA).

    key: of the dropout of what A reads, key data [..., 2]; None: no dropout.
    """

    base: Any  # [..., I, O], an array or Quantized
    lora_a: Any  # float32 [..., I, r]
    lora_b: Any  # float32 [..., r, O]
    magnitude: Any = None  # float32 [..., O]
    key: Any = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        shape: tuple[int, ...] = self.base.shape
        return shape

    def matrices(self) -> tuple[Array, Array, Array]:
        """W [..., I, O], A [..., I, r] and B [..., r, O], float32, with I and O one axis each."""
        a, b = self.lora_a, self.lora_b
        lead = a.ndim + b.ndim - 2 - len(self.shape)
        stack, rank = self.shape[:lead], a.shape[-1]
        a, b = a.reshape(*stack, -1, rank), b.reshape(*stack, rank, -1)
        return _values(self.base).reshape(*stack, a.shape[-2], b.shape[-1]), a, b

    def column_ratio(self) -> Array:
        """magnitude / |W + scale A B| over the inputs, [..., O]; the norm is no part of the gradient.

        |W + sAB|^2 = |W|^2 + 2s <W, AB> + s^2 |AB|^2 column by column, without the product A B. DoRA, arXiv
        2402.09353, section 4.3: treating the norm as a constant changes results little and saves memory.
        """
        norms = column_norms(self)
        return self.magnitude / norms.reshape(self.magnitude.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacked:
    """One layer's experts where they lie, in the stack of all layers of a slot.

    For steps of few tokens: a product reads the experts that they were sent to, where taking the layer out of
    the stack first would read and write all of them.
    """

    stack: Any  # [n, m, E, I, O]
    index: Any  # (repeat, place), int32

    @property
    def shape(self) -> tuple[int, ...]:
        """[E, I, O]."""
        shape: tuple[int, ...] = self.stack.shape[2:]
        return shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Apart:
    """A matrix of every layer of a slot, each an array of its own with its outputs first (`apart.py`).

    Read-only; for decoding on CPU. `of` says which layer's is meant.
    """

    matrices: tuple[Any, ...]  # [O, I] of n x m layers, I and O one axis each
    stack: tuple[int, int] = dataclasses.field(metadata={"static": True})  # (n, m)
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of a matrix: [*I, *O]
    number: Any = None  # which one: an int, or int32

    def of(self, repeat: Any, place: Any) -> Apart:
        """That layer's."""
        return dataclasses.replace(self, number=repeat * self.stack[1] + place)


Weight = Array | Quantized | Adapted | Stacked | Apart


def column_norms(weight: Adapted) -> Array:
    """|W + scale A B| over the inputs, float32 [..., O] with O as one axis; a constant in gradients."""
    w, a, b = jax.tree.map(jax.lax.stop_gradient, weight.matrices())
    exact = functools.partial(jnp.einsum, precision="highest")
    cross = jnp.sum(exact("...io,...ir->...ro", w, a) * b, axis=-2)
    low = jnp.sum(exact("...rq,...qo->...ro", exact("...ir,...iq->...rq", a, a), b) * b, axis=-2)
    square = jnp.sum(jnp.square(w), axis=-2) + 2 * weight.scale * cross + weight.scale**2 * low
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(jnp.float32).tiny))


def project(x: Array, weight: Weight, equation: str, dtype: Any) -> Array:
    """einsum(equation, x, weight) in `dtype`, such as "btd,dnh->btnh".

    The rank's letter is r, so it must not be in the equation. Dropout, where there is any, is on what A
    reads alone; DoRA's reference implementation also drops inputs of its correction of W's own
    part, which costs a second product with W and has the same expectation.
    """
    operands, result = equation.split("->")
    left, right = operands.split(",")
    inputs = "".join(letter for letter in right if letter not in result)
    if isinstance(weight, Apart):
        return _product_apart(x, weight, len(inputs), dtype)
    if not isinstance(weight, Adapted):
        matrix = weight.values() if isinstance(weight, Quantized) else weight
        # By its name, since a policy does not see into a function with a gradient of its own.
        return checkpoint_name(_product(equation, inputs, dtype, x, matrix), PRODUCT)
    outputs = "".join(letter for letter in right if letter in result)
    kept = "".join(letter for letter in left if letter not in inputs)
    a, b = weight.lora_a.astype(dtype), weight.lora_b.astype(dtype)
    low = jnp.einsum(f"{left},{inputs}r->{kept}r", _dropped(x, weight), a)
    delta = jnp.einsum(f"{kept}r,r{outputs}->{result}", low, b) * weight.scale
    out = project(x, weight.base, equation, dtype) + delta
    if weight.magnitude is None:
        return out
    return out * weight.column_ratio().astype(dtype)


def _product_apart(x: Array, weight: Apart, inputs: int, dtype: Any) -> Array:
    """x [..., *I] times [*I, *O]; inputs: axes of I."""
    kept, outputs = x.shape[: x.ndim - inputs], weight.shape[inputs:]
    products = [
        functools.partial(times_transposed, matrix=matrix.astype(dtype), dtype=dtype)
        for matrix in weight.matrices
    ]
    x = x.reshape(math.prod(kept), -1)
    if isinstance(weight.number, int):
        out = products[weight.number](x)
    else:
        # A branch for each layer reads its matrix where it lies.
        out = jax.lax.switch(weight.number, products, x)
    return out.reshape(*kept, *outputs)


def times_transposed(
    x: Float[Array, "M I"], matrix: Float[Array, "O I"], dtype: Any
) -> Float[Array, "M O"]:
    """x times the transposed matrix in `dtype`, computed as matrix times columns.

    XLA:CPU packs what is on the right of a product anew in every call: that should be the smaller of the two.
    The barriers keep XLA from turning the product round.
    """
    if x.shape[0] == 1:
        return jnp.matmul(matrix, x[0], preferred_element_type=dtype)[None]
    columns = jax.lax.optimization_barrier(x.T)
    product = jnp.matmul(matrix, columns, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(product).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(equation: str, inputs: str, dtype: Any, x: Array, matrix: Array) -> Array:
    """einsum(equation, x, matrix) in `dtype`, whose gradients need no transposition on XLA:CPU.

    `inputs`, the letters summed over, are one axis of the product: XLA would sum over two in an order of its
    own, and copy the matrix for it. And JAX's own rule makes the matrix's gradient transposed.
    """
    if len(inputs) > 1:
        x = x.reshape(*x.shape[: -len(inputs)], -1)
        matrix = matrix.reshape(-1, *matrix.shape[len(inputs) :])
    return jnp.einsum(equation.replace(inputs, inputs[0]), x, matrix.astype(dtype))


def _product_forward(
    equation: str, inputs: str, dtype: Any, x: Array, matrix: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _product(equation, inputs, dtype, x, matrix), (x, matrix)


def _product_backward(
    equation: str, inputs: str, dtype: Any, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, matrix = saved
    operands, result = equation.split("->")
    left, right = operands.split(",")
    d_x = jnp.einsum(f"{result},{right}->{left}", grad, matrix.astype(dtype))
    # Summed over all tokens: in float32, however short the numbers of the product are.
    d_matrix = jnp.einsum(f"{left},{result}->{right}", x, grad, preferred_element_type=jnp.float32)
    return d_x.astype(x.dtype), d_matrix.astype(matrix.dtype)


_product.defvjp(_product_forward, _product_backward)


def project_groups(
    rows: Array,
    weight: Weight,
    group_sizes: Array,
    grouped_matmul: Callable[[Array, Array, Array], Array],
    dtype: Any,
) -> Array:
    """rows [M, I], sorted by expert, each times its expert's matrix of `weight` [E, I, O]; LoRA per expert."""
    if isinstance(weight, Stacked):
        # The other layers' experts are groups of no rows.
        repeat, place = weight.index
        repeats, places, experts = weight.stack.shape[:3]
        sizes = jnp.zeros(repeats * places * experts, group_sizes.dtype)
        first = (repeat * places + place) * experts
        sizes = jax.lax.dynamic_update_slice(sizes, group_sizes, (first,))
        return grouped_matmul(rows, weight.stack.reshape(-1, *weight.shape[1:]), sizes)
    assert not isinstance(weight, Apart), "apart.py leaves experts in their stacks"
    if not isinstance(weight, Adapted):
        return grouped_matmul(rows, _cast(weight, dtype), group_sizes)
    assert weight.magnitude is None, "adapters.py gives experts no DoRA"
    low = grouped_matmul(_dropped(rows, weight), weight.lora_a.astype(dtype), group_sizes)
    delta = grouped_matmul(low, weight.lora_b.astype(dtype), group_sizes) * weight.scale
    return project_groups(rows, weight.base, group_sizes, grouped_matmul, dtype) + delta


def dense(weight: Weight) -> Array:
    """The array that a weight stands for; adapters merged into it, in float32. An array is itself."""
    assert not isinstance(weight, Stacked | Apart), "these are for decoding alone"
    if not isinstance(weight, Adapted):
        return _values(weight) if isinstance(weight, Quantized) else weight
    w, a, b = weight.matrices()
    merged = w + weight.scale * jnp.matmul(a, b, precision="highest")
    if weight.magnitude is not None:
        merged = merged * weight.column_ratio().reshape(*merged.shape[:-2], 1, -1)
    return merged.reshape(weight.shape)


def quantize(
    matrix: Array, form: Quantization, *, lead: int, inputs: int, across: tuple[str, ...] = ()
) -> Quantized:
    """Round [..., I, O] to `form`; lead, inputs: number of axes of "..." and of I.

    Slice by slice of the leading axes: temporaries are as big as one layer's matrix, not as the stack.
    across: inside `shard_map`, the mesh axes that cut I (`quantize_slices.py`).
    """
    return _quantize(matrix, form, lead, inputs, across)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _quantize(
    matrix: Array, form: Quantization, lead: int, inputs: int, across: tuple[str, ...]
) -> Quantized:
    stack = matrix.shape[:lead]
    whole = functools.partial(_int8, inputs=inputs, across=across)
    rounded = whole if form == "int8" else _nf4
    flat = matrix.reshape(math.prod(stack), *matrix.shape[lead:])
    out: Quantized = jax.lax.map(rounded, flat)
    return jax.tree.map(lambda leaf: leaf.reshape(*stack, *leaf.shape[1:]), out)


def _int8(matrix: Array, inputs: int, across: tuple[str, ...]) -> Quantized:
    matrix = matrix.astype(jnp.float32)
    largest = jnp.max(jnp.abs(matrix), axis=tuple(range(inputs)), keepdims=True)
    if across:
        largest = jax.lax.pmax(largest, across)
    scales = jnp.where(largest > 0, largest / 127, 1.0)
    return Quantized(jnp.round(matrix / scales).astype(jnp.int8), scales)


def _nf4(matrix: Array) -> Quantized:
    # The tiny models' axes are no multiples of 64; the largest power of two that divides them serves.
    block = math.gcd(NF4_BLOCK, matrix.shape[-1])
    blocks = matrix.astype(jnp.float32).reshape(*matrix.shape[:-1], -1, block)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / jnp.where(largest > 0, largest, 1.0)[..., None]
    between = jnp.asarray((NF4[1:] + NF4[:-1]) / 2)
    codes = jnp.searchsorted(between, unit, method="compare_all").astype(jnp.uint8)
    pairs = codes.reshape(*matrix.shape[:-1], -1, 2)
    return Quantized(pairs[..., 0] | (pairs[..., 1] << 4), largest)


def _values(weight: Array | Quantized) -> Array:
    return weight.values() if isinstance(weight, Quantized) else weight.astype(jnp.float32)


def _cast(weight: Array | Quantized, dtype: Any) -> Array:
    values = weight.values() if isinstance(weight, Quantized) else weight
    return values.astype(dtype)


def _dropped(x: Array, weight: Adapted) -> Array:
    """x with a share of its numbers 0 and the rest enlarged, where the adapter has a key."""
    if weight.key is None:
        return x
    share = 1 - weight.dropout
    keep = jax.random.bernoulli(jax.random.wrap_key_data(weight.key), share, x.shape)
    return jnp.where(keep, x / share, 0).astype(x.dtype)
