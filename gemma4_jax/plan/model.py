"""What a model costs on any machine: parameters, FLOPs, memory, cache, and the limits of one kind of chip.

Everything follows from the configuration by arithmetic. Parameters and cache bytes are exact; FLOPs count
matrix products (2 per multiply-add) and attention, not norms, softmax and activation functions (under 1 %).
Times are limits: nothing lost, no communication, weights split evenly over chips. Not here: activations,
meshes and collectives (the other files of this package); measured times.

Letters: D d_model, L layers, N query heads, H head dim, F feed-forward, E experts, A active experts,
V vocabulary, P per-layer-input width, W window.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

from gemma4_jax.chips import CHIPS, Chip
from gemma4_jax.config import SLIDING, LayerConfig, ModelConfig
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.cache import COMPRESSIONS, Compression, bytes_per_token, head_bytes, slots

ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# float32 parameters and gradients, and AdamW's two moments (train/optim.py).
TRAINING_BYTES_PER_PARAMETER = 4 + 4 + 8
# The contexts people ask about; those beyond a model's own are left out.
_CONTEXTS = (4096, 8192, 32_768, 131_072, 262_144)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Number of parameters by part (spec 8). Norm scales of q and k count as attention, that of the
    per-layer branch as per_layer_inputs, all others and the layer scalars as norms."""

    token_table: int
    per_layer_table: int
    attention: int
    mlp: int
    experts: int
    router: int
    per_layer_inputs: int
    per_layer_context: int
    norms: int

    @property
    def total(self) -> int:
        """All of them; the output head is the token table."""
        return sum(dataclasses.astuple(self))

    @property
    def effective(self) -> int:
        """All but the two tables: what model cards of the small models call effective."""
        return self.total - self.token_table - self.per_layer_table


@functools.cache
def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of every part."""
    d, p, n = config.d_model, config.per_layer_input_width, config.num_layers
    moe = config.moe
    return Parameters(
        token_table=config.vocab_size * d,
        per_layer_table=config.per_layer_vocab_size * n * p,
        attention=sum(
            _attention_matrices(config, layer) + layer.head_dim * (2 if layer.owns_kv else 1)
            for layer in config.layers
        ),
        mlp=sum(3 * d * layer.d_ff for layer in config.layers),
        experts=n * 3 * moe.num_experts * d * moe.d_ff if moe else 0,
        router=n * (moe.num_experts * d + d + moe.num_experts) if moe else 0,
        per_layer_inputs=n * (2 * d * p + d) if p else 0,
        per_layer_context=d * n * p + p,
        norms=n * ((7 if moe else 4) * d + 1) + d,
    )


def active_parameters(config: ModelConfig) -> int:
    """Parameters that one token meets: all but the experts it is not sent to."""
    parameters = count_parameters(config)
    return parameters.total - parameters.experts + _active_experts(config, parameters)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one token. matrices: products with parameters; logits: with the tied token table.

    Rematerialisation does work again and is not counted: it lowers speed, not the work that is useful.
    """

    matrices: int
    attention: float
    logits: int

    @property
    def forward(self) -> float:
        """One pass."""
        return self.matrices + self.attention + self.logits

    @property
    def backward(self) -> float:
        """Gradients of both sides of every product."""
        return 2 * self.forward

    @property
    def training(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


@functools.cache
def sequence_flops(config: ModelConfig, tokens: int) -> Flops:
    """FLOPs per token of one causal pass over `tokens` tokens, averaged over them."""

    def keys(layer: LayerConfig) -> float:
        reach = min(config.window, tokens) if layer.kind == SLIDING else tokens
        return (reach * (reach + 1) / 2 + (tokens - reach) * reach) / tokens

    return _flops(config, {layer: keys(layer) for layer in config.layers})


@functools.cache
def decode_flops(config: ModelConfig, context: int) -> Flops:
    """FLOPs of one new token that is the last of `context`."""

    def keys(layer: LayerConfig) -> float:
        return float(min(config.window, context) if layer.kind == SLIDING else context)

    return _flops(config, {layer: keys(layer) for layer in config.layers})


def cache_bytes(
    config: ModelConfig,
    context: int,
    dtype: str = "bfloat16",
    compression: Compression = "value",
) -> int:
    """Bytes that decoding one sequence keeps once it has `context` tokens (spec 7)."""
    return sum(
        _layer_cache(config, layer, context, dtype, compression)
        for layer in config.layers
        if layer.owns_kv
    )


@dataclass(frozen=True, kw_only=True)
class DecodeLimit:
    """The fastest decoding can be. chips: fewest that hold weights and caches. bound: what limits it."""

    chips: int
    seconds_per_step: float
    tokens_per_second: float
    bound: str


def decode_limit(
    config: ModelConfig,
    chip: Chip,
    context: int,
    batch: int = 1,
    dtype: str = "bfloat16",
    compression: Compression = "value",
) -> DecodeLimit:
    """One step of `batch` sequences that have `context` tokens each: read everything once, or compute."""
    size, parameters = item_size(dtype), count_parameters(config)
    caches = batch * cache_bytes(config, context, dtype, compression)
    cache_reads = batch * _cache_reads(config, context, dtype, compression)
    chips = math.ceil((parameters.total * size + caches) / chip.memory)
    # Of the per-layer table a step reads `batch` rows; of the experts those that some row is sent to.
    read = parameters.total - parameters.per_layer_table - parameters.experts
    read += batch * config.num_layers * config.per_layer_input_width
    read += round(parameters.experts * _experts_met(config, batch))
    memory_time = (read * size + cache_reads) / (chips * chip.bandwidth)
    compute_time = batch * decode_flops(config, context).forward / (chips * chip.flops)
    seconds = max(memory_time, compute_time)
    return DecodeLimit(
        chips=chips,
        seconds_per_step=seconds,
        tokens_per_second=batch / seconds,
        bound="bandwidth" if memory_time >= compute_time else "compute",
    )


@dataclass(frozen=True, kw_only=True)
class TrainLimit:
    """The fastest full training can be. chips: fewest that hold its state, activations left out."""

    chips: int
    tokens_per_second_per_chip: float


def train_limit(config: ModelConfig, chip: Chip, tokens: int) -> TrainLimit:
    """Full-parameter training with AdamW on sequences of `tokens` tokens at the chip's bfloat16 peak."""
    state = TRAINING_BYTES_PER_PARAMETER * count_parameters(config).total
    return TrainLimit(
        chips=math.ceil(state / chip.memory),
        tokens_per_second_per_chip=chip.flops / sequence_flops(config, tokens).training,
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything above for one model, context, batch and dtype. All memory in bytes.

    cache_per_token: by compression, while every layer still grows. caches: by compression, then context.
    caches_int8: the smallest compression in 8 bits, by context.
    """

    config: ModelConfig
    context: int
    batch: int
    dtype: str
    parameters: Parameters
    active: int
    flops: Flops
    decode: Flops
    weights: int
    training: dict[str, int]
    cache_per_token: dict[Compression, int]
    caches: dict[Compression, dict[int, int]]
    caches_int8: dict[int, int]
    decode_limits: dict[str, DecodeLimit]
    train_limits: dict[str, TrainLimit]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the sums that are properties are included."""
        plain = dataclasses.asdict(self)
        plain["parameters"] |= {
            "total": self.parameters.total,
            "effective": self.parameters.effective,
        }
        for name in ("flops", "decode"):
            flops: Flops = getattr(self, name)
            plain[name]["forward"] = flops.forward
        plain["flops"] |= {"backward": self.flops.backward, "training": self.flops.training}
        return plain


def make_plan(
    config: ModelConfig, context: int | None = None, batch: int = 1, dtype: str = "bfloat16"
) -> Plan:
    """Plan a model. context: tokens of a training sequence, and at which decoding is judged; by default
    8192 or all the model has. dtype: of weights and cache when decoding; training state is float32.

    Raises UserError for a context or batch below 1 or a context beyond the model's.
    """
    context = min(8192, config.max_position) if context is None else context
    if not 1 <= context <= config.max_position:
        raise UserError(
            f"context must be from 1 to {config.max_position}, the model's own, got {context}"
        )
    if batch < 1:
        raise UserError(f"batch must be at least 1, got {batch}")
    if config.bidirectional == "all":
        raise UserError("plans are for decoders; this configuration is a two-sided encoder")
    parameters = count_parameters(config)
    shown = sorted({context, *(c for c in _CONTEXTS if c <= config.max_position)})
    return Plan(
        config=config,
        context=context,
        batch=batch,
        dtype=dtype,
        parameters=parameters,
        active=active_parameters(config),
        flops=sequence_flops(config, context),
        decode=decode_flops(config, context),
        weights=item_size(dtype) * parameters.total,
        training={
            "weights": 4 * parameters.total,
            "gradients": 4 * parameters.total,
            "optimizer": 8 * parameters.total,
            "total": TRAINING_BYTES_PER_PARAMETER * parameters.total,
        },
        cache_per_token={c: bytes_per_token(config, item_size(dtype), c) for c in COMPRESSIONS},
        caches={
            c: {tokens: cache_bytes(config, tokens, dtype, c) for tokens in shown}
            for c in COMPRESSIONS
        },
        caches_int8={tokens: cache_bytes(config, tokens, "int8", "value") for tokens in shown},
        decode_limits={
            name: decode_limit(config, chip, context, batch, dtype) for name, chip in CHIPS.items()
        },
        train_limits={name: train_limit(config, chip, context) for name, chip in CHIPS.items()},
    )


def item_size(dtype: str) -> int:
    """Bytes of one number; UserError for an unknown dtype."""
    if dtype not in ITEM_SIZES:
        raise unknown("dtype", dtype, ITEM_SIZES)
    return ITEM_SIZES[dtype]


def _flops(config: ModelConfig, keys: dict[LayerConfig, float]) -> Flops:
    """keys: how many of them one query of each layer sees."""
    d, n, p, moe = config.d_model, config.num_layers, config.per_layer_input_width, config.moe
    parameters = count_parameters(config)
    matrices = sum(_attention_matrices(config, layer) for layer in config.layers)
    matrices += parameters.mlp + _active_experts(config, parameters)
    matrices += n * moe.num_experts * d if moe else 0
    matrices += 3 * n * d * p  # gate and projection of the per-layer inputs, and their context part
    attention = sum(
        2 * 2 * config.num_heads * layer.head_dim * seen for layer, seen in keys.items()
    )
    return Flops(matrices=2 * matrices, attention=attention, logits=2 * parameters.token_table)


def _layer_cache(
    config: ModelConfig, layer: LayerConfig, context: int, dtype: str, compression: Compression
) -> int:
    size = 1 if dtype == "int8" else item_size(dtype)
    bytes_here = layer.num_kv_heads * head_bytes(layer, compression, size)
    return slots(layer, config, context) * bytes_here


def _cache_reads(config: ModelConfig, context: int, dtype: str, compression: Compression) -> int:
    """Bytes a step reads per sequence: a layer without K/V of its own reads those of another again."""
    sources = (config.layers[layer.kv_source] for layer in config.layers)
    return sum(_layer_cache(config, source, context, dtype, compression) for source in sources)


def _attention_matrices(config: ModelConfig, layer: LayerConfig) -> int:
    queries_and_output = 2 * config.d_model * config.num_heads * layer.head_dim
    if not layer.owns_kv:
        return queries_and_output
    kinds = 1 if layer.value_from_key else 2
    return queries_and_output + kinds * config.d_model * layer.num_kv_heads * layer.head_dim


def _active_experts(config: ModelConfig, parameters: Parameters) -> int:
    moe = config.moe
    return parameters.experts // moe.num_experts * moe.num_experts_per_token if moe else 0


def _experts_met(config: ModelConfig, batch: int) -> float:
    """Share of the experts that a batch of tokens needs, if the router has no favourites."""
    moe = config.moe
    if moe is None:
        return 0.0
    return 1 - (1 - moe.num_experts_per_token / moe.num_experts) ** batch
