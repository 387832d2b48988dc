"""Which tiles of keys a tile of queries may see: `visible`, asked of the smallest and largest facts of tiles.

A kernel that walks over tiles needs one run of them for each of its own. Runs hold every pair of tokens of
which one sees the other, for any facts: windows, packed documents, images, branches. They may hold tiles in
which nobody does; the kernel masks those.

Letters: B batch, T tokens.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gemma4_jax.model.visibility import EMPTY

# The fields of TokenFacts that are given, each int32 [B, T].
Facts = dict[str, jax.Array]


def meetings(
    facts: Facts,
    queries: int,
    keys: int,
    window: int | None,
    bidirectional: Literal["vision"] | None,
) -> Bool[Array, "B queries keys"]:
    """False for a tile of `queries` tokens and one of `keys` tokens of which no query sees a key.

    T is a multiple of both sizes.
    """

    def low(name: str, size: int) -> Array:
        return _tiles(facts[name], size).min(-1)

    def high(name: str, size: int) -> Array:
        return _tiles(facts[name], size).max(-1)

    def overlap(name: str) -> Array:
        """Of the two runs of numbers; not of -1, which stands for none."""
        first, last = (
            _tiles(jnp.where(facts[name] < 0, EMPTY, facts[name]), size).min(-1)
            for size in (queries, keys)
        )
        return (first[:, :, None] <= high(name, keys)[:, None]) & (
            last[:, None] <= high(name, queries)[:, :, None]
        )

    meet = low("index", keys)[:, None] <= high("index", queries)[:, :, None]
    if window is not None:
        if bidirectional == "vision" and "block" in facts:
            meet |= overlap("block")
        meet &= high("index", keys)[:, None] > low("index", queries)[:, :, None] - window
    if "segment" in facts:
        meet &= overlap("segment")
    if "branch" in facts:
        meet &= overlap("branch") | (low("branch", keys) == 0)[:, None]
    return meet


def run_of(meet: Bool[Array, "B own other"]) -> tuple[Int[Array, "B own"], Int[Array, "B own"]]:
    """First tile that each tile meets, and the one behind the last; 0 and 0 where it meets none."""
    count = meet.shape[-1]
    any_of = meet.any(-1)
    first = jnp.where(any_of, jnp.argmax(meet, -1), 0)
    end = jnp.where(any_of, count - jnp.argmax(meet[..., ::-1], -1), 0)
    return first.astype(jnp.int32), end.astype(jnp.int32)


def _tiles(fact: Array, size: int) -> Array:
    """[B, T] -> [B, n, size]."""
    return fact.reshape(fact.shape[0], -1, size)
