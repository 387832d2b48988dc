"""How long a step takes: limits of products, memory and links, and a prediction with its assumptions.

A limit is what nothing can beat: useful work at the peak, everything read once, every link at its rate. The
prediction counts the work that this code does (recomputed layers, masked scores) at shares of the peaks that
are assumed, not measured here: `Assumptions`. Not here: compilers' own estimates, measured times.
"""

from dataclasses import dataclass

from gemma4_jax.config import SLIDING, LayerConfig
from gemma4_jax.model.attention import DENSE_SCORES
from gemma4_jax.parallel.sequence_attention import TILE
from gemma4_jax.parallel.splash_shapes import tile as splash_tile
from gemma4_jax.plan import network, tree
from gemma4_jax.plan.memory import (
    bytes_by_part,
    kept_by_layer,
    layer_numbers,
    weight_bytes,
)
from gemma4_jax.plan.model import (
    Flops,
    active_parameters,
    count_parameters,
    decode_flops,
    sequence_flops,
)
from gemma4_jax.plan.traffic import Exchange, attention_passes, exchanges, passes
from gemma4_jax.plan.workload import Workload
from gemma4_jax.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Shares of peaks that a prediction supposes; none was measured for this code on an accelerator.

    products: matrix products with parameters (published: 31B 45.9 %, llama 3.1 70B 52.3 % of the peak of whole
    steps with full remat on TPU7x, where a third of the work is not counted: 0.61 and 0.70 of what is done).
    grouped: products with experts (26B-A4B's published 25.7 % of whole steps: 0.34 of what is done).
    attention: scores and sums, by XLA or by a kernel that nobody has timed here.
    bandwidth, links: of memory, and between devices.
    """

    products: float = 0.6
    grouped: float = 0.4
    attention: float = 0.3
    bandwidth: float = 0.8
    links: float = 0.8


ASSUMED = Assumptions()


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one device does in a step: FLOPs of products, of products with experts, and of attention; bytes
    that it reads and writes in its memory. useful: FLOPs of the model (plan/model.py), nothing twice."""

    products: float
    grouped: float
    attention: float
    memory: float
    useful: float


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds. compute, memory, links: limits. hidden, exposed: exchanges that run beside products and those
    that products wait for, as predicted. step: predicted. mfu: useful work in it, over the peak."""

    compute: float
    memory: float
    links: float
    products: float
    traffic: float
    hidden: float
    exposed: float
    step: float
    mfu: float
    tokens_per_second: float


def work(workload: Workload) -> Work:
    """Of one device in one step."""
    w, c = workload, workload.config
    tokens = w.tokens_here * w.accumulation
    flops = sequence_flops(c, w.tokens) if w.trains else decode_flops(c, w.tokens)
    tensor = w.mesh["tensor"]
    useful = tokens * _useful(w, flops) / tensor
    grouped = 0.0
    if c.moe is not None:
        experts = count_parameters(c).experts / c.moe.num_experts
        grouped = 2 * experts * c.moe.num_experts_per_token
    # Backward: gradients of inputs, and of what is trained. The loss projects again whatever the policy is.
    backward = 0 if not w.trains else 2 if w.trains_all else 1
    products = (passes(w) + backward) * (flops.matrices - grouped)
    products += ((2 if w.trains else 1) + backward) * flops.logits
    attention = sum(n * _attention_flops(w, layer) for layer, n in tree.kinds(c))
    share = tokens / tensor
    return Work(
        products=share * products,
        grouped=share * (attention_passes(w) + backward) * grouped,
        attention=share * attention,
        memory=_memory(w),
        useful=useful,
    )


def step_time(workload: Workload, topology: Topology, assumed: Assumptions = ASSUMED) -> StepTime:
    """Of one step on a machine whose devices the mesh has all, or the first of."""
    found, lines = exchanges(workload), network.lay_out(topology, workload.sizes)
    return _time(work(workload), found, lines, workload, topology, assumed)


def _time(
    done: Work,
    found: list[Exchange],
    lines: dict[str, network.Lines],
    w: Workload,
    topology: Topology,
    a: Assumptions,
) -> StepTime:
    peak = topology.flops
    hidden = exposed = links = 0.0
    for exchange in found:
        took = network.seconds(exchange, lines)
        links += took
        slower = took / a.links
        hidden, exposed = (
            (hidden + slower, exposed) if exchange.hidden else (hidden, exposed + slower)
        )
    products = (
        done.products / a.products + done.grouped / a.grouped + done.attention / a.attention
    ) / peak
    memory = done.memory / topology.bandwidth / a.bandwidth
    step = max(products, memory, hidden) + exposed
    return StepTime(
        compute=done.useful / peak,
        memory=done.memory / topology.bandwidth,
        links=links,
        products=products,
        traffic=memory,
        hidden=hidden,
        exposed=exposed,
        step=step,
        mfu=done.useful / peak / step,
        tokens_per_second=w.step_tokens / step,
    )


def _useful(w: Workload, flops: Flops) -> float:
    """Adapters leave out the gradients of the matrices they adapt; attention has no parameters."""
    if not w.trains:
        return flops.forward
    if w.trains_all:
        return flops.training
    return 2 * (flops.matrices + flops.logits) + 3 * flops.attention


def _attention_flops(w: Workload, layer: LayerConfig) -> float:
    """FLOPs of one token's attention on one layer, masked scores included, all passes."""
    keys, extra = _keys(w, layer)
    forward = 2 * 2 * w.config.num_heads * layer.head_dim * keys
    if not w.trains:
        return forward
    return forward * (attention_passes(w) + 2 + extra)


def _keys(w: Workload, layer: LayerConfig) -> tuple[float, float]:
    """Keys that a query is multiplied with, and forward passes that attention itself does again backward."""
    window, tokens = w.config.window, w.tokens
    sliding = layer.kind == SLIDING
    if not w.trains:
        return float(min(window, tokens) if sliding else tokens / w.mesh["seq"]), 0.0
    if w.mesh["seq"] > 1:
        tile = min(TILE, tokens // (2 * w.mesh["seq"]))
        # Tiles that touch the band, or half of the row and the diagonal's other half.
        return float(min(window - 1 + tile, tokens) if sliding else (tokens + tile) / 2), 0.5
    if not w.stores_scores(layer):
        edge = splash_tile(tokens)
        # Scores are made again for the gradient of queries, and again for that of keys and values, where their
        # own gradients are too: three products of the forward pass's two.
        return float(min(window - 1 + edge, tokens) if sliding else (tokens + edge) / 2), 1.5
    if sliding and tokens > 2 * window:
        return 2.0 * window, 0.0
    return float(tokens), (1.0 if tokens * tokens > DENSE_SCORES else 0.0)


def _memory(w: Workload) -> float:
    """Bytes that a step has to read or write. Training: weights by every pass, what a layer computes once
    written and once read, scores likewise, state and gradients at the update."""
    c = w.config
    weights = weight_bytes(w) * w.gathered_over
    if not w.trains:
        parts = bytes_by_part(w)
        read = weights if c.moe is None else weights * _met(w)
        return float(read + parts["cache"])
    often = passes(w) + 1
    per_layer = 2 * layer_numbers(w) * (4 + w.compute) / 2
    kept = 2 * w.tokens_here * sum(n * kept_by_layer(w, layer) for layer, n in tree.kinds(c))
    heads = c.num_heads / w.mesh["tensor"]
    scores = 0.0
    for layer, count in tree.kinds(c):
        if w.stores_scores(layer):
            keys, extra = _keys(w, layer)
            read = 4 * 2 * (attention_passes(w) + 1 + extra)
            scores += count * w.tokens_here * heads * keys * read
    # Parameters, gradient and moments, read and written.
    numbers = bytes_by_part(w)["update"] / 4
    update = numbers * (2 * w.held + 2 * 4 + 4 * 4)
    return (
        w.accumulation
        * (often * weights * min(1, w.compute / w.held) + c.num_layers * per_layer + kept + scores)
        + update
    )


def _met(w: Workload) -> float:
    """Share of the weights that a decoding step reads, if the router has no favourites."""
    c = w.config
    assert c.moe is not None
    total = count_parameters(c).total
    idle = (1 - c.moe.num_experts_per_token / c.moe.num_experts) ** max(1, w.rows_here)
    experts = count_parameters(c).experts
    return max(active_parameters(c), total - experts * idle) / total
