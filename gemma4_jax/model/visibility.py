"""Which token may attend to which: one rule for training, prefill and decoding (spec 5).

Everything is said by four facts about each token: its index (order in the row, or absolute position when
decoding), its segment (packed documents do not see each other), its media block (image and video tokens
of one block see each other on sliding layers), its branch (answers to one prompt that stands in the row once
see the prompt and themselves). `visible` turns them into a mask for any set of queries and keys; nothing else
in the repository builds attention masks.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Index of a key slot that holds nothing (unwritten cache, padding): later than every query.
EMPTY = 2**30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenFacts:
    """What attention needs to know about a run of tokens."""

    index: Array  # int32 [B or 1, T]; EMPTY for a key that must never be seen
    segment: Array | None = None  # int32 [B, T]; None: one segment per row
    block: Array | None = None  # int32 [B, T]; -1 outside media blocks; None: no media
    # int32 [B, T]; 0 what all branches share; None: one. With branches, `index` is the position within the
    # segment: where a branch goes on after another, order in the row is not distance.
    branch: Array | None = None

    def __getitem__(self, where: tuple[slice, ...]) -> TokenFacts:
        """The same facts about part of the tokens."""
        return jax.tree.map(lambda leaf: leaf[where], self)


def media_blocks(kinds: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Number the maximal runs of image (1) and video (2) tokens from 0 in each row; -1 elsewhere.

    kinds: 0 text, 1 image, 2 video, 3 audio. Audio stays causal.
    """
    inside = (kinds == 1) | (kinds == 2)
    before = jnp.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(inside, jnp.cumsum(inside & ~before, axis=1) - 1, -1)


def visible(
    query: TokenFacts,
    key: TokenFacts,
    *,
    window: int | None = None,
    bidirectional: Literal["vision", "all"] | None = None,
) -> Bool[Array, "*B T S"]:
    """True where a query token may attend to a key token; facts are [B, T], or [T] of a part of one row.

    window: a sliding layer's W (the token itself and the W - 1 before it); None for a full layer.
    bidirectional "vision": tokens of one media block see each other on sliding layers, without a bound to
    the right (Hugging Face's rule; google-deepmind/gemma also asks key < query + W, which differs only for
    blocks longer than W). "all": encoder use, two-sided, sliding layers to |distance| <= W // 2 + 1.
    """
    q, k = query.index[..., :, None], key.index[..., None, :]
    if bidirectional == "all":
        allowed = k < EMPTY
        if window is not None:
            allowed &= jnp.abs(q - k) <= window // 2 + 1
    else:
        allowed = k <= q
        if window is not None:
            if bidirectional == "vision" and query.block is not None and key.block is not None:
                mine = query.block[..., :, None]
                allowed |= (mine == key.block[..., None, :]) & (mine >= 0) & (k < EMPTY)
            allowed &= k > q - window
    if query.segment is not None and key.segment is not None:
        allowed &= query.segment[..., :, None] == key.segment[..., None, :]
    if query.branch is not None and key.branch is not None:
        theirs = key.branch[..., None, :]
        allowed &= (theirs == 0) | (query.branch[..., :, None] == theirs)
    return allowed
