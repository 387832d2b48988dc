"""The text model: embed, scanned segments, final norm, logits; with and without a cache.

`Transformer.__call__` is training and scoring. `extend` appends tokens to a cache (decoding, speculative
verification, prefill that needs every hidden state). `prefill` + `borrow` split a pass where layers stop
owning K/V: E2B and E4B spend 20 of 35 and 18 of 42 layers only on the last token of a prompt.

Letters: B batch, T tokens, D d_model, L layers, P per-layer width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4_jax.config import FULL, SLIDING, LayerConfig, ModelConfig
from gemma4_jax.model.apart import is_taken_apart
from gemma4_jax.model.block import (
    Block,
    Context,
    Lent,
    PatternBlock,
    Remat,
    blank_lending,
    cached_keys,
)
from gemma4_jax.model.cache import Cache
from gemma4_jax.model.layers import (
    Embedder,
    PerLayerEmbedder,
    RMSNorm,
    drawn,
    is_declared,
)
from gemma4_jax.model.layout import Segment, layer_address, segments
from gemma4_jax.model.parts import Parts
from gemma4_jax.model.rope import rotation
from gemma4_jax.model.stepping import step_segment
from gemma4_jax.model.visibility import EMPTY, TokenFacts, media_blocks
from gemma4_jax.sharding import DECODING_RULES, RULES, Rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Media:
    """Soft tokens of a pass, placed: they replace embeddings, unscaled, where kinds > 0."""

    embeddings: Array  # [B, T, D]; read only where kinds > 0
    kinds: Array  # int32 [B, T]: 0 text, 1 image, 2 video, 3 audio


def segment_positions(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that restart at 0 with every run of equal segment ids."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    first = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    starts = jax.lax.cummax(jnp.where(first, index, 0), axis=1)
    return index - starts


class Transformer(nn.Module):
    """A Gemma 4 text model over `params`.

    dtype: of the residual stream and matrix products; norms, softmax, router and logits are float32.
    remat: what the backward pass recomputes. parts: how it is computed on these devices.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: Remat = "none"
    parts: Parts = Parts()

    def setup(self) -> None:
        """Declare the parts."""
        self.embed = Embedder(self.config, self.dtype, self.parts.unembed)
        if self.config.per_layer_input_width:
            self.per_layer_embed = PerLayerEmbedder(self.config, self.dtype)
        self.stacks = tuple(
            _scanned(segment)(
                self.config,
                segment,
                self.dtype,
                self.remat,
                self.parts,
                name=f"segment_{number}",
            )
            for number, segment in enumerate(segments(self.config))
        )
        self.final_norm = RMSNorm(self.config.norm_eps)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        media: Media | None = None,
        branches: Int[Array, "B T"] | None = None,
        noise: Float[Array, "B T D"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, of every token.

        positions: for the rotary embedding only; by default they restart in every segment. segment_ids:
        documents packed in a row are numbered from 1, padding is 0; tokens see their own segment only.
        Masks go by order in the row, not by position. branches: several continuations of a segment's tokens
        of branch 0, numbered from 1, each with positions that go on from there; a token sees branch 0 and its
        own, and masks then go by position, which must be given. noise: added to the scaled
        embeddings (NEFTune).
        """
        if branches is not None and positions is None:
            raise ValueError("branches need positions: they say where each goes on")
        if positions is None:
            if segment_ids is None:
                positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
            else:
                positions = segment_positions(segment_ids)
        order = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        index = jnp.broadcast_to(order if branches is None else positions, tokens.shape)
        block = None if media is None else media_blocks(media.kinds)
        facts = TokenFacts(index, segment_ids, block, branches)
        positions = jnp.broadcast_to(positions, tokens.shape)
        tokens, positions, facts, media, noise = self.parts.arrange(
            (tokens, positions, facts, media, noise)
        )
        context = Context(facts, self._rotations(positions))
        x, per_layer = self._embed(tokens, media, noise)
        x, _ = self._run(x, per_layer, context, None, {}, 0, self.config.num_layers)
        return self.parts.restore(self.final_norm(x))

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """float32 logits of hidden states, after the soft cap."""
        return self.embed.decode(hidden)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        count: Int[Array, " B"],
        cache: Cache,
        media: Media | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Append the first count[b] of each row's tokens to the cache, through all layers.

        Returns hidden states after the final norm (undefined beyond count) and the grown cache. A media
        block must lie within one call.
        """
        context, x, per_layer = self._continue(tokens, count, cache, media)
        x, entries = self._run(x, per_layer, context, cache, {}, 0, self.config.num_layers)
        return self.final_norm(x), _grown(cache, entries, count)

    def prefill(
        self,
        tokens: Int[Array, "B T"],
        count: Int[Array, " B"],
        cache: Cache,
        media: Media | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """`extend` through the layers that own K/V only; returns the raw stream after them."""
        context, x, per_layer = self._continue(tokens, count, cache, media)
        x, entries = self._run(x, per_layer, context, cache, {}, 0, self.config.first_shared_layer)
        return x, _grown(cache, entries, count)

    def borrow(
        self, x: Float[Array, "B 1 D"], tokens: Int[Array, "B 1"], cache: Cache
    ) -> Float[Array, "B 1 D"]:
        """Finish each row's last token after `prefill`: the layers without K/V, and the final norm.

        x: stream after the owning layers; tokens: the ids of those tokens (text, not soft tokens).
        """
        positions = cache.length[:, None] - 1
        context = Context(
            TokenFacts(positions), self._rotations(positions), cache.length, table=cache.table
        )
        _, per_layer = self._embed(tokens, None, rules=DECODING_RULES)
        first = self.config.first_shared_layer
        lent = self._lent_from(self.config.layers, cache, cache.entries, cache.length)
        x, _ = self._run(x, per_layer, context, None, lent, first, self.config.num_layers)
        return self.final_norm(x)

    def _embed(
        self,
        tokens: Array,
        media: Media | None,
        noise: Array | None = None,
        rules: Rules = RULES,
    ) -> tuple[Array, Array | None]:
        """Stream entering layer 0, and per-layer inputs [L, B, T, P] if the model has them."""
        ids = tokens
        for placeholder in self.config.token_ids.placeholders:
            ids = jnp.where(ids == placeholder, self.config.token_ids.pad, ids)
        if media is not None:
            ids = jnp.where(media.kinds > 0, self.config.token_ids.pad, ids)
        x = self.embed.encode(ids, rules)
        if media is not None:
            x = jnp.where((media.kinds > 0)[..., None], media.embeddings.astype(x.dtype), x)
        if noise is not None:
            x = x + noise.astype(x.dtype)
        if not self.config.per_layer_input_width:
            return x, None
        per_layer = self.per_layer_embed(ids, x, rules)
        self.sow("intermediates", "per_layer_inputs", per_layer)
        return x, per_layer

    def _rotations(self, positions: Array) -> dict[str, Any]:
        c = self.config
        return {
            SLIDING: rotation(positions, c.head_dim, c.rope_sliding),
            FULL: rotation(positions, c.global_head_dim, c.rope_full),
        }

    def _continue(
        self, tokens: Array, count: Array, cache: Cache, media: Media | None
    ) -> tuple[Context, Array, Array | None]:
        offset = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        positions = cache.length[:, None] + offset
        index = jnp.where(offset < count[:, None], positions, EMPTY)
        block = None if media is None else media_blocks(media.kinds)
        context = Context(
            TokenFacts(index, block=block),
            self._rotations(positions),
            cache.length,
            count,
            cache.table,
        )
        return context, *self._embed(tokens, media, rules=DECODING_RULES)

    def _run(
        self,
        x: Array,
        per_layer: Array | None,
        context: Context,
        cache: Cache | None,
        lent: Lent,
        start: int,
        stop: int,
    ) -> tuple[Array, Any]:
        """Segments of the layers [start, stop); returns the stream and the cache entries."""
        entries = [] if cache is None else list(cache.entries)
        lent = dict(lent)
        # What a layer attended to is in the cache afterwards, and read from there; all but the part of a ring
        # that a chunk has overwritten. Carried through the loops it would be copied at each layer of its kind.
        carried = (SLIDING,) if x.shape[1] > 1 else ()
        for number, (segment, stack) in enumerate(
            zip(segments(self.config), self.stacks, strict=True)
        ):
            if not start <= segment.start < stop:
                continue
            mine = (None,) * len(segment.pattern) if cache is None else cache.entries[number]
            lending: Lent = {
                layer.kind: blank_lending(
                    layer,
                    mine[layer_address(self.config, layer.index).slot],
                    context,
                    x.shape[1],
                    x.dtype,
                )
                for layer in self.config.layers[segment.start : segment.stop]
                if layer.lends_kv
                and segment.stop < stop
                and (cache is None or layer.kind in carried)
            }
            weights = stack.variables.get("params", {})
            if cache is None and start == 0 and not is_taken_apart(weights):
                inputs = None
                if per_layer is not None:
                    inputs = per_layer[segment.start : segment.stop]
                    inputs = inputs.reshape(segment.repeats, segment.period, *inputs.shape[1:])
                repeat = jnp.arange(segment.repeats)
                (x, mine, lending), _ = stack((x, mine, lending), context, lent, inputs, repeat)
            else:
                x, mine, lending = step_segment(
                    segment, self._block, weights, (x, mine, lending), context, lent, per_layer
                )
            if cache is not None:
                entries[number] = mine
                if segment.stop < stop:
                    layers = self.config.layers[segment.start : segment.stop]
                    length = cache.length + context.count
                    lending = self._lent_from(layers, cache, entries, length) | lending
            lent |= lending
        return x, tuple(entries)

    def _block(self, layer: LayerConfig) -> Block:
        """An unbound Block, to be given its weights."""
        return Block(self.config, layer, self.dtype, self.parts, parent=None)

    def _lent_from(
        self,
        layers: Sequence[LayerConfig],
        cache: Cache,
        entries: Sequence[Any],
        length: Int[Array, " B"],
    ) -> Lent:
        """K/V of those of the layers that lend, read back from a cache that now holds `length` tokens."""
        lent: Lent = {}
        for layer in layers:
            if layer.lends_kv:
                at = layer_address(self.config, layer.index)
                slot = self.stacks[at.segment].variables["params"][f"slot_{at.slot}"]
                key_scale = slot["attention"]["k_norm"]["scale"][at.index]
                entry = entries[at.segment][at.slot]
                lent[layer.kind] = cached_keys(
                    layer, entry, at.index, key_scale, length, cache.table, self.dtype
                )
        return lent


def _grown(cache: Cache, entries: Any, count: Int[Array, " B"]) -> Cache:
    return dataclasses.replace(cache, entries=entries, length=cache.length + count)


def _scanned(segment: Segment) -> Any:
    """PatternBlock scanned over the repeats of a segment."""
    return nn.scan(
        PatternBlock,
        variable_axes={"params": 0, "intermediates": 0, "routing": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, 0, 0),
        length=segment.repeats,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


@functools.cache
def _declared(config: ModelConfig) -> Any:
    """The parameter tree with a `Declared` of a ShapeDtypeStruct at every leaf."""

    def init() -> Any:  # nothing outside: under the mesh of absent devices nothing can be computed
        return Transformer(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    return jax.eval_shape(init)["params"]


def init_params(config: ModelConfig, key: Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Fresh parameters, drawn as declared where each is created; a plain nested dict."""
    return drawn(_declared(config), key, dtype)


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Shapes of the parameters as jax.ShapeDtypeStruct, without allocating anything."""
    params: dict[str, Any] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.value.shape, dtype),
        _declared(config),
        is_leaf=is_declared,
    )
    return params


def logical_axes(config: ModelConfig) -> dict[str, Any]:
    """Logical axis names of every parameter: the same tree as `abstract_params`, tuples as leaves."""
    axes: dict[str, Any] = jax.tree.map(
        lambda leaf: leaf.names, _declared(config), is_leaf=is_declared
    )
    return axes


def num_params(config: ModelConfig) -> int:
    """Number of parameters, layer scalars included."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
