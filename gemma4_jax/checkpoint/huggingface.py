"""The one table between Hugging Face's tensors and our parameter tree, read in both directions.

Every stored tensor is a matrix, a stack of matrices or a vector. A leaf of ours holds the same
numbers, as they are or with each matrix transposed (Hugging Face keeps linear maps as [out, in], we
as [in, out]), reshaped (heads are axes of their own), and stacked over the layers of a segment. One
stored tensor, `gate_up_proj`, fills two leaves. Names and shapes: spec 9.1. Not here: any reading
(`reading.py`) or writing (`writing.py`).

Letters: D d_model, F feed-forward, N query heads, K key/value heads, H head dim, V vocabulary,
L layers, E experts, P per-layer-input width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemma4_jax.config import LayerConfig, ModelConfig
from gemma4_jax.model.layout import layer_address


@dataclass(frozen=True)
class Part:
    """Where rows of a stored tensor live in our tree.

    path: keys from the root. index: place of the layer on a stacked leaf's leading axes, () if the
    leaf is not stacked.
    rows: of each stored matrix, all if None. transposed: our matrices are [columns, rows].
    """

    path: tuple[str, ...]
    index: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None
    transposed: bool = False

    @property
    def spans(self) -> tuple[slice, ...]:
        """`index` as slices, so that what they take from an array is always a view."""
        return tuple(slice(i, i + 1) for i in self.index)


@dataclass(frozen=True)
class TextTensor:
    """A tensor of a Hugging Face text model: name after the prefix, shape, where it goes."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def matrices(self) -> tuple[int, int, int]:
        """The shape as (stack, rows, columns): [R, C] is (1, R, C), a vector [C] is (1, 1, C)."""
        *stack, rows, columns = (1, 1, *self.shape)
        return math.prod(stack), rows, columns


def text_tensors(config: ModelConfig) -> Iterator[TextTensor]:
    """Every tensor of a text model, in the order they are written. Names lack the prefix."""
    v, d, width = config.vocab_size, config.d_model, config.per_layer_input_width
    yield _plain("embed_tokens.weight", (v, d), "embed/table")
    if width:
        per_layer = config.num_layers * width
        yield _plain(
            "embed_tokens_per_layer.weight",
            (config.per_layer_vocab_size, per_layer),
            "per_layer_embed/table",
        )
        yield _linear(
            "per_layer_model_projection.weight", (per_layer, d), "per_layer_embed/projection"
        )
        yield _plain("per_layer_projection_norm.weight", (width,), "per_layer_embed/norm/scale")
    for layer in config.layers:
        yield from layer_tensors(config, layer)
    yield _plain("norm.weight", (d,), "final_norm/scale")


def layer_tensors(config: ModelConfig, layer: LayerConfig) -> Iterator[TextTensor]:
    """Those of one layer of `config`."""
    d, n, k = config.d_model, config.num_heads, layer.num_kv_heads
    h, f, width = layer.head_dim, layer.d_ff, config.per_layer_input_width
    at = layer_address(config, layer.index)
    name = f"layers.{layer.index}."
    here = f"segment_{at.segment}/slot_{at.slot}/"

    def plain(ours: str, theirs: str, *shape: int) -> TextTensor:
        return _plain(name + theirs, shape, here + ours, at.index)

    def linear(ours: str, theirs: str, rows: int, columns: int) -> TextTensor:
        return _linear(name + theirs, (rows, columns), here + ours, at.index)

    yield plain("pre_attention_norm/scale", "input_layernorm.weight", d)
    yield linear("attention/q_proj", "self_attn.q_proj.weight", n * h, d)
    yield plain("attention/q_norm/scale", "self_attn.q_norm.weight", h)
    if layer.owns_kv:
        yield linear("attention/k_proj", "self_attn.k_proj.weight", k * h, d)
        yield plain("attention/k_norm/scale", "self_attn.k_norm.weight", h)
        if not layer.value_from_key:
            yield linear("attention/v_proj", "self_attn.v_proj.weight", k * h, d)
    yield linear("attention/o_proj", "self_attn.o_proj.weight", d, n * h)
    yield plain("post_attention_norm/scale", "post_attention_layernorm.weight", d)
    yield plain("pre_ffw_norm/scale", "pre_feedforward_layernorm.weight", d)
    yield linear("mlp/gate_proj", "mlp.gate_proj.weight", f, d)
    yield linear("mlp/up_proj", "mlp.up_proj.weight", f, d)
    yield linear("mlp/down_proj", "mlp.down_proj.weight", d, f)
    yield plain("post_ffw_norm/scale", "post_feedforward_layernorm.weight", d)
    if config.moe:
        e, f = config.moe.num_experts, config.moe.d_ff
        yield plain("post_mlp_norm/scale", "post_feedforward_layernorm_1.weight", d)
        yield plain("pre_moe_norm/scale", "pre_feedforward_layernorm_2.weight", d)
        yield linear("moe/router_proj", "router.proj.weight", e, d)
        yield plain("moe/router_scale", "router.scale", d)
        yield plain("moe/expert_scale", "router.per_expert_scale", e)
        gate = _part(here + "moe/gate_proj", at.index, transposed=True, rows=(0, f))
        up = _part(here + "moe/up_proj", at.index, transposed=True, rows=(f, 2 * f))
        yield TextTensor(name + "experts.gate_up_proj", (e, 2 * f, d), (gate, up))
        down = _part(here + "moe/down_proj", at.index, transposed=True)
        yield TextTensor(name + "experts.down_proj", (e, d, f), (down,))
        yield plain("post_moe_norm/scale", "post_feedforward_layernorm_2.weight", d)
    if width:
        yield linear("per_layer_input/gate_proj", "per_layer_input_gate.weight", width, d)
        yield linear("per_layer_input/out_proj", "per_layer_projection.weight", d, width)
        yield plain("per_layer_input/norm/scale", "post_per_layer_input_norm.weight", d)
    yield plain("layer_scalar", "layer_scalar", 1)


def _part(path: str, index: tuple[int, ...], **how: Any) -> Part:
    return Part(tuple(path.split("/")), index, **how)


def _plain(name: str, shape: tuple[int, ...], path: str, index: tuple[int, ...] = ()) -> TextTensor:
    return TextTensor(name, shape, (_part(path, index),))


def _linear(
    name: str, shape: tuple[int, int], path: str, index: tuple[int, ...] = ()
) -> TextTensor:
    return TextTensor(name, shape, (_part(path, index, transposed=True),))


def unused_kv(config: ModelConfig) -> frozenset[str]:
    """K/V tensors that Google's E2B and E4B files carry for layers that own none; never read."""
    kinds = ("k_proj", "v_proj", "k_norm")
    return frozenset(
        f"layers.{layer.index}.self_attn.{kind}.weight"
        for layer in config.layers
        if not layer.owns_kv
        for kind in kinds
    )


def prefix(config: ModelConfig) -> str:
    """What stands before the text model's names in a file that is written for `config`."""
    return "model." if config.hf_type == "gemma4_text" else "model.language_model."
