"""What the devices of a mesh send each other in a step: by cause, axis and operation.

Follows what `collectives.py`, `logprobs.py` and `parallel/` write down, and where nothing is written down what
XLA makes of sharded matrices (docs/plan.md: compared with compiled steps). Bytes are those that one device
sends, which are those that it receives: of an all-gather or a reduce-scatter of V bytes (P - 1) / P of V, of
an all-reduce twice that, of an all-to-all (P - 1) / P of what a device holds, of a permutation all of it. Left
out: a few numbers a step or a chunk of the loss, and integers. Not here: how fast (`network.py`).

Letters: M tokens of a device, D d_model, P devices along an axis, W window, A active experts, C rows of a lane.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gemma4_jax.config import SLIDING, LayerConfig, ModelConfig
from gemma4_jax.model.adapters import LoRA, matrix_at
from gemma4_jax.parallel.expert_dispatch import CAPACITY_FACTOR
from gemma4_jax.parallel.expert_exchange import lane_rows
from gemma4_jax.parallel.sequence_exchange import full_layer_exchange
from gemma4_jax.plan import tree
from gemma4_jax.plan.memory import gathered, kv_heads_here, trained, travelling_width
from gemma4_jax.plan.workload import Workload
from gemma4_jax.sharding import AXES

Operation = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute", "ring"]
# Causes whose exchange runs beside products: XLA starts a layer's gathers early, and the ring is written so.
BESIDE_PRODUCTS = ("weights", "gradients", "ring")


Axes = tuple[str, ...]
# Bytes of a number of a packed matrix, scales of nf4 included.
PACKED_BYTES = {"int8": 1.0, "nf4": 0.5625}


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange in one step. axes: of the mesh, over all of which it goes. sent: bytes of one device
    in the whole step; count: how many of them."""

    cause: str
    operation: Operation
    axes: tuple[str, ...]
    sent: float
    count: int

    @property
    def hidden(self) -> bool:
        """Whether it can run beside products."""
        return self.cause in BESIDE_PRODUCTS


def exchanges(workload: Workload, *, ragged: bool = True) -> list[Exchange]:
    """All of a step. ragged: experts' rows travel as on TPU and GPU; else whole lanes, as on CPU."""
    w = workload
    found = [*_weights(w), *_lookups(w), *_tensor(w)]
    if w.trains:
        found += [*_gradients(w), *_loss(w)]
        if w.mesh["seq"] > 1:
            found += _sequence(w)
    elif w.mesh["seq"] > 1:
        found += _held_positions(w)
    if w.mesh["expert"] > 1:
        found += _experts(w, ragged)
    return [exchange for exchange in found if exchange.sent]


def by_axes(found: list[Exchange]) -> dict[tuple[str, ...], float]:
    """Bytes that a device sends in a step, by the axes it sends them over."""
    total: dict[tuple[str, ...], float] = {}
    for exchange in found:
        total[exchange.axes] = total.get(exchange.axes, 0) + exchange.sent
    return total


def passes(workload: Workload) -> int:
    """How often products with a layer's matrices run forward in a step, for one micro-batch."""
    return 2 if workload.trains and workload.remat == "full" else 1


def attention_passes(workload: Workload) -> int:
    """The same of attention and of experts, whose results the policy "dots" does not keep."""
    return 2 if workload.trains and workload.remat != "none" else 1


def sequence_bytes(workload: Workload, layer: LayerConfig, itemsize: int) -> tuple[str, float, int]:
    """(how, bytes, times) that one forward pass of one layer sends of keys and values over `seq`."""
    w, parts = workload, workload.mesh["seq"]
    chunk, heads = w.tokens // (2 * parts), kv_heads_here(w, layer)
    width = travelling_width(layer)
    left = min(w.config.window - 1, w.tokens - 1) if layer.kind == SLIDING else w.tokens - 1
    if left < (parts - 1) * chunk:
        chunks = -(-left // chunk)
        return "halo", 2.0 * left * w.rows_here * heads * width * itemsize, 2 * 2 * chunks
    shard = float(w.tokens_here * heads * width * itemsize)
    way = full_layer_exchange(w.tokens_here, parts, heads, width, w.compute)
    return way, (parts - 1) * shard, 2 * (parts - 1) if way == "ring" else 2


def _named(w: Workload, names: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """Those of the axes that have more than one device, and how many devices they have together."""
    axes = tuple(name for name in names if w.mesh[name] > 1)
    return axes, math.prod(w.mesh[name] for name in axes)


Kind = Literal["plain", "output", "experts"]


@functools.lru_cache(maxsize=4096)
def _gathered_numbers(config: ModelConfig, sizes: tuple[int, ...]) -> dict[tuple[Axes, Kind], int]:
    """Numbers of all layers' matrices as they are on a device when they run, by the axes they are gathered
    over and their kind: o_proj, experts', and all others."""
    total: dict[tuple[Axes, Kind], int] = {}
    for leaf in tree.parameters(config):
        if not leaf.layers or matrix_at(leaf.path, leaf.shape) is None:
            continue
        kind: Kind = "output" if leaf.path[-1] == "o_proj" else "plain"
        kind = "experts" if leaf.path[-2] == "moe" else kind
        cut = kind == "experts" and _at(sizes, "expert") > 1
        over = ("fsdp",) if cut else ("fsdp", "expert")
        total[over, kind] = total.get((over, kind), 0) + gathered(leaf, sizes)
    return total


def _gathers(w: Workload, kind: Kind) -> int:
    """How often a matrix is gathered for one micro-batch: forward, where the backward pass computes again, and
    for the gradient of inputs. The last two are one where the matrix is as it is held in both, which o_proj,
    whose axes are joined for the product, is not."""
    if not w.trains:
        return 1
    if kind == "plain" and w.held == w.compute:
        return 2
    return (attention_passes(w) if kind == "experts" else passes(w)) + 1


def _at(sizes: tuple[int, ...], axis: str) -> int:
    return sizes[AXES.index(axis)]


def _weights(w: Workload) -> Iterator[Exchange]:
    """Every layer's matrices, in the type of products."""
    each = min(w.held, w.compute) if w.base == "none" else PACKED_BYTES[w.base]
    cutting = ("fsdp", "expert") if w.trains else ("fsdp",)
    for (over, kind), numbers in _gathered_numbers(w.config, w.sizes).items():
        axes, parts = _named(w, tuple(axis for axis in over if axis in cutting))
        if parts > 1:
            times = w.accumulation * _gathers(w, kind)
            sent = times * numbers * each * (parts - 1) / parts
            yield Exchange("weights", "all-gather", axes, sent, times * w.config.num_layers)
    # The token table, for logits; the backward pass finds it kept.
    axes, parts = _named(w, cutting)
    if parts > 1:
        table = w.config.vocab_size // w.mesh["tensor"] * w.config.d_model
        sent = w.accumulation * table * min(w.held, w.compute) * (parts - 1) / parts
        yield Exchange("table for the loss", "all-gather", axes, sent, w.accumulation)


def _gradients(w: Workload) -> Iterator[Exchange]:
    """float32. Over axes that cut a parameter they are scattered, over all others that cut tokens summed.
    The table's, from the loss, is summed whole over all of them, in the type of products."""
    for (over, along), numbers in _gradient_numbers(w.config, w.sizes, w.lora).items():
        scattered, parts = _named(w, over)
        summed, devices = _named(w, along)
        times = w.accumulation * w.config.num_layers
        if parts > 1:
            sent = w.accumulation * 4 * numbers * (parts - 1) / parts
            yield Exchange("gradients", "reduce-scatter", scattered, sent, times)
        if devices > 1:
            sent = w.accumulation * 4 * numbers / parts * 2 * (devices - 1) / devices
            yield Exchange("gradients", "all-reduce", summed, sent, times)
    axes, parts = _named(w, ("data", "fsdp", "expert", "seq"))
    if w.trains_all and parts > 1:
        table = w.config.vocab_size // w.mesh["tensor"] * w.config.d_model
        sent = w.accumulation * table * w.compute * 2 * (parts - 1) / parts
        yield Exchange("table's gradient", "all-reduce", axes, sent, w.accumulation)


@functools.lru_cache(maxsize=4096)
def _gradient_numbers(
    config: ModelConfig, sizes: tuple[int, ...], lora: LoRA | None
) -> dict[tuple[Axes, Axes], int]:
    """Numbers of gradients on a device before they are scattered, by the axes they are (scattered, summed)
    over."""
    total: dict[tuple[Axes, Axes], int] = {}
    for leaf in trained(config, lora):
        if leaf.path[-1] == "table":  # the lookup scatters on its own
            cut: Axes = ("fsdp", "expert", "tensor")
            scattered: Axes = ()
        else:
            cut = tuple(tree.cuts(leaf.shape, leaf.axes, sizes))
            own = "moe" in leaf.path and "experts" in leaf.axes
            scattered = tuple(a for a in cut if a == "fsdp" or (a == "expert" and not own))
        summed = tuple(a for a in ("data", "fsdp", "expert", "seq") if a not in cut)
        whole = leaf.size // tree.parts(leaf, sizes)
        whole *= math.prod(_at(sizes, axis) for axis in scattered)
        total[scattered, summed] = total.get((scattered, summed), 0) + whole
    return total


def _lookups(w: Workload) -> Iterator[Exchange]:
    """Columns of the tokens' rows to where the tokens are, and gradients back (float32 as the table is)."""
    axes, parts = _named(w, ("fsdp", "expert") if w.trains else ("fsdp",))
    numbers = w.tokens_here * w.config.d_model
    there = float(min(w.held, w.compute))
    back = float(w.held) if w.trains_all else 0.0
    each = w.accumulation * (there + back)
    times = w.accumulation * (2 if w.trains_all else 1)
    if parts > 1:
        sent = numbers * each * (parts - 1) / parts
        yield Exchange("lookup", "all-to-all", axes, sent, times)
        per_layer = w.tokens_here * w.config.num_layers * w.config.per_layer_input_width
        # Each slice has whole rows: what a token gets is summed on its way around all peers.
        sent = per_layer * (parts - 1) * each
        yield Exchange("lookup", "permute", axes, sent, times * (parts - 1))
    tensor = w.mesh["tensor"]
    if tensor > 1:
        sent = numbers * each * 2 * (tensor - 1) / tensor
        yield Exchange("lookup", "all-reduce", ("tensor",), sent, times)


def _loss(w: Workload) -> Iterator[Exchange]:
    """Maximum, sums and the target's logit of every token; then the gradient of hidden states."""
    tensor = w.mesh["tensor"]
    if tensor > 1:
        numbers = w.tokens_here * (w.compute * w.config.d_model + 4 * 9)
        sent = w.accumulation * numbers * 2 * (tensor - 1) / tensor
        yield Exchange("loss", "all-reduce", ("tensor",), sent, 10 * w.accumulation)


def _tensor(w: Workload) -> Iterator[Exchange]:
    """Partial sums of D columns after attention and after the MLP; backward before both."""
    tensor = w.mesh["tensor"]
    if tensor == 1:
        return
    c, backward = w.config, 1 if w.trains else 0
    column = w.accumulation * w.tokens_here * 2 * (tensor - 1) / tensor
    times = c.num_layers * 2 * (passes(w) + backward)
    sent = times * column * c.d_model * w.compute
    yield Exchange("tensor sums", "all-reduce", ("tensor",), sent, times * w.accumulation)
    if c.moe is not None:  # of float32 results
        times = c.num_layers * (attention_passes(w) + backward)
        sent = times * column * c.d_model * 4
        yield Exchange("tensor sums", "all-reduce", ("tensor",), sent, times * w.accumulation)
    if w.trains:
        # K/V heads that every device of the axis has: their gradients are summed.
        whole = sum(
            count * layer.num_kv_heads * layer.head_dim * (1 if layer.value_from_key else 2)
            for layer, count in tree.kinds(c)
            if layer.owns_kv and layer.num_kv_heads % tensor
        )
        times = c.num_layers * w.accumulation
        yield Exchange("tensor sums", "all-reduce", ("tensor",), whole * column * w.compute, times)


def _held_positions(w: Workload) -> Iterator[Exchange]:
    """Of every new token, head and full layer: the largest score, the sum of exponentials, weighted values."""
    parts, heads = w.mesh["seq"], w.config.num_heads // w.mesh["tensor"]
    layers = [layer for layer in w.config.layers if layer.kind != SLIDING]
    numbers = w.tokens_here * heads * sum(layer.head_dim + 2 for layer in layers)
    sent = 2 * (parts - 1) / parts * numbers * 4
    yield Exchange("positions held elsewhere", "all-reduce", ("seq",), sent, 2 * len(layers))


def _sequence(w: Workload) -> Iterator[Exchange]:
    """Keys and values forward and backward, and their gradients home in float32. Hidden states change their
    order at the end, ints at the start.

    Where a layer is computed again, the ring goes round again; halos and gathers serve its backward pass too.
    """
    parts = w.mesh["seq"]
    total: dict[tuple[str, Operation], list[float]] = {}
    for layer, count in tree.kinds(w.config):
        way, sent, times = sequence_bytes(w, layer, w.compute)
        _, home, _ = sequence_bytes(w, layer, 4)
        visits = 2
        if way == "ring":  # a gradient visits its owner last
            visits, home = attention_passes(w) + 1, home * parts / (parts - 1)
        there, back = _OPERATIONS[way]
        for operation, each, repeats in ((there, sent, visits), (back, home, 1)):
            found = total.setdefault((way, operation), [0.0, 0.0])
            found[0] += w.accumulation * count * repeats * each
            found[1] += w.accumulation * count * repeats * times
    for (way, operation), (all_sent, often) in total.items():
        yield Exchange(way, operation, ("seq",), all_sent, int(often))
    sent = 2.0 * w.accumulation * w.tokens_here * w.config.d_model * w.compute
    yield Exchange("order of tokens", "permute", ("seq",), sent, 4 * w.accumulation)


# Keys and values there, and their gradients back.
_OPERATIONS: dict[str, tuple[Operation, Operation]] = {
    "halo": ("permute", "permute"),
    "ring": ("ring", "ring"),
    "gather": ("all-gather", "reduce-scatter"),
}


def _experts(w: Workload, ragged: bool) -> Iterator[Exchange]:
    """Routed rows there and their results back, forward, again, and both backward."""
    moe, parts = w.config.moe, w.mesh["expert"]
    assert moe is not None
    share = 1.0 if ragged else _lanes(w)
    rows = w.tokens_here * moe.num_experts_per_token * share * (parts - 1) / parts
    repeats = attention_passes(w) + (1 if w.trains else 0)
    times = w.accumulation * w.config.num_layers * 2 * repeats
    sent = times * rows * w.config.d_model * w.compute
    yield Exchange("experts", "all-to-all", ("expert",), sent, times)


def _lanes(w: Workload) -> float:
    """Rows of all lanes over routed rows."""
    moe, parts = w.config.moe, w.mesh["expert"]
    assert moe is not None
    active = moe.num_experts_per_token
    lane = lane_rows(w.tokens_here, active, moe.num_experts, parts, CAPACITY_FACTOR)
    return parts * lane / (w.tokens_here * active)
