"""Rotary position embedding, whole-head and proportional (spec 4.4).

Dimension j pairs with j + H/2. Of the H/2 pairs the first n = rotated_pairs rotate, with frequencies
whose exponent is taken over the whole head size H; the rest pass unchanged. Angles are float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4_jax.config import RopeConfig

# (cos, sin), each [B, T, n]; B may be 1 for positions that all rows share; B may be 1 for all rows alike
Rotation = tuple[Float[Array, "#B T n"], Float[Array, "#B T n"]]


def rotation(positions: Int[Array, "B T"], head_dim: int, rope: RopeConfig) -> Rotation:
    """Cosine and sine of position times frequency for the rotating pairs, float32 [B, T, n]."""
    pairs = rope.rotated_pairs(head_dim)
    exponents = jnp.arange(pairs, dtype=jnp.float32) * (2 / head_dim)
    frequencies = rope.theta**-exponents / rope.factor
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], by: Rotation) -> Float[Array, "B T N H"]:
    """Rotate every head of x by its token's angles; computed in float32, returned in x's dtype."""
    half, pairs = x.shape[-1] // 2, by[0].shape[-1]
    first, second = rotate_pairs(x[..., :pairs], x[..., half : half + pairs], by)
    if pairs == half:
        return jnp.concatenate([first, second], axis=-1)
    return jnp.concatenate([first, x[..., pairs:half], second, x[..., half + pairs :]], axis=-1)


def rotate_pairs(
    first: Float[Array, "B T N n"], second: Float[Array, "B T N n"], by: Rotation
) -> tuple[Float[Array, "B T N n"], Float[Array, "B T N n"]]:
    """Rotate the n pairs (first[j], second[j]) alone."""
    cos, sin = (table[:, :, None, :] for table in by)
    a, b = first.astype(jnp.float32), second.astype(jnp.float32)
    return (a * cos - b * sin).astype(first.dtype), (b * cos + a * sin).astype(second.dtype)
