"""What decoding remembers (spec 7): rings for sliding layers, V alone for k_eq_v, nothing for shared layers.

A cache is a pytree of preallocated buffers, one entry per layer slot that owns K/V, stacked like the
parameters: [n, m, B, S, K, H] for a run of m layers in a segment of n repeats. It rides in the carry of
the layer scans and is written in place. A sliding layer keeps the last W positions (position p lives in
slot p mod W); a full layer keeps `capacity` positions. Which positions a buffer holds follows from
`length` alone.

Where rows come and go, full layers keep pages: a pool [n, m, G, S, K, H] of G pages of S positions each, and a
table that says which page has which positions of a row. A ring with slack holds more than the W positions its
layer can see: tokens can then be taken back, by lowering `length`, as many as there is slack.

Letters: B batch, C new tokens, S slots, K key/value heads, H head dim, W window, n repeats, m run length,
G pages of a pool, M pages a row may have.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gemma4_jax.config import SLIDING, LayerConfig, ModelConfig
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.cache_precision import SCALE, SCALE_BYTES, is_scaled
from gemma4_jax.model.layout import Run, segments
from gemma4_jax.model.visibility import EMPTY

# How k_eq_v full layers are remembered: "value": V alone, K's rotated slice rebuilt at every read (H numbers a
# head); "value+rotated": V and that slice (H + 2n); "both": K and V (2H), what other stacks keep.
Compression = Literal["value", "value+rotated", "both"]
COMPRESSIONS: tuple[Compression, ...] = ("value", "value+rotated", "both")
# In a table: no page. Beyond every pool, so that a scatter drops what is written there.
NO_PAGE = 2**30
# Repeat and place in the run: which layer of a slot's stacked buffers.
Index = tuple[Array | int, Array | int]
# One layer slot's buffers by name ("key", "value", "rotated"), or None where the slot owns no K/V.
# Leaves are arrays, or their shapes where a program is compiled ahead of time.
Entry = dict[str, Any] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """All buffers, and how many tokens of each row they have seen."""

    entries: tuple[tuple[Entry, ...], ...]  # [segment][slot], leaves [n, m, B, S, K, ...]
    length: Any  # int32 [B]
    # int32 [B, M]: page of a row's positions [j S, (j + 1) S) in the buffers of full layers, which are then
    # [n, m, G, S, K, ...]; NO_PAGE where there is none. None: every row has buffers of its own.
    table: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.entries))


def slots(layer: LayerConfig, config: ModelConfig, capacity: int) -> int:
    """S of a layer's buffers when `capacity` positions are to be held."""
    return min(config.window, capacity) if layer.kind == SLIDING else capacity


def init_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    dtype: Any = jnp.float32,
    compression: Compression = "value+rotated",
    tensor: int = 1,
    *,
    pages: tuple[int, int] | None = None,
    slack: int = 0,
) -> Cache:
    """Empty buffers for `batch` rows of up to `capacity` positions.

    dtype: of keys and values; those of 8 bits bring their scales (`cache_precision.py`). tensor: over how many
    devices heads are cut; a layer with fewer K/V heads keeps copies, one for each device.
    pages: (G, S) of a pool for the full layers; the table, of as many pages as `capacity` needs, is then empty.
    slack: positions that rings hold beyond the window.
    Raises UserError for an encoder (bidirectional "all"), which cannot decode.
    """
    if config.bidirectional == "all":
        raise UserError("a two-sided encoder (bidirectional 'all') cannot decode token by token")
    if compression not in COMPRESSIONS:
        raise unknown("cache compression", compression, COMPRESSIONS)

    def entry(run: Run, repeats: int) -> Entry:
        layer = run.layer
        if not layer.owns_kv:
            return None
        # Whoever has too few heads for the devices has placed parameters first, which says so.
        heads = max(layer.num_kv_heads, tensor)
        held = (batch, slots(layer, config, capacity) + slack * (layer.kind == SLIDING), heads)
        if pages is not None and layer.kind != SLIDING:
            held = (*pages, heads)
        buffers = {
            name: jnp.zeros((repeats, run.length, *held, width), dtype)
            for name, width in entry_widths(layer, compression).items()
        }
        if is_scaled(dtype):
            scale = jnp.zeros((repeats, run.length, *held, 1), jnp.float32)
            buffers |= {name + SCALE: scale for name in list(buffers)}
        return buffers

    entries = tuple(
        tuple(entry(run, segment.repeats) for run in segment.pattern)
        for segment in segments(config)
    )
    table = None
    if pages is not None:
        table = jnp.full((batch, -(-capacity // pages[1])), NO_PAGE, jnp.int32)
    return Cache(entries, jnp.zeros((batch,), jnp.int32), table)


def entry_widths(layer: LayerConfig, compression: Compression) -> dict[str, int]:
    """Numbers kept per position and head of an owning layer, by buffer name."""
    if not layer.value_from_key or compression == "both":
        return {"key": layer.head_dim, "value": layer.head_dim}
    rotated = 2 * layer.rope.rotated_pairs(layer.head_dim)
    if compression == "value":
        return {"value": layer.head_dim}
    return {"value": layer.head_dim, "rotated": rotated}


def entry_axes(layer: LayerConfig) -> tuple[str | None, ...]:
    """Logical axes of an owning layer's buffers [n, m, B, S, K, H].

    A ring is short: every device of a mesh axis that cuts positions has it whole.
    """
    positions = None if layer.kind == SLIDING else "cache_positions"
    return (None, None, "cache_rows", positions, "cache_heads", None)


def bytes_per_token(
    config: ModelConfig, itemsize: int = 2, compression: Compression = "both"
) -> int:
    """Bytes one more position costs while every layer still grows (spec 7: compression "both")."""
    return sum(
        layer.num_kv_heads * head_bytes(layer, compression, itemsize)
        for layer in config.layers
        if layer.owns_kv
    )


def head_bytes(layer: LayerConfig, compression: Compression, itemsize: int) -> int:
    """Bytes kept per position and head of an owning layer; of 1 byte each with their scales."""
    widths = entry_widths(layer, compression).values()
    return sum(width * itemsize + SCALE_BYTES * (itemsize == 1) for width in widths)


def held_positions(length: Int[Array, " B"], size: int, ring: bool) -> Int[Array, "B S"]:
    """Position that each slot holds after `length` tokens; EMPTY where it holds none."""
    slot = jnp.arange(size, dtype=jnp.int32)[None]
    last = length[:, None] - 1
    position = last - (last - slot) % size if ring else slot
    return jnp.where((position >= 0) & (position <= last), position, EMPTY)


def write_slots(
    length: Int[Array, " B"], count: Int[Array, " B"], new: int, size: int, ring: bool
) -> Int[Array, "B C"]:
    """Slot for each of `new` tokens a row is given, the first `count` of which are real.

    Tokens that must not be written (padding, or overwritten within the same chunk) get the slot `size`,
    which a scatter in "drop" mode ignores.
    """
    offset = jnp.arange(new, dtype=jnp.int32)[None]
    position = length[:, None] + offset
    keep = offset < count[:, None]
    if ring:
        keep &= offset >= count[:, None] - size
        return jnp.where(keep, position % size, size)
    return jnp.where(keep, position, size)


def page_places(
    table: Int[Array, "B M"], length: Int[Array, " B"], count: Int[Array, " B"], new: int, size: int
) -> tuple[Int[Array, "B C"], Int[Array, "B C"]]:
    """Page, and slot in it, for each of `new` tokens a row is given; NO_PAGE for what is not to be written.

    size: positions of a page.
    """
    offset = jnp.arange(new, dtype=jnp.int32)[None]
    position = length[:, None] + offset
    number = position // size
    page = jnp.take_along_axis(table, jnp.minimum(number, table.shape[1] - 1), axis=1)
    keep = (offset < count[:, None]) & (number < table.shape[1])
    return jnp.where(keep, page, NO_PAGE), position % size


def size(entry: dict[str, Array]) -> int:
    """S of an entry's buffers."""
    return entry["value"].shape[3]


def remember(
    entry: dict[str, Array],
    new: dict[str, Array],
    index: Index,
    length: Int[Array, " B"],
    count: Int[Array, " B"],
    layer: LayerConfig,
    table: Int[Array, "B M"] | None = None,
) -> dict[str, Array]:
    """Put the first count[b] of each row's new tokens, leaves [B, C, K, ...], behind the `length` it has.

    table: of a full layer whose buffers are pages.
    """
    ring, (rows, tokens) = layer.kind == SLIDING, new["value"].shape[:2]
    if table is not None:
        return write(entry, new, index, *page_places(table, length, count, tokens, size(entry)))
    at = write_slots(length, count, tokens, size(entry), ring)
    return write(entry, new, index, jnp.arange(rows)[:, None], at)


def write(
    entry: dict[str, Array],
    new: dict[str, Array],
    index: Index,
    rows: Int[Array, "B _"],
    at: Int[Array, "B C"],
) -> dict[str, Array]:
    """Write [B, C, K, ...] leaves of one layer into the stacked buffers, in place under jit.

    rows: row or page of each token ([B, 1] will do). at: its slot there. What lies beyond a buffer is dropped.
    """
    return {
        name: buffer.at[*index, rows, at].set(
            new[name].astype(buffer.dtype), mode="drop", unique_indices=True
        )
        for name, buffer in entry.items()
    }


def pick(stacked: Array, index: Index) -> Array:
    """stacked[index] in one slice."""
    if all(isinstance(i, int) for i in index):
        return stacked[index]
    rest = stacked.shape[2:]
    start = (*index, *(0,) * len(rest))
    return jax.lax.dynamic_slice(stacked, start, (1, 1, *rest)).reshape(rest)


def read(entry: Entry, index: Index) -> dict[str, Array]:
    """The buffers of one layer, [B, S, K, ...]."""
    assert entry is not None
    return {name: pick(buffer, index) for name, buffer in entry.items()}
