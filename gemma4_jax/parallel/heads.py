"""K/V heads that the mesh axis `tensor` divides, whatever their number."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from gemma4_jax.model.attention import KeyValues
from gemma4_jax.sharding import spec


def divisible_heads(kv: KeyValues, mesh: Any) -> KeyValues:
    """K/V [B, S, K, H] with heads that `tensor` divides.

    Where it has more devices than heads, each gets its one of them. Raises UserError where neither divides.
    """
    heads, devices = kv.value.shape[2], mesh.shape["tensor"]
    if heads % devices == 0 or devices % heads:
        spec((None, None, "kv_heads", None), kv.value.shape, mesh)  # raises where none divides
        return kv

    def repeated(x: Array | None) -> Array | None:
        return None if x is None else jnp.repeat(x, devices // heads, axis=2)

    value = jnp.repeat(kv.value, devices // heads, axis=2)
    return KeyValues(value, kv.facts, repeated(kv.key), repeated(kv.rotated), kv.key_scale)
