"""One layer, and the pattern of runs of layers that a segment repeats (spec 4.2, 4.3).

The same modules run training, prefill and decoding: without a cache a layer attends to its own tokens;
with one, to what the cache holds and to the new tokens. K/V that later layers borrow are returned as
values, never left in a cache, so gradients and rematerialisation see them.

Letters: B batch, T new tokens, D d_model, N query heads, K key/value heads, H head dim, P per-layer width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4_jax.collectives import cut_tokens
from gemma4_jax.config import SLIDING, LayerConfig, ModelConfig
from gemma4_jax.model import cache as caching
from gemma4_jax.model.attention import KeyValues, rotated_slice
from gemma4_jax.model.cache_precision import SCALE, restored, with_scales
from gemma4_jax.model.held import Held
from gemma4_jax.model.layers import MLP, RMSNorm, constant, fan_in, gated_gelu, param, rms_normalize
from gemma4_jax.model.layout import Run, Segment
from gemma4_jax.model.moe import MoE
from gemma4_jax.model.parts import Parts
from gemma4_jax.model.rope import Rotation, rotate
from gemma4_jax.model.visibility import TokenFacts
from gemma4_jax.model.weights import PRODUCT, project

Lent = dict[str, KeyValues | Held]  # K/V of the lending layers, by layer kind

# What the backward pass recomputes: nothing; everything but each layer's input; or everything but the
# results of matrix products with parameters.
Remat = Literal["none", "full", "dots"]
REMAT_POLICIES: tuple[Remat, ...] = ("none", "full", "dots")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer of one pass shares."""

    facts: TokenFacts  # of the new tokens
    rotations: dict[str, Rotation]  # by layer kind, for the new tokens' positions
    length: Array | None = (
        None  # int32 [B]: tokens the cache has already seen; None without a cache
    )
    count: Array | None = None  # int32 [B]: how many of the T tokens are real; None without a cache
    table: Array | None = None  # of a cache of pages


class Attention(nn.Module):
    """Projections, norms and rotation around `attend`."""

    config: ModelConfig
    layer: LayerConfig
    dtype: Any
    parts: Parts

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        entry: caching.Entry,
        index: caching.Index,
        lent: Lent,
    ) -> tuple[Float[Array, "B T D"], caching.Entry, KeyValues | Held]:
        """Returns the output, the updated cache entry, and the K/V attended to."""
        layer, heads = self.layer, (self.config.num_heads, self.layer.head_dim)
        q = self._project(x, "q_proj", *heads)
        q = rotate(self._head_norm("q_norm")(q), context.rotations[layer.kind])
        kv: KeyValues | Held
        if layer.owns_kv:
            raw_key = self._project(x, "k_proj", layer.num_kv_heads, layer.head_dim)
            k_norm = self._head_norm("k_norm")
            key = rotate(k_norm(raw_key), context.rotations[layer.kind])
            raw_value = (
                raw_key
                if layer.value_from_key
                else self._project(x, "v_proj", layer.num_kv_heads, layer.head_dim)
            )
            value = rms_normalize(raw_value, self.config.norm_eps).astype(self.dtype)
            self.sow("intermediates", "key", key)
            self.sow("intermediates", "value", value)
            key_scale = nn.meta.unbox(k_norm.variables["params"]["scale"])
            if entry is not None:
                entry, kv = self._remember(key, value, key_scale, context, entry, index)
            elif layer.value_from_key:
                rotated = rotated_slice(value, key_scale, context.rotations[layer.kind])
                kv = KeyValues(value, context.facts, key, rotated, key_scale.astype(jnp.float32))
            else:
                kv = KeyValues(value, context.facts, key)
        else:
            kv = lent[layer.kind]
        window = self.config.window if layer.kind == SLIDING else None
        over_cache = context.length is not None
        attend_to: Any = self.parts.attend_held if over_cache else self.parts.attend
        out = attend_to(self.config, q, kv, context.facts, window)
        o_proj = param(
            self,
            "o_proj",
            (*heads, x.shape[-1]),
            ("heads", "head_dim", "embed"),
            fan_in(heads[0] * heads[1]),
        )
        return project(out, o_proj, "btnh,nhd->btd", self.dtype), entry, kv

    def _project(self, x: Array, name: str, heads: int, head_dim: int) -> Array:
        axes = ("embed", "heads" if name == "q_proj" else "kv_heads", "head_dim")
        weight = param(self, name, (x.shape[-1], heads, head_dim), axes, fan_in(x.shape[-1]))
        return project(x, weight, "btd,dnh->btnh", self.dtype)

    def _head_norm(self, name: str) -> RMSNorm:
        # Scores are q . k with scale 1.0: two scales of H^(-1/4) start them at unit variance.
        scale = self.layer.head_dim**-0.25
        return RMSNorm(self.config.norm_eps, axis="head_dim", initial_scale=scale, name=name)

    def _remember(
        self,
        key: Array,
        value: Array,
        key_scale: Array,
        context: Context,
        entry: dict[str, Array],
        index: caching.Index,
    ) -> tuple[caching.Entry, KeyValues | Held]:
        """Write the new K/V; return the entry and what the new tokens attend to."""
        assert context.length is not None and context.count is not None
        ring, new = self.layer.kind == SLIDING, value.shape[1]
        size = caching.size(entry)
        fresh = {"key": key, "value": value}
        if "rotated" in entry:
            by = context.rotations[self.layer.kind]
            fresh["rotated"] = rotated_slice(value, key_scale, by)
        # Over more devices than it has heads, a cache has one for each.
        copies = entry["value"].shape[4] // value.shape[2]
        if copies > 1:
            fresh = {n: jnp.repeat(leaf, copies, axis=2) for n, leaf in fresh.items()}
        before = None
        if ring and new > 1:
            before = restored(caching.read(entry, index), self.dtype)
        table = None if ring else context.table
        written = self.parts.remember(
            entry,
            with_scales(fresh, entry),
            index,
            context.length,
            context.count,
            self.layer,
            table,
        )
        if before is not None:
            # A chunk overwrites ring slots that its own first tokens still see: attend to the ring as it
            # was, followed by the chunk.
            held = caching.held_positions(context.length, size, ring)
            facts = _join(TokenFacts(held), context.facts)
            joined = {
                n: jnp.concatenate([before[n], fresh[n].astype(before[n].dtype)], 1) for n in before
            }
            return written, KeyValues(joined["value"], facts, joined["key"])
        length = context.length + context.count
        return written, cached_keys(
            self.layer, written, index, key_scale, length, table, self.dtype
        )


def cached_keys(
    layer: LayerConfig,
    entry: caching.Entry,
    index: caching.Index,
    key_scale: Array,
    length: Array,
    table: Array | None,
    dtype: Any,
) -> KeyValues | Held:
    """K/V as the cache holds them after `length` tokens: a ring's, or where a full layer's are.

    dtype: for what is kept in 8 bits.
    """
    if layer.kind != SLIDING:
        return Held(entry, index, key_scale, length, layer, table)
    ring = restored(caching.read(entry, index), dtype)
    facts = TokenFacts(caching.held_positions(length, ring["value"].shape[1], True))
    return KeyValues(ring["value"], facts, ring["key"])


def _join(old: TokenFacts, new: TokenFacts) -> TokenFacts:
    """Facts of cached keys followed by those of the new tokens; cached ones are in no media block."""
    index = jnp.concatenate([old.index, new.index], axis=1)
    if new.block is None:
        return TokenFacts(index)
    outside = jnp.full(old.index.shape, -1, new.block.dtype)
    return TokenFacts(index, block=jnp.concatenate([outside, new.block], axis=1))


# Stream, the cache entry of this layer's slot, and K/V being lent. Each owning layer overwrites its kind's
# loan, so that after a segment it is the last owner's. A carry that is only overwritten costs the backward
# pass no memory.
Carry = tuple[Array, caching.Entry, Lent]


class Block(nn.Module):
    """One layer: attention, MLP (and experts beside it), per-layer input, layer scalar."""

    config: ModelConfig
    layer: LayerConfig
    dtype: Any
    parts: Parts

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        context: Context,
        lent: Lent,
        repeat: Array | int,
        per_layer_input: Float[Array, "B T P"] | None,
        place: Array | int,
    ) -> tuple[Carry, None]:
        """lent: K/V of earlier segments. repeat, place: where this layer's buffers are in its entry."""
        x, entry, lending = carry
        x = cut_tokens(x)
        attention = Attention(self.config, self.layer, self.dtype, self.parts, name="attention")
        branch, entry, kv = attention(
            self._norm("pre_attention_norm", x), context, entry, (repeat, place), lent
        )
        x = x + self._post_norm("post_attention_norm", branch)

        mlp = MLP(self.layer.d_ff, self.dtype, name="mlp")
        branch = mlp(self._norm("pre_ffw_norm", x))
        if self.config.moe is not None:
            experts = MoE(
                self.config,
                self.dtype,
                self.parts.grouped_matmul,
                self.parts.routed_experts,
                name="moe",
            )
            segment = context.facts.segment
            real = None if segment is None else segment > 0
            routed = experts(x, self._norm("pre_moe_norm", x), real)
            branch = self._norm("post_mlp_norm", branch) + self._norm("post_moe_norm", routed)
        x = x + self._post_norm("post_ffw_norm", branch)

        if per_layer_input is not None:
            mix = PerLayerInput(self.config, self.dtype, name="per_layer_input")
            x = x + mix(x, per_layer_input)
        # Hugging Face keeps the scalar as a buffer: it scales the whole stream and is never trained.
        scalar = jax.lax.stop_gradient(param(self, "layer_scalar", (), (), constant(1.0)))
        x = x * scalar.astype(self.dtype)
        self.sow("intermediates", "layer_out", x)
        if self.layer.kind in lending:
            lending = {**lending, self.layer.kind: kv}
        return (x, entry, lending), None

    def _norm(self, name: str, x: Array) -> Array:
        return RMSNorm(self.config.norm_eps, name=name)(x)

    def _post_norm(self, name: str, x: Array) -> Array:
        # Branches are normed before they join the stream: starting them at (2 L)^(-1/2) keeps the stream
        # at the embeddings' scale however deep the model is.
        scale = (2 * self.config.num_layers) ** -0.5
        return RMSNorm(self.config.norm_eps, initial_scale=scale, name=name)(x)


class PerLayerInput(nn.Module):
    """norm(out(gelu(gate x) * u)): the branch that mixes in a layer's own embedding u (spec 4.2)."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], u: Float[Array, "B T P"]) -> Float[Array, "B T D"]:
        """The branch's output, to be added to the stream."""
        shape = (x.shape[-1], u.shape[-1])
        gate = param(self, "gate_proj", shape, ("embed", "per_layer_input"), fan_in(shape[0]))
        out = param(self, "out_proj", shape[::-1], ("per_layer_input", "embed"), fan_in(shape[1]))
        mixed = gated_gelu(project(x, gate, "btd,dp->btp", self.dtype), u)
        branch = project(mixed, out, "btp,pd->btd", self.dtype)
        scale = (2 * self.config.num_layers) ** -0.5
        return RMSNorm(self.config.norm_eps, initial_scale=scale, name="norm")(branch)


class PatternBlock(nn.Module):
    """The runs of one repeat of a segment; the body of a segment's scan (over a cache: `stepping.py`)."""

    config: ModelConfig
    segment: Segment
    dtype: Any
    remat: Remat
    parts: Parts

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], tuple[caching.Entry, ...], Lent],
        context: Context,
        lent: Lent,
        per_layer_inputs: Float[Array, "p B T P"] | None,
        repeat: Array,
    ) -> tuple[tuple[Array, tuple[caching.Entry, ...], Lent], None]:
        """carry: as a Block's, with the entries of all slots."""
        x, entries, lending = carry
        # Static zeros spare what happens once a dynamic slice.
        repeat_index = 0 if self.segment.repeats == 1 else repeat
        updated: list[caching.Entry] = []
        before = 0
        for slot, run in enumerate(self.segment.pattern):
            inputs = None
            if per_layer_inputs is not None:
                inputs = per_layer_inputs[before : before + run.length]
            before += run.length
            layers = self._scanned(run)(
                self.config, run.layer, self.dtype, self.parts, name=f"slot_{slot}"
            )
            places = jnp.arange(run.length)
            (x, entry, lending), _ = layers(
                (x, entries[slot], lending), context, lent, repeat_index, inputs, places
            )
            updated.append(entry)
        return (x, tuple(updated), lending), None

    def _scanned(self, run: Run) -> Any:
        """Block, rematerialised as asked, scanned over the layers of a run."""
        target: Any = Block
        if self.remat != "none":
            policy = None
            if self.remat == "dots":
                policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
            # Inside a loop nothing can be merged with the forward pass anyway.
            once = self.segment.repeats * run.length == 1
            target = nn.remat(target, policy=policy, prevent_cse=once)
        return nn.scan(
            target,
            variable_axes={"params": 0, "intermediates": 0, "routing": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0, 0),
            length=run.length,
            metadata_params={nn.PARTITION_NAME: "run"},
        )


def blank_lending(
    layer: LayerConfig, entry: caching.Entry, context: Context, new: int, dtype: Any
) -> KeyValues:
    """Zeros in the shape of the K/V that `layer` attends to in a pass over `new` tokens.

    entry: of a sliding layer that gets several tokens at once; None without a cache.
    """
    batch = context.facts.index.shape[0]
    heads, head_dim = layer.num_kv_heads, layer.head_dim
    if entry is None:
        zeros = jnp.zeros((batch, new, heads, head_dim), dtype)
        if not layer.value_from_key:
            return KeyValues(zeros, context.facts, zeros)
        turning = zeros[..., : 2 * layer.rope.rotated_pairs(head_dim)]
        return KeyValues(zeros, context.facts, zeros, turning, jnp.zeros((head_dim,), jnp.float32))
    # A ring as it was, and the new tokens behind it.
    shape = (batch, caching.size(entry) + new, entry["value"].shape[4], head_dim)
    ring = {
        name: jnp.zeros(shape, dtype if name + SCALE in entry else buffer.dtype)
        for name, buffer in entry.items()
        if not name.endswith(SCALE)
    }
    index = jnp.zeros(shape[:2], jnp.int32)
    block = None if context.facts.block is None else index
    return KeyValues(ring["value"], TokenFacts(index, block=block), ring["key"])
