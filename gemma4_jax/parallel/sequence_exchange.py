"""How keys and values travel between the devices of the mesh axis `seq`, each holding two chunks of a row.

A row is cut into 2P chunks in order; device d holds chunks d and 2P - 1 - d (zig-zag), so that every device has
the same causal work. Three ways for keys to meet queries: `halo` fetches the few positions beside a chunk,
`gather` fetches the whole row, `ring` passes shards around while they are computed with. All of it runs inside
`shard_map`, on local arrays. Not here: arithmetic (`attention_tiles`) and which layer takes which way
(`sequence_attention`).

Letters: P parts (devices along `seq`), c positions of a chunk, T = 2 P c, B batch, n tiles of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gemma4_jax.parallel.attention_tiles import Keys, split
from gemma4_jax.parallel.zigzag import SEQ, chunk_order

# What a step of the ring costs beside bytes and products (a collective's start, a loop's turn), and a link's
# bytes per second: the orders of magnitude of TPU v5e to v5p. Neither was measured here.
_STEP_SECONDS = 10e-6
_LINK_BYTES = 50e9
_GATHERED_BYTES = 16 * 2**20

# How the keys of a whole row reach its queries.
Whole = Literal["ring", "gather"]


def full_layer_exchange(tokens: int, parts: int, kv_heads: int, width: int, itemsize: int) -> Whole:
    """How a full layer's keys reach all queries: "ring", or "gather" where shards are small.

    tokens: on one device; kv_heads: on one device; width: numbers of a head and token that travel (2H, or
    H + 2n where K is implied by V). Both ways move (P - 1) shards through each device's link. The ring hides
    them behind products, P - 1 times at the price of a step's overhead; a gather waits for them once. So a
    gather wins where a shard crosses a link sooner than a step's overhead (500 KB), whatever P is; but it holds
    all P shards, hence the second bound.
    """
    shard = tokens * kv_heads * width * itemsize
    small = shard <= _STEP_SECONDS * _LINK_BYTES and parts * shard <= _GATHERED_BYTES
    return "gather" if small else "ring"


def halo(x: Array, parts: int, left: int, right: int, tile: int) -> Array:
    """[B, 2 c, ...] -> tiles of both chunks, each between the `left` positions before it and `right` after.

    A halo may span several chunks. Zeros where the row ends. Linear in x, so that its transpose brings the
    gradients home.
    """
    chunk = x.shape[1] // 2
    halves = x[:, :chunk], x[:, chunk:]
    before = [-k for k in range(1, -(-left // chunk) + 1)]
    after = list(range(1, -(-right // chunk) + 1))
    # Of the outermost neighbours only the near end is needed.
    lengths = {
        k: min(chunk, (left if k < 0 else right) - (abs(k) - 1) * chunk) for k in before + after
    }
    beside = {
        k: _neighbours(_near_end(halves[0], k, length), _near_end(halves[1], k, length), k, parts)
        for k, length in lengths.items()
    }
    extended = [
        jnp.concatenate(
            [
                *(beside[k][half] for k in reversed(before)),
                halves[half],
                *(beside[k][half] for k in after),
            ],
            axis=1,
        )
        for half in (0, 1)
    ]
    return jnp.concatenate([split(x, 1, tile) for x in extended])


def halo_pairs(chunk: int, left: int, right: int, tile: int) -> Int[np.ndarray, "M 2"]:
    """Which tiles of a chunk's queries and of `halo`'s result meet: those with anything within the band."""
    own, held = -(-chunk // tile), -(-(left + chunk + right) // tile)
    # Query p stands at p + left among the keys: it sees p to p + left + right.
    pairs = [
        (i, j)
        for i in range(own)
        for j in range(i, min(held, ((i + 1) * tile - 1 + left + right) // tile + 1))
    ]
    return np.array(
        [(half * own + i, half * held + j) for half in (0, 1) for i, j in pairs], np.int32
    )


def _near_end(half: Array, offset: int, length: int) -> Array:
    """The end of a neighbour that is nearer: the last positions of one on the left."""
    return half[:, half.shape[1] - length :] if offset < 0 else half[:, :length]


def _neighbours(first: Array, second: Array, offset: int, parts: int) -> tuple[Array, Array]:
    """For both chunks of every device, the chunk `offset` further; zeros beyond the row.

    first, second: what every device has to give of its own two chunks.
    """
    routes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place, chunk in enumerate(chunk_order(parts)):
        if 0 <= chunk + offset < 2 * parts:
            source = chunk_order(parts).index(chunk + offset)
            routes.setdefault((source % 2, place % 2), []).append((source // 2, place // 2))
    halves, found = (first, second), [jnp.zeros_like(first), jnp.zeros_like(second)]
    for (source_half, half), route in routes.items():
        if all(source == to for source, to in route):  # chunks P - 1 and P are on one device
            here = jnp.isin(jax.lax.axis_index(SEQ), np.array([to for _, to in route]))
            arrived = jnp.where(here, halves[source_half], 0)
        else:
            arrived = jax.lax.ppermute(halves[source_half], SEQ, route)
        found[half] += arrived  # who is not on the route gets zeros
    return found[0], found[1]


def gather(x: Array, tile: int) -> Array:
    """[B, 2 c, ...] -> the tiles of the whole row, device after device. Linear in x."""
    return jax.lax.all_gather(split(x, 2, tile), SEQ, axis=0, tiled=True)


def gather_pairs(parts: int, tiles: int, causal: bool) -> Int[Array, "M 2"]:
    """Which tiles of own queries and of `gather`'s result meet: on every device the same number.

    Chunk d sees d + 1 chunks and chunk 2P - 1 - d sees 2P - d: together always 2P + 1.
    """
    if not causal:
        return jnp.asarray(_all_tiles(2 * tiles, 2 * parts * tiles))
    device, number = jax.lax.axis_index(SEQ), jnp.arange(2 * parts + 1)
    early = number <= device
    chunk = jnp.where(early, number, number - device - 1)
    place = jnp.asarray(np.argsort(chunk_order(parts)))[chunk]
    return _tiles_of(jnp.stack([jnp.where(early, 0, 1), place], 1), tiles)


Visit = Callable[[Any, Keys, Int[Array, "M 2"]], tuple[Any, Any]]


def ring(visit: Visit, stays: Any, keys: Keys, parts: int, causal: bool) -> tuple[Any, Any]:
    """visit(stays, shard, pairs) -> (stays, added) for the shards of all devices, this one's own first.

    keys: this device's tiles. While one shard is computed with, the next is on its way: P - 1 transfers, and
    never more than two visiting shards on a device. `added` is what a visit has to say to the shard's owner
    (gradients; () for nothing): it follows a step behind, is summed on its way and comes home after P steps.
    Causal visits are all the same size: of 4 pairs of chunks the 2 in which keys come before queries. Returns
    what stayed, and what came home.
    """
    tiles = keys.value.shape[0] // 2
    device = jax.lax.axis_index(SEQ)

    def shift(tree: Any) -> Any:
        route = [(d, (d + 1) % parts) for d in range(parts)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, SEQ, route), tree)

    def pairs(number: Array | int) -> Array:
        """Of the visit of the shard of device - number; none of its chunks is one of this device's."""
        if not causal:
            return jnp.asarray(_all_tiles(2 * tiles, 2 * tiles))
        # An earlier device's first chunk is before both chunks here and its second after both; a later
        # device's two chunks are after the first here and before the second.
        half = jnp.where(number > device, 1, 0)
        return _tiles_of(jnp.array([[1, 0], [0, 0]]).at[1].set(half), tiles)

    def step(carry: tuple[Any, Keys, Any], number: Array) -> tuple[tuple[Any, Keys, Any], None]:
        stays, keys, said = carry
        following, arriving = shift(keys), shift(said)
        stays, added = visit(stays, keys, pairs(number))
        return (stays, following, jax.tree.map(jnp.add, arriving, added)), None

    following = shift(keys)
    own = _all_tiles(2 * tiles, 2 * tiles)
    own = own[own[:, 1] <= own[:, 0]] if causal else own
    stays, said = visit(stays, keys, jnp.asarray(own))
    carry = stays, following, said
    if parts > 2:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(1, parts - 1))
    stays, keys, said = carry
    arriving = shift(said)
    stays, added = visit(stays, keys, pairs(parts - 1))
    return stays, shift(jax.tree.map(jnp.add, arriving, added))


def _all_tiles(rows: int, columns: int) -> Int[np.ndarray, "M 2"]:
    """Every pair, row by row."""
    return np.stack(np.divmod(np.arange(rows * columns, dtype=np.int32), columns), 1)


def _tiles_of(chunks: Int[Array, "M 2"], tiles: int) -> Int[Array, "m 2"]:
    """Pairs of chunks as pairs of their tiles."""
    inside = _all_tiles(tiles, tiles)
    return (chunks[:, None] * tiles + inside[None]).reshape(-1, 2).astype(jnp.int32)
