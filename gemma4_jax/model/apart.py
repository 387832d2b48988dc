"""Parameters laid out for decoding on CPU: each layer's large matrices as arrays of their own.

XLA:CPU multiplies by a matrix where it lies only if the matrix is a whole array. A layer's part of a stack is
copied out first, at about 6 GB/s a core where products read 20, and for several rows the matrix is then packed
anew. `weights.Apart` spares both. Per CPU-second, matrices of 1536 x 6144 in float32: 5 times as many for one
row and for 8, 2.5 times for 32, and nothing for a prompt's hundreds, where the arithmetic is what takes time.
What is multiplied is the same, so tokens are. The loops over layers stay loops: nothing more is compiled.

Not for bfloat16, which XLA:CPU computes slowly in any form, nor for what is quantised or adapted, nor for
experts, of which few are read (`weights.Stacked`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_jax.model.weights import Apart

# Numbers of a matrix from which on it is worth it: smaller ones are copied within a processor's cache.
SMALLEST = 1 << 17


def take_apart(params: Mapping[str, Any], smallest: int = SMALLEST) -> dict[str, Any]:
    """The parameters of a `Transformer`, those stacks of matrices that are worth it as `Apart`.

    Gives the memory of each such stack back before it takes the next: `params` must not be used afterwards.
    smallest: numbers of a matrix.
    """
    return {
        name: _segment(sub, smallest) if name.startswith("segment_") else sub
        for name, sub in params.items()
    }


def is_taken_apart(params: Mapping[str, Any]) -> bool:
    """Whether some of them are `Apart`."""
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Apart))
    return any(isinstance(node, Apart) for node in nodes)


def _segment(params: Mapping[str, Any], smallest: int) -> dict[str, Any]:
    apart: dict[str, Any] = {}
    for name, sub in params.items():
        if name == "moe":
            apart[name] = sub
        elif isinstance(sub, Mapping):
            apart[name] = _segment(sub, smallest)
        elif _is_worth_it(sub, smallest):
            apart[name] = _apart(sub, inputs=sub.ndim - 3 if name == "o_proj" else 1)
        else:
            apart[name] = sub
    return apart


def _is_worth_it(leaf: Any, smallest: int) -> bool:
    """Whether it is a stack [n, m, *I, *O] of large matrices."""
    if not isinstance(leaf, jax.Array) or leaf.ndim < 4 or leaf.dtype != jnp.float32:
        return False
    return math.prod(leaf.shape[2:]) >= smallest


def _apart(stack: jax.Array, inputs: int) -> Apart:
    """inputs: axes of I."""
    repeats, places, *shape = stack.shape
    # Pinned to a device only if the stack was: to jax that is another program.
    device = next(iter(stack.devices())) if stack.committed else None
    values = np.asarray(stack).reshape(repeats * places, math.prod(shape[:inputs]), -1)
    matrices = tuple(
        jax.block_until_ready(jax.device_put(np.ascontiguousarray(matrix.T), device))
        for matrix in values
    )
    stack.delete()
    return Apart(matrices, (repeats, places), tuple(shape))
