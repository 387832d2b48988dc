"""Bytes that a step needs on one device, by part.

Weights, gradients and optimiser state are exact: shapes, and the table of rules in `sharding.py`. What a step
adds while it runs is estimated, with numbers of arrays such that the sums are XLA's own for small models
(docs/plan.md has the ratios). Not here: fragmentation, XLA's own programs, media.

Letters: M tokens of a device, D d_model, N query heads, K key/value heads, H head dim, F width of an MLP,
W window, V vocabulary, E experts, A active experts, P devices along an axis.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gemma4_jax.config import FULL, SLIDING, LayerConfig, ModelConfig
from gemma4_jax.logprobs import LEAST_ROWS_ON_ACCELERATORS
from gemma4_jax.model.adapters import LoRA, matrix_at
from gemma4_jax.model.attention import DENSE_SCORES, QUERY_CHUNK
from gemma4_jax.model.cache import entry_widths, slots
from gemma4_jax.parallel.expert_dispatch import CAPACITY_FACTOR
from gemma4_jax.parallel.sequence_attention import TILE
from gemma4_jax.plan import tree
from gemma4_jax.plan.tree import Leaf
from gemma4_jax.plan.workload import Optimizer, Workload
from gemma4_jax.sharding import AXES

# Beside moments: how many updates there were, and at which rate the schedule is; int32 each.
_COUNTERS = 2 * 4
# optax.scale_by_factored_rms: axes shorter than this are not factored.
_LEAST_FACTORED = 128


def bytes_by_part(workload: Workload) -> dict[str, int]:
    """What one device needs in a step.

    weights, optimizer, cache: always there. gradients, activations: while a gradient is taken. With them one of
    layer, loss and lookup (embeddings looked up, or their gradients brought back): each ends before the next
    begins. update: in the place of all of these, while parameters are updated. Decoding has layer and loss.
    """
    w = workload
    parts = dict.fromkeys(
        (
            *("weights", "optimizer", "gradients", "cache"),
            *("activations", "layer", "loss", "lookup", "update"),
        ),
        0,
    )
    parts["weights"] = weight_bytes(w)
    parts["lookup"] = _lookup(w)
    if not w.trains:
        parts["cache"] = _cache(w)
        parts["layer"] = _token_layer(w)
        parts["loss"] = 4 * w.rows_here * w.config.vocab_size // w.mesh["tensor"]
        return parts
    state = _state(w.config, w.sizes, w.lora, w.optimizer)
    parts["optimizer"], parts["gradients"] = state.optimizer, 4 * state.numbers
    if w.accumulation > 1:  # beside the sum so far, that of the micro-batch
        parts["gradients"] += state.numbers * (4 if w.lora else w.held)
    # A table that is not trained is the same all through the step, and XLA makes its copy once.
    parts["activations"] = _kept(w) + (0 if w.trains_all else _table(w))
    parts["layer"] = _attention(w) + _layer(w) + _layer_weights(w)
    parts["loss"] = _loss(w)
    # The new value of the largest array in float32 before it is rounded, and random bits to round it with.
    parts["update"] = 4 * state.numbers + state.largest * (8 if w.stochastic_rounding else 4)
    return parts


def peak(parts: Mapping[str, int]) -> int:
    """The largest sum of what is there at one time."""
    running = parts["activations"] + max(parts["layer"], parts["loss"], parts["lookup"])
    always = parts["weights"] + parts["optimizer"] + parts["cache"]
    return always + max(parts["gradients"] + running, parts["update"])


def trained(config: ModelConfig, lora: LoRA | None) -> tuple[Leaf, ...]:
    """What has gradients and moments."""
    return tree.parameters(config) if lora is None else tree.adapters(config, lora)


def weight_bytes(workload: Workload) -> int:
    """Of the parameters on one device, adapters included."""
    w = workload
    return _weights(w.config, w.sizes, w.lora, w.base, w.held, not w.trains)


@functools.lru_cache(maxsize=4096)
def _weights(
    config: ModelConfig,
    sizes: tuple[int, ...],
    lora: LoRA | None,
    base: str,
    held: int,
    decoding: bool,
) -> int:
    if base == "none":
        total = _held(tree.parameters(config), sizes, held, decoding)
    else:
        packed = tree.packed(config, base)
        total = sum(_held([leaf], sizes, each or held, decoding) for leaf, each in packed)
    if lora is not None:
        total += _held(tree.adapters(config, lora), sizes, 4)
    return total


class _State(NamedTuple):
    """Of what is trained, on one device: numbers, those of the largest array, and bytes of moments."""

    numbers: int
    largest: int
    optimizer: int


@functools.lru_cache(maxsize=4096)
def _state(
    config: ModelConfig, sizes: tuple[int, ...], lora: LoRA | None, optimizer: Optimizer
) -> _State:
    leaves = trained(config, lora)
    numbers = [-(-leaf.size // tree.parts(leaf, sizes)) for leaf in leaves]
    return _State(sum(numbers), max(numbers), _optimizer(leaves, sizes, optimizer))


def _held(leaves: Iterable[Leaf], sizes: tuple[int, ...], each: int, decoding: bool = False) -> int:
    return sum(-(-leaf.size * each // tree.parts(leaf, sizes, decoding)) for leaf in leaves)


def _optimizer(leaves: Iterable[Leaf], sizes: tuple[int, ...], name: Optimizer) -> int:
    """float32 moments, cut as their parameter is; factored ones are whole everywhere (train/placement.py)."""
    if name == "adamw":
        return 2 * _held(leaves, sizes, 4) + _COUNTERS
    if name == "muon":
        # One momentum for projections, routers' excepted, and AdamW's two for all else.
        matrices: list[Leaf] = []
        others: list[Leaf] = []
        for leaf in leaves:
            last = leaf.path[-1]
            mine = last.endswith("_proj") and last != "router_proj"
            (matrices if mine else others).append(leaf)
        return _held(matrices, sizes, 4) + 2 * _held(others, sizes, 4) + _COUNTERS
    total = _COUNTERS
    for leaf in leaves:
        *_, second, largest = 0, 0, *sorted(leaf.shape)
        if len(leaf.shape) >= 2 and second >= _LEAST_FACTORED:
            total += 4 * (leaf.size // largest + leaf.size // second + 1)
        else:
            total += _held([leaf], sizes, 4) + 2 * 4
    return total


def gathered(leaf: Leaf, sizes: tuple[int, ...]) -> int:
    """Numbers of an array on one device while it is used: over `fsdp` it is whole, and over `expert`
    except the experts themselves."""
    kept = {"tensor"} | ({"expert"} if leaf.path[-2] == "moe" and "experts" in leaf.axes else set())
    cut = tree.cuts(leaf.shape, leaf.axes, sizes)
    mesh = dict(zip(AXES, sizes, strict=True))
    return leaf.size // math.prod(mesh[axis] for axis in cut if axis in kept)


@functools.lru_cache(maxsize=4096)
def largest_layer(config: ModelConfig, sizes: tuple[int, ...]) -> int:
    """Numbers of the matrices of one layer on one device while it runs."""
    by_slot: dict[tuple[str, ...], int] = {}
    for leaf in tree.parameters(config):
        if leaf.layers and matrix_at(leaf.path, leaf.shape) is not None:
            slot = leaf.path[:2]
            by_slot[slot] = by_slot.get(slot, 0) + gathered(leaf, sizes) // leaf.layers
    return max(by_slot.values())


def _layer_weights(w: Workload) -> int:
    """Of the largest layer: gathered twice (itself and the next one) in the type of products, or converted to
    it, or unpacked; its gradient before it is split."""
    largest = largest_layer(w.config, w.sizes)
    need = 4 * largest if w.trains_all else 0
    if w.base != "none":
        return need + largest * (4 + w.compute)
    if w.gathered_over > 1:
        return need + 2 * largest * min(w.held, w.compute)
    return need + (largest * w.compute if w.held != w.compute else 0)


def kept_by_layer(w: Workload, layer: LayerConfig) -> int:
    """Bytes of one layer that wait for the backward pass, for each token of a device.

    full: the layer's input, and per-layer inputs with their gradients. dots: results of products with
    parameters too, those of experts excepted. none: what JAX keeps; counted in its own programs.
    """
    c, tensor = w.config, w.mesh["tensor"]
    full = w.compute * (c.d_model + 3 * c.per_layer_input_width)
    if w.remat == "full":
        return full
    kv = kv_heads_here(w, layer) * layer.head_dim if layer.owns_kv else 0
    heads, width = c.num_heads * layer.head_dim // tensor, layer.d_ff // tensor
    if w.remat == "dots":
        dots = heads + kv * (1 if layer.value_from_key else 2) + 2 * width + 2 * c.d_model
        dots += c.per_layer_input_width + c.d_model if c.per_layer_input_width else 0
        return full + w.compute * dots
    float32 = 12 * c.d_model + 3 * heads + 5 * kv
    short = 3 * width + 2 * c.d_model + 2 * heads + 4 * kv
    if c.per_layer_input_width:
        float32 += 3 * c.d_model
        short += 3 * c.per_layer_input_width
    if c.moe is not None:
        active = c.moe.num_experts_per_token
        float32 += (13 + active) * c.d_model
        short += 3 * c.d_model + active * (2 * c.d_model + 3 * c.moe.d_ff // tensor)
    scores = 0
    if w.stores_scores(layer):
        if layer.kind == SLIDING and w.tokens > 2 * c.window:
            scores = 2 * c.window
        elif w.tokens * w.tokens <= DENSE_SCORES:
            scores = w.tokens
    return full + 4 * float32 + w.compute * short + scores * (4 + w.compute) * c.num_heads // tensor


def _kept(w: Workload) -> int:
    by_layer = sum(count * kept_by_layer(w, layer) for layer, count in tree.kinds(w.config))
    kept = w.tokens_here * by_layer
    if w.config.moe is not None and w.remat == "none" and w.held != w.compute:
        # `project_groups` converts experts before their product, which keeps what it multiplies with.
        experts = (leaf for leaf in tree.parameters(w.config) if leaf.axes[2:3] == ("experts",))
        kept += w.compute * sum(gathered(leaf, w.sizes) for leaf in experts)
    return kept


def _attention(w: Workload) -> int:
    """Scores of one layer, or of one chunk of queries, four times in float32: with their gradients. None where
    the splash kernel runs. Where rows are cut, one pair of tiles; and sums, gradients and shards that visit."""
    config, parts = w.config, w.mesh["seq"]
    heads = config.num_heads // w.mesh["tensor"]
    if parts > 1:
        return max(_cut_attention(w, layer) for layer, _ in tree.kinds(config))
    most = 0
    for layer, _ in tree.kinds(config):
        if not w.stores_scores(layer):
            continue
        window = config.window if layer.kind == SLIDING else None
        if window and w.tokens > 2 * window:
            scores = w.tokens * 2 * window
        elif w.tokens * w.tokens <= DENSE_SCORES:
            scores = w.tokens * w.tokens
        else:
            scores = QUERY_CHUNK * w.tokens
        most = max(most, scores * heads)
    return 4 * 4 * w.rows_here * most


def travelling_width(layer: LayerConfig) -> int:
    """Numbers a head and token that travel: K and V, or V and the rotated slice of K."""
    rotated = 2 * layer.rope.rotated_pairs(layer.head_dim)
    return layer.head_dim + (rotated if layer.value_from_key else layer.head_dim)


def kv_heads_here(w: Workload, layer: LayerConfig) -> int:
    """K/V heads of one device; at least one."""
    return max(1, layer.num_kv_heads // w.mesh["tensor"])


def _cut_attention(w: Workload, layer: LayerConfig) -> int:
    heads = w.config.num_heads // w.mesh["tensor"]
    width, keys = travelling_width(layer), kv_heads_here(w, layer)
    # Queries, gradient of the output in what is computed with; sum, and gradient of queries, in float32.
    queries = heads * ((width + layer.head_dim) * w.compute + (width + layer.head_dim) * 4)
    visiting = 3 if layer.kind == FULL else 1
    shards = keys * width * visiting * (w.compute + 4)
    tile = 4 * 4 * w.rows_here * heads * min(TILE, w.tokens // (2 * w.mesh["seq"])) ** 2
    return w.tokens_here * (queries + shards) + tile


def layer_numbers(w: Workload) -> int:
    """Numbers that the widest layer computes, forward and backward."""
    config, tensor = w.config, w.mesh["tensor"]
    heads = config.num_heads * max(layer.head_dim for layer, _ in tree.kinds(config)) // tensor
    width = max(layer.d_ff for layer, _ in tree.kinds(config)) // tensor
    numbers = w.tokens_here * (10 * config.d_model + 8 * heads + 8 * width)
    if config.moe is not None:
        routed = w.tokens_here * config.moe.num_experts_per_token
        if w.mesh["expert"] > 1:  # lanes have room for more than an even share
            routed = round(CAPACITY_FACTOR * routed)
        # A routed row comes and goes, forward and backward; gate, up and their product, and the gradients.
        numbers += routed * (4 * config.d_model + 6 * config.moe.d_ff // tensor)
    return numbers


def _layer(w: Workload) -> int:
    """Half of it is float32 whatever products are in."""
    return layer_numbers(w) * (4 + w.compute) // 2


def _loss(w: Workload) -> int:
    """A chunk of logits three times in float32, the token table in the type of products where it is not held in
    it or is split, and its gradient in float32 where it is trained."""
    vocab = w.config.vocab_size // w.mesh["tensor"]
    chunk = 3 * LEAST_ROWS_ON_ACCELERATORS * vocab * 4
    if not w.trains_all:
        return chunk
    return chunk + _table(w) + 4 * vocab * w.config.d_model


def _table(w: Workload) -> int:
    """A copy of the token table as products want it."""
    if w.held == w.compute and w.gathered_over == 1:
        return 0
    return w.config.vocab_size // w.mesh["tensor"] * w.config.d_model * w.compute


def _lookup(w: Workload) -> int:
    """What `collectives.look_up` makes, in the type of products.

    Columns of the tokens' rows, before and after they are exchanged. Where the table is cut along its rows, as
    the per-layer one is: rows on their way around the devices that share it, twice, and those that one adds.
    """
    c = w.config
    per_layer = c.num_layers * c.per_layer_input_width * (3 if w.gathered_over > 1 else 1)
    return w.tokens_here * (2 * c.d_model + per_layer) * w.compute


def _cache(w: Workload) -> int:
    """Rows are cut as a batch is, heads over `tensor` as far as there are any, positions of full layers over
    `seq`."""
    numbers = 0
    for layer in w.config.layers:
        if layer.owns_kv:
            parts = 1 if layer.kind == SLIDING else w.mesh["seq"]
            held = -(-slots(layer, w.config, w.tokens) // parts)
            width = sum(entry_widths(layer, w.compression).values())
            numbers += held * kv_heads_here(w, layer) * width
    return w.rows_here * numbers * w.held


def _token_layer(w: Workload) -> int:
    """One token of every row through one layer, its scores, and gathered weights."""
    seen = w.tokens // w.mesh["seq"]
    scores = 2 * 4 * seen * w.config.num_heads // w.mesh["tensor"]
    gathers = 2 * largest_layer(w.config, w.sizes) * w.held if w.gathered_over > 1 else 0
    return _layer(w) + w.rows_here * scores + gathers
