"""Keys and values in 8 bits: each head of each position has its own scale.

Numbers are kept as int8 or float8 beside float32 scales (buffers named `..._scale`, one number for H), so that
nothing an outlier does reaches another position or head. They are restored a block at a time, where they are
read: attention itself knows nothing of it. The errors that this makes are in docs/decoding.md.

Letters: B rows, C positions, K key/value heads, H head dim.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4_jax.errors import unknown

SCALE = "_scale"
SCALE_BYTES = 4
#: Largest magnitude of each kind.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def held_dtype(name: Any, known: dict[str, Any]) -> Any:
    """The dtype of that name to keep keys and values in: one of `known`, or of 8 bits."""
    given = {"float8": "float8_e4m3fn"}.get(str(name), name)
    try:
        found = jnp.dtype(given)
    except TypeError:
        raise unknown("cache dtype", str(name), [*known, "int8", "float8"]) from None
    if str(found) not in {*known, *LARGEST}:
        raise unknown("cache dtype", str(found), [*known, "int8", "float8"])
    return found


def is_scaled(dtype: Any) -> bool:
    """Whether numbers of this dtype need scales."""
    return str(jnp.dtype(dtype)) in LARGEST


def with_scales(new: dict[str, Array], entry: dict[str, Array]) -> dict[str, Array]:
    """What goes into an entry's buffers, of new leaves [B, C, K, H] by their names."""
    found = {}
    for name, buffer in entry.items():
        if name.endswith(SCALE):
            continue
        found[name] = new[name]
        if name + SCALE in entry:
            found[name], found[name + SCALE] = _scaled(new[name], buffer.dtype)
    return found


def restored(taken: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """What was taken out of an entry's buffers, scaled numbers as `dtype`, without their scales."""
    return {
        name: leaf
        if name + SCALE not in taken
        else (leaf.astype(jnp.float32) * taken[name + SCALE]).astype(dtype)
        for name, leaf in taken.items()
        if not name.endswith(SCALE)
    }


def _scaled(x: Float[Array, "B C K H"], dtype: Any) -> tuple[Array, Float[Array, "B C K 1"]]:
    largest = LARGEST[str(jnp.dtype(dtype))]
    x = x.astype(jnp.float32)
    # The smallest normal number for heads of zeros.
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True) / largest, 2.0**-126)
    x = jnp.clip(x / scale, -largest, largest)
    return (jnp.round(x) if jnp.issubdtype(dtype, jnp.integer) else x).astype(dtype), scale
