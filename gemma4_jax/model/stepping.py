"""Running a segment over a cache: the same `Block`s as in training, their weights picked a layer at a time.

`nn.scan` hands every repeat of a segment its slice of all stacked weights, and a run slices that again. In
training these copies drown in the products; in decoding, which reads every weight once a token, they
cost more than the products do. Here the loops carry indices alone, and each layer takes its weights out
of the whole stack in one slice, small enough to be still in the processor's cache when it is used: 26
CPU-ms a token and not 40 (50e6 float32 parameters, XLA:CPU), and fewer operations to compile. Matrices laid
out for decoding (`apart.py`) are not taken out at all: 15 CPU-ms. Not for training: the gradient of such a
slice is an update of the whole stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4_jax.config import LayerConfig
from gemma4_jax.model import cache as caching
from gemma4_jax.model.block import Block, Carry, Context, Lent
from gemma4_jax.model.layout import Run, Segment
from gemma4_jax.model.weights import Apart, Stacked

# Tokens of a row in a pass up to which experts are read where they are: one, or a round of drafts (64 experts,
# 8 of them active, XLA:CPU: 1.6 to 2.3 times less CPU for 2 to 8 tokens of 1 and 8 rows; the same numbers).
_FEW = 8

# As a Block's carry, with the entries of all slots of the segment.
SegmentCarry = tuple[Array, tuple[caching.Entry, ...], Lent]


def step_segment(
    segment: Segment,
    make_block: Callable[[LayerConfig], Block],
    params: Mapping[str, Any],
    carry: SegmentCarry,
    context: Context,
    lent: Lent,
    per_layer: Float[Array, "L B T P"] | None,
) -> SegmentCarry:
    """The segment's layers, one after the other; what `PatternBlock` scanned over the repeats computes.

    make_block: an unbound Block for a layer. params: of this segment, stacked. per_layer: of all layers of
    the model.
    """

    def layer(
        run: Run, slot: int, before: int, repeat: Array | int, carry: Carry, place: Any
    ) -> Carry:
        block = make_block(run.layer)
        weights = _picked(params[f"slot_{slot}"], (repeat, place), carry[0].shape[1], block.dtype)
        u = None
        if per_layer is not None:
            number = segment.start + repeat * segment.period + before + place
            u = jax.lax.dynamic_index_in_dim(per_layer, number, keepdims=False)
        after, _ = block.apply({"params": weights}, carry, context, lent, repeat, u, place)
        return after

    def one_repeat(carry: SegmentCarry, repeat: Array | int) -> SegmentCarry:
        x, entries, lending = carry
        updated: list[caching.Entry] = []
        before = 0
        for slot, run in enumerate(segment.pattern):

            def one_layer(
                carry: Carry, place: Any, run: Run = run, slot: int = slot, before: int = before
            ) -> Carry:
                return layer(run, slot, before, repeat, carry, place)

            x, entry, lending = _loop(one_layer, (x, entries[slot], lending), run.length)
            updated.append(entry)
            before += run.length
        return x, tuple(updated), lending

    return _loop(one_repeat, carry, segment.repeats)


def _picked(params: Any, index: caching.Index, tokens: int, dtype: Any) -> Any:
    """One layer's weights; of its experts, where few tokens need few of them, where they are."""

    def pick(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, Apart):
            return leaf.of(*index)
        experts = path[0].key == "moe" and len(path) == 2 and leaf.ndim == 5  # no adapted ones
        if experts and tokens <= _FEW and leaf.dtype == dtype:
            return Stacked(leaf, tuple(jnp.asarray(i, jnp.int32) for i in index))
        return caching.pick(leaf, index)

    return jax.tree_util.tree_map_with_path(
        pick, params, is_leaf=lambda node: isinstance(node, Apart)
    )


def _loop(body: Callable[[Any, Any], Any], carry: Any, times: int) -> Any:
    """carry after body(carry, 0), body(carry, 1), ...; a static 0 where there is but one."""
    if times == 1:
        return body(carry, 0)
    return jax.lax.fori_loop(0, times, lambda i, c: body(c, i), carry)
