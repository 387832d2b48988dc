"""A drafter: a small stack without K/V of its own that guesses what its target writes next (spec 10).

From the newest token and the target's last hidden state it makes logits and the hidden state of the next guess.
All guesses of a round are made at the newest token's position, from the target's K/V of the positions before
it; nothing is written to a cache. Layers are `Block`s that borrow, as a target's own shared layers are.
Not here: whether a guess is right (`sample/speculation.py`), how many to make.

Letters: B batch, D width of the target, A width of the drafter, V vocabulary, n ids that are scored.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4_jax.collectives import over_rows
from gemma4_jax.config import FULL, SLIDING, DrafterConfig, ModelConfig
from gemma4_jax.model.attention import KeyValues
from gemma4_jax.model.block import Block, Context, Lent, cached_keys
from gemma4_jax.model.cache import Cache
from gemma4_jax.model.layers import Embedder, RMSNorm, drawn, fan_in, is_declared, param
from gemma4_jax.model.layout import layer_address
from gemma4_jax.model.parts import Parts
from gemma4_jax.model.rope import Rotation, rotation
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.model.visibility import TokenFacts
from gemma4_jax.model.weights import project
from gemma4_jax.sharding import DECODING_RULES

Params = dict[str, Any]


class Drafter(nn.Module):
    """The drafter's module; dtype and parts as of `Transformer`.

    Over a mesh its parameters are whole on every device, and rows, heads and positions are cut as its target's.
    """

    config: DrafterConfig
    dtype: Any = jnp.float32
    parts: Parts = Parts()

    def setup(self) -> None:
        """Declare the parts."""
        stack, width = self.config.stack, self.config.target_width
        # The query stands behind the newest key, and sees W + 1 keys where a target's own would see W.
        seeing = dataclasses.replace(stack, window=stack.window + 2)
        self.embed = Embedder(stack, self.dtype, self.parts.unembed)
        self.blocks = tuple(
            Block(seeing, layer, self.dtype, self.parts, name=f"layer_{layer.index}")
            for layer in self.config.layers
        )
        self.final_norm = RMSNorm(stack.norm_eps)
        inner = (2 * width, stack.d_model)
        self.pre_projection = param(
            self, "pre_projection", inner, (None, "embed"), fan_in(inner[0])
        )
        outer = (stack.d_model, width)
        self.post_projection = param(
            self, "post_projection", outer, ("embed", None), fan_in(outer[0])
        )
        if self.config.centroids is not None:
            shape = (self.config.centroids.count, stack.d_model)
            self.centroids = param(self, "centroids", shape, (None, "embed"), fan_in(shape[1]))
            self.token_ordering = self.param(
                "token_ordering",
                lambda key: jnp.arange(stack.vocab_size, dtype=jnp.int32).reshape(shape[0], -1),
            )

    def __call__(
        self,
        embedding: Float[Array, "B 1 D"],
        hidden: Float[Array, "B 1 D"],
        length: Int[Array, " B"],
        lent: Lent,
    ) -> tuple[Float[Array, "B A"], Float[Array, "B 1 D"]]:
        """What the next token is scored by, and the hidden state that goes with it.

        embedding: of the newest token, from the target's table, scaled. hidden: of the token before it. length:
        tokens before the newest one. lent: the target's K/V by layer kind.
        """
        stack, positions = self.config.stack, length[:, None]
        rotations: dict[str, Rotation] = {
            SLIDING: rotation(positions, stack.head_dim, stack.rope_sliding),
            FULL: rotation(positions, stack.global_head_dim, stack.rope_full),
        }
        context = Context(TokenFacts(positions), rotations, length)
        both = jnp.concatenate([embedding, hidden.astype(embedding.dtype)], axis=-1)
        x = project(both, self.pre_projection, "btd,da->bta", self.dtype)
        for block in self.blocks:
            (x, _, _), _ = block((x, None, {}), context, lent, 0, None, 0)
        y = self.final_norm(x)
        return y[:, 0], project(y, self.post_projection, "bta,ad->btd", self.dtype)

    def scored(self, y: Float[Array, "B A"]) -> tuple[Int[Array, "B n"], Float[Array, "B n"]]:
        """Ids that are scored, and their logits; all ids, or those of the nearest centroids."""
        if self.config.centroids is None:
            logits = self.embed.decode(y[:, None])[:, 0]
            return jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape), logits
        near = jnp.einsum(
            "ba,ca->bc",
            y,
            self.centroids.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        active = self.config.centroids.active
        clusters = over_rows(lambda near: jax.lax.top_k(near, active)[1], near)
        ids = self.token_ordering[clusters].reshape(y.shape[0], -1)
        rows = self.embed.table[ids].astype(self.dtype)
        return ids, jnp.einsum("ba,bna->bn", y, rows, preferred_element_type=jnp.float32)

    def logits(self, y: Float[Array, "B A"]) -> Float[Array, "B V"]:
        """Of every id; those that are not scored get one less than the least of their row's that are."""
        ids, values = self.scored(y)
        rest = jnp.min(values, axis=-1, keepdims=True) - 1
        every = jnp.broadcast_to(rest, (y.shape[0], self.config.stack.vocab_size))
        return every.at[jnp.arange(y.shape[0])[:, None], ids].set(values)

    def likeliest(self, y: Float[Array, "B A"]) -> Int[Array, " B"]:
        """The id with the largest logit of each row."""

        def best(ids: Array, values: Array) -> Array:
            at = jnp.argmax(values, axis=-1)[:, None]
            return jnp.take_along_axis(ids, at, axis=1)[:, 0].astype(jnp.int32)

        found: Array = over_rows(best, *self.scored(y))
        return found


@dataclasses.dataclass(frozen=True)
class DraftModel:
    """A drafter ready to use. params: nested dict of arrays, layers not stacked."""

    module: Drafter
    params: Params


def lend(config: ModelConfig, params: Params, cache: Cache, dtype: Any) -> Lent:
    """What a target lends its drafter: the last K/V of each kind, of the positions that the cache holds.

    dtype: for what is kept in 8 bits.
    """
    lent: Lent = {}
    last = {layer.kind: layer for layer in config.layers if layer.owns_kv}
    for kind, layer in last.items():
        at = layer_address(config, layer.index)
        attention = params[f"segment_{at.segment}"][f"slot_{at.slot}"]["attention"]
        scale = attention["k_norm"]["scale"][at.index]
        entry = cache.entries[at.segment][at.slot]
        lent[kind] = cached_keys(layer, entry, at.index, scale, cache.length, cache.table, dtype)
    return lent


def draft(
    drafter: Drafter,
    params: Params,
    target: Transformer,
    target_params: Params,
    cache: Cache,
    token: Int[Array, " B"],
    hidden: Float[Array, "B D"],
    steps: Int[Array, ""],
    room: int,
) -> Int[Array, "B room"]:
    """`steps` (at most `room`, which is static) guesses at what follows `token`; zeros behind them.

    cache: the target's, up to the token before. hidden: the target's after its final norm, of that token.
    Rings need a slack of 1 for what the first guess of a full window sees. Over a mesh the cache is read as the
    target's own parts do.
    """
    drafter = drafter.clone(parts=target.parts)
    lent = lend(target.config, target_params, cache, target.dtype)
    embedder = Embedder(target.config, target.dtype)
    table = {"params": target_params["embed"]}

    def step(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tokens, last, hidden = carry
        embedding: Any = embedder.apply(table, last[:, None], DECODING_RULES, method="encode")
        made: Any = drafter.apply({"params": params}, embedding, hidden, cache.length, lent)
        y, hidden = made
        token: Any = drafter.apply({"params": params}, y, method="likeliest")
        return tokens.at[:, number].set(token), token, hidden

    start = jnp.zeros((token.shape[0], room), jnp.int32), token, hidden[:, None]
    tokens: Array = jax.lax.fori_loop(0, jnp.minimum(steps, room), step, start)[0]
    return tokens


@functools.cache
def _declared(config: DrafterConfig) -> Any:
    def init() -> Any:
        stack, hidden = config.stack, jnp.zeros((1, 1, config.target_width))
        lent: Lent = {}
        for layer in config.layers:
            kv = jnp.zeros((1, 1, layer.num_kv_heads, layer.head_dim))
            lent[layer.kind] = KeyValues(kv, TokenFacts(jnp.zeros((1, 1), jnp.int32)), kv)

        def once(module: Drafter) -> None:
            module(hidden, hidden, jnp.zeros((1,), jnp.int32), lent)
            module.scored(jnp.zeros((1, stack.d_model)))

        return nn.init(once, Drafter(config))(jax.random.key(0))

    return jax.eval_shape(init)["params"]


def init_params(config: DrafterConfig, key: Array, dtype: Any = jnp.float32) -> Params:
    """Fresh parameters, which guess nothing right; a plain nested dict."""
    declared = dict(_declared(config))
    ordering = declared.pop("token_ordering", None)
    params = drawn(declared, key, dtype)
    if ordering is not None:
        count = jnp.arange(config.stack.vocab_size, dtype=jnp.int32)
        params["token_ordering"] = count.reshape(ordering.shape)
    return params


def abstract_params(config: DrafterConfig, dtype: Any = jnp.float32) -> Params:
    """Shapes of the parameters as jax.ShapeDtypeStruct; `token_ordering` alone is int32."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        if is_declared(leaf):
            return jax.ShapeDtypeStruct(leaf.value.shape, dtype)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    shapes: Params = jax.tree.map(shape, _declared(config), is_leaf=is_declared)
    return shapes
