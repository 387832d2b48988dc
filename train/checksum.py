"""A checksum of the bits of a tree of arrays, computed where the arrays are.

The same on any number of devices and processes. Not a cryptographic one: it notices what disks and kills do.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    def weigh(leaf: jax.Array) -> jax.Array:
        leaf = jax.device_put(leaf, jax.memory.Space.Device)  # the moments may be in host memory
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        word = _WORDS[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
        # Odd weights by position, so that swapped values are noticed. No reshaping: it would gather a leaf
        # that is cut over devices.
        position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
        for axis in reversed(range(bits.ndim)):
            along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            position += along * jnp.uint32(stride % 2**32)
            stride *= bits.shape[axis]
        return (bits * (2 * position + 1)).sum(dtype=jnp.uint32)

    return [weigh(leaf) for leaf in leaves]


def tree_checksum(tree: Any) -> str:
    """Hexadecimal checksum of all leaves: their bits, shapes, types and order."""
    leaves = jax.tree.leaves(tree)
    about = [
        (leaf.shape, str(leaf.dtype), int(total))
        for leaf, total in zip(leaves, jax.device_get(_sums(leaves)), strict=True)
    ]
    return hashlib.blake2b(repr(about).encode(), digest_size=12).hexdigest()
