"""Routed experts where the mesh cuts them: tokens travel to the devices that hold their experts, and back.

`dispatch` equals `model.moe.experts_of_tokens`. Experts are cut over the axis `expert`, which cuts rows
of the batch too, and their width F over `tensor`. Each device sorts its (token, expert) pairs by expert, so by
the part that holds the expert; rows are exchanged, multiplied in runs of one expert, and return the same way.

What a part can send to another in one turn is a lane of C rows: shapes are static, and a buffer for the worst
routing (all tokens to one part) would be P / capacity_factor times as large. So C is `capacity_factor` times
an even share, and what does not fit goes in further turns, as many as the fullest lane of the mesh needs:
nothing is dropped, and memory is bounded. With `drop` there are none, and what does not fit is dropped. The
first turn is straight code, which a compiler may schedule beside the dense MLP (libtpu 0.0.42 does not, of its
own accord); the others are a loop that is rarely entered. A loop of unknown length has no gradient of its own:
it is written out, and computes those turns again instead of keeping all their activations.

Over `tensor` every peer sends whole rows and gets partial results back, which are summed once per token, after
its A results were. With 2 peers, N D + M D numbers move on the way back so; summing the results where they
are computed, and returning half of the columns from each peer, moves 1.5 N D + M D / 2 (lanes are summed with
what is empty in them).

Not here: the exchange itself (`expert_exchange.py`), the router and its sums (`model/moe.py`), the grouped
product (`kernels.py`).

Letters: B batch, T tokens of a row, M tokens of a device, A active experts per token, N = M A pairs, E experts,
P parts (devices along `expert`), C rows of a lane, D d_model, F expert width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.collectives import mesh_over, spec_of_tokens
from gemma4_jax.model.layers import gated_gelu
from gemma4_jax.model.moe import GroupedMatmul, RoutedExperts, experts_of_tokens
from gemma4_jax.model.weights import Adapted, Stacked, Weight, project_groups
from gemma4_jax.parallel.expert_exchange import (
    EXPERT,
    WAYS,
    Exchange,
    lane_rows,
    most_rows,
    route,
    to_pairs,
    to_tokens,
)
from gemma4_jax.sharding import AXES, BATCH, TOKENS, platform, spec

CAPACITY_FACTOR = 2.0
# In the names of a program's operations: of loops that do not run while experts are evenly loaded.
FURTHER_TURNS = "further_turns"

_TENSOR = "tensor"
_WIDE, _NARROW = ("experts", None, "expert_mlp"), ("experts", "expert_mlp", None)
Matrices = tuple[Weight, Weight, Weight]


def dispatch(
    normed: Float[Array, "B T D"],
    weights: Float[Array, "B T A"],
    index: Int[Array, "B T A"],
    matrices: tuple[Weight, Weight, Weight],
    grouped_matmul: GroupedMatmul,
    dtype: Any,
    real: Bool[Array, "B T"] | None = None,
    *,
    exchange: Exchange | None = None,
    capacity_factor: float = CAPACITY_FACTOR,
    drop: bool = False,
) -> tuple[Float[Array, "B T D"], Int[Array, ""]]:
    """`experts_of_tokens`, without gathering experts over `expert` or `tensor`.

    grouped_matmul: as `lax.ragged_dot`; here the groups may end before the rows do.
    exchange: by default what the platform has. capacity_factor: rows of a lane, over an even share of a
    device's tokens, padding included. drop: one turn only. Of a lane, the pairs that come last by (expert,
    token) then contribute 0; those of padding (`real` False) all do, take no room, and are not counted.
    """
    mesh = mesh_over(normed.shape)
    if mesh is None or mesh.shape[EXPERT] == mesh.shape[_TENSOR] == 1:
        return experts_of_tokens(normed, weights, index, matrices, grouped_matmul, dtype)
    experts, parts = matrices[0].shape[0], mesh.shape[EXPERT]
    cuts = tuple(
        _cut(weight, names, mesh)
        for weight, names in zip(matrices, (_WIDE, _WIDE, _NARROW), strict=True)
    )
    cut = spec_of_tokens(normed.shape, mesh)
    if drop and parts > 1 and real is not None:
        # No expert's: the last rows, which stay where they are.
        index = jnp.where(real[..., None], index, experts)
    ways = WAYS[exchange or ("padded" if platform() == "cpu" else "ragged")]

    def own(
        normed: Array, weights: Array, index: Array, gate: Weight, up: Weight, down: Weight
    ) -> tuple[Array, Array]:
        matrices = gate, up, down
        x, weights, index = (a.reshape(-1, a.shape[-1]) for a in (normed, weights, index))
        tokens, active = index.shape
        order = jnp.argsort(index.reshape(-1), stable=True)
        inverse = jnp.argsort(order).reshape(index.shape)
        sizes = jnp.bincount(index.reshape(-1), length=experts).astype(jnp.int32)
        multiply = functools.partial(_multiply, grouped_matmul=grouped_matmul, dtype=dtype)
        dropped = jnp.zeros((), jnp.int32)
        if parts == 1:
            rows = to_pairs(x, (order, inverse))
            out = multiply(rows, _own_keys(matrices, 0), sizes)
        else:
            counts = jax.lax.all_gather(sizes, EXPERT)
            lane = lane_rows(tokens, active, experts, parts, capacity_factor)
            turn = functools.partial(_turn, lane=lane, ways=ways, multiply=multiply)
            largest = most_rows(tokens, active, experts, parts)
            lanes = counts.reshape(parts, parts, -1).sum(-1)
            if lane == largest or drop:
                out = turn(0, x, matrices, (order, inverse, counts))
                left = jnp.maximum(lanes[jax.lax.axis_index(EXPERT)] - lane, 0).sum()
                dropped = jax.lax.psum(left, (*BATCH, TOKENS) if TOKENS in cut else BATCH)
            else:
                # One number for the whole mesh: devices that leave a loop at different turns would wait for
                # each other's collectives.
                turns = jax.lax.pmax(-(-lanes.max() // lane), AXES)
                out = _in_turns(turn, x, matrices, (order, inverse, counts), turns)
        by_token = to_tokens(out, (order, inverse))
        result = jnp.einsum("ma,mad->md", weights, by_token.astype(jnp.float32))
        if mesh.shape[_TENSOR] > 1:
            result = jax.lax.psum(result, _TENSOR)
        return result.astype(x.dtype).reshape(normed.shape), dropped

    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(cut,) * 3 + cuts,
        out_specs=(cut, PartitionSpec()),
        check_vma=False,
    )
    found: tuple[Array, Array] = mapped(normed, weights, index, *matrices)
    return found


@functools.cache  # one object for a factor: compiled programs are found by it
def dispatch_within(capacity_factor: float) -> RoutedExperts:
    """`dispatch` that drops what does not fit lanes of that size."""
    return functools.partial(dispatch, drop=True, capacity_factor=capacity_factor)


def _turn(
    turn: Array | int,
    x: Array,
    matrices: Matrices,
    pairs: tuple[Array, Array, Array],
    *,
    lane: int,
    ways: Any,
    multiply: Callable[[Array, Matrices, Array], Array],
) -> Array:
    """Results [N, D], in the order of rows, of those that travel in one turn; 0 for the others."""
    order, inverse, counts = pairs
    there = route(counts, jax.lax.axis_index(EXPERT), turn, rows=order.shape[0], lane=lane)
    deliver, bring_back = ways
    rows = deliver(to_pairs(x, (order, inverse)), there)
    return bring_back(multiply(rows, _own_keys(matrices, turn), there.group_sizes), there)


def _in_turns(
    turn: Callable[..., Array], x: Array, matrices: Matrices, pairs: Any, turns: Array
) -> Array:
    """turn(0, ...) + ... + turn(turns - 1, ...); in the backward pass all but the first are computed again."""
    leaves, tree = jax.tree.flatten(matrices)
    trainable = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    floats = [leaf for leaf, is_float in zip(leaves, trainable, strict=True) if is_float]
    fixed = [leaf for leaf, is_float in zip(leaves, trainable, strict=True) if not is_float]

    def one(number: Array | int, x: Array, floats: list[Array], whole: Any) -> Array:
        fixed, pairs = whole
        mine, others = iter(floats), iter(fixed)
        leaves = [next(mine if is_float else others) for is_float in trainable]
        return turn(number, x, jax.tree.unflatten(tree, leaves), pairs)

    @jax.named_scope(FURTHER_TURNS)
    def rest(x: Array, floats: list[Array], whole: Any, turns: Array, out: Array) -> Array:
        return jax.lax.fori_loop(1, turns, lambda k, out: out + one(k, x, floats, whole), out)

    @jax.custom_vjp
    def total(x: Array, floats: list[Array], whole: Any, turns: Array) -> Array:
        return rest(x, floats, whole, turns, one(0, x, floats, whole))

    def forward(x: Array, floats: list[Array], whole: Any, turns: Array) -> tuple[Array, Any]:
        out, pull = jax.vjp(lambda x, floats: one(0, x, floats, whole), x, floats)
        return rest(x, floats, whole, turns, out), (pull, x, floats, whole, turns)

    def backward(saved: Any, grad: Array) -> tuple[Any, ...]:
        pull, x, floats, whole, turns = saved

        def add(number: Array, sums: Any) -> Any:
            _, again = jax.vjp(lambda x, floats: one(number, x, floats, whole), x, floats)
            return jax.tree.map(jnp.add, sums, again(grad))

        first = pull(grad)
        with jax.named_scope(FURTHER_TURNS):
            return *jax.lax.fori_loop(1, turns, add, first), None, None

    total.defvjp(forward, backward)
    return total(x, floats, (fixed, pairs), turns)


def _multiply(
    rows: Array,
    matrices: Matrices,
    group_sizes: Array,
    *,
    grouped_matmul: GroupedMatmul,
    dtype: Any,
) -> Array:
    """down(gelu(gate x) * up x) of rows sorted by expert."""
    gate, up, down = matrices
    # Kernels may leave anything in rows past the last group, in gradients too, and anything times 0 may be no
    # number. Nobody reads such rows of the result, so that is not worth a pass over it.
    real = (jnp.arange(rows.shape[0]) < group_sizes.sum())[:, None]

    def clean(rows: Array, weights: Array, group_sizes: Array) -> Array:
        return jnp.where(real, grouped_matmul(rows, weights, group_sizes), 0)

    def wide(weight: Weight) -> Array:
        return project_groups(rows, weight, group_sizes, clean, dtype)

    hidden = gated_gelu(wide(gate), wide(up))
    last = clean if isinstance(down, Adapted) else grouped_matmul
    return project_groups(hidden, down, group_sizes, last, dtype)


def _own_keys(matrices: Matrices, turn: Array | int) -> Matrices:
    """Adapters' dropout keys, another one for every device's tokens and turn."""
    number = jax.lax.axis_index((*BATCH, TOKENS))

    def own(weight: Weight) -> Weight:
        if not isinstance(weight, Adapted) or weight.key is None:
            return weight
        key = jax.random.fold_in(jax.random.wrap_key_data(weight.key), number)
        return dataclasses.replace(weight, key=jax.random.key_data(jax.random.fold_in(key, turn)))

    gate, up, down = matrices
    return own(gate), own(up), own(down)


def _cut(weight: Weight, names: tuple[str | None, ...], mesh: Any) -> Any:
    """PartitionSpecs of a weight's arrays: cut by the matrix's names, and an adapter's rank not at all."""
    if isinstance(weight, Stacked):
        cut = spec((None, None, *names), weight.stack.shape, mesh)
        return dataclasses.replace(weight, stack=cut, index=(PartitionSpec(), PartitionSpec()))
    if not isinstance(weight, Adapted):
        return jax.tree.map(lambda leaf: spec(names, leaf.shape, mesh), weight)
    expert, inputs, outputs = names
    return dataclasses.replace(
        weight,
        base=_cut(weight.base, names, mesh),
        lora_a=spec((expert, inputs, None), weight.lora_a.shape, mesh),
        lora_b=spec((expert, None, outputs), weight.lora_b.shape, mesh),
        key=None if weight.key is None else PartitionSpec(),
    )
