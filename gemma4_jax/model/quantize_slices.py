"""Quantising a matrix where a mesh has cut it: each device rounds its own slice.

The result is that of `weights.quantize` on the whole matrix, bit for bit, and cut as the matrix is. No device
gets more of it than it has: all that travels are largest values, where the mesh cuts inputs that share a scale.

Letters: I inputs, O outputs (each one axis or several).
"""

import functools
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from gemma4_jax.model.weights import NF4_BLOCK, Quantization, Quantized, quantize
from gemma4_jax.sharding import check_divides

Axes = tuple[str, ...]


def quantize_slices(matrix: Array, form: Quantization, *, lead: int, inputs: int) -> Quantized:
    """`weights.quantize` of a matrix [..., I, O] that a NamedSharding has placed.

    UserError if the mesh cuts nf4's blocks of 64 numbers, which share a scale.
    """
    sharding = matrix.sharding
    assert isinstance(sharding, NamedSharding)
    cut = [_axes(part) for part in sharding.spec] + [()] * (matrix.ndim - len(sharding.spec))
    across: Axes = ()
    if form == "int8":
        across = sum(cut[lead : lead + inputs], ())
    else:
        blocks = matrix.shape[-1] // math.gcd(NF4_BLOCK, matrix.shape[-1])
        check_divides(sharding.mesh, cut[-1], blocks, "a matrix's blocks that share a scale")
    result: Quantized = _mapped(sharding, tuple(cut), form, lead, inputs, across)(matrix)
    return result


@functools.cache
def _mapped(
    sharding: NamedSharding,
    cut: tuple[Axes, ...],
    form: Quantization,
    lead: int,
    inputs: int,
    across: Axes,
) -> Any:
    scales = list(cut)
    if form == "int8":
        scales[lead : lead + inputs] = [()] * inputs
    specs = Quantized(*(PartitionSpec(*(axes or None for axes in way)) for way in (cut, scales)))
    own = functools.partial(quantize, form=form, lead=lead, inputs=inputs, across=across)
    return jax.jit(
        jax.shard_map(
            own, mesh=sharding.mesh, in_specs=(specs.codes,), out_specs=specs, check_vma=False
        ),
        out_shardings=jax.tree.map(lambda spec: NamedSharding(sharding.mesh, spec), specs),
    )


def _axes(part: Any) -> Axes:
    """Mesh axes in an entry of a PartitionSpec."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
