"""Routed experts where the mesh cuts them: tokens travel to the devices that hold their experts, and back.

`dispatch_experts` equals `model.moe.experts_of_tokens`. Experts are cut over the axis `expert`, which cuts rows
of the batch too, and their width F over `tensor`. Each device sorts its (token, expert) pairs by expert, so by
the part that holds the expert; rows are exchanged, multiplied in runs of one expert, and return the same way.

What a part can send to another in one turn is a lane of C rows: shapes are static, and a buffer for the worst
routing (all tokens to one part) would be P / capacity_factor times as large. So C is `capacity_factor` times
an even share, and what does not fit goes in further turns, as many as the fullest lane of the mesh needs:
nothing is dropped, and memory is bounded. The first turn is straight code, which a compiler can schedule beside
the dense MLP; the others are a loop that is rarely entered. A loop of unknown length has no gradient of its
own: it is written out, and computes those turns again instead of keeping all their activations.

Two ways to exchange, with one index arithmetic (`route`): "ragged" moves the routed rows alone, "padded" moves
whole lanes. XLA:CPU has no ragged exchange.

Over `tensor` every peer sends whole rows and gets partial results back, which are summed once per token, after
its A results were. With 2 peers, N D + M D numbers move on the way back so; summing the results where they
are computed, and returning half of the columns from each peer, moves 1.5 N D + M D / 2 (lanes are summed with
what is empty in them).

Not here: the router and its sums (`model/moe.py`), the grouped product (`kernels.py`).

Letters: B batch, T tokens of a row, M tokens of a device, A active experts per token, N = M A pairs, E experts,
P parts (devices along `expert`), C rows of a lane, D d_model, F expert width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gemma4_jax.collectives import mesh_over
from gemma4_jax.model.layers import gated_gelu
from gemma4_jax.model.moe import GroupedMatmul, experts_of_tokens
from gemma4_jax.model.weights import Adapted, Weight, project_groups
from gemma4_jax.sharding import AXES, BATCH, TOKENS, spec, tokens_spec

Exchange = Literal["ragged", "padded"]
CAPACITY_FACTOR = 2.0

_EXPERT, _TENSOR = "expert", "tensor"
_WIDE, _NARROW = ("experts", None, "expert_mlp"), ("experts", "expert_mlp", None)
Matrices = tuple[Weight, Weight, Weight]


def dispatch_experts(
    normed: Float[Array, "B T D"],
    weights: Float[Array, "B T A"],
    index: Int[Array, "B T A"],
    matrices: tuple[Weight, Weight, Weight],
    grouped_matmul: GroupedMatmul,
    dtype: Any,
) -> Float[Array, "B T D"]:
    """`experts_of_tokens`, without gathering experts over `expert` or `tensor`; nothing is dropped."""
    return dispatch(normed, weights, index, matrices, grouped_matmul, dtype)[0]


def dispatch(
    normed: Float[Array, "B T D"],
    weights: Float[Array, "B T A"],
    index: Int[Array, "B T A"],
    matrices: tuple[Weight, Weight, Weight],
    grouped_matmul: GroupedMatmul,
    dtype: Any,
    *,
    exchange: Exchange | None = None,
    capacity_factor: float = CAPACITY_FACTOR,
    drop: bool = False,
) -> tuple[Float[Array, "B T D"], Int[Array, ""]]:
    """The experts' output, and how many (token, expert) pairs of the batch were dropped.

    grouped_matmul: as `lax.ragged_dot`; here the groups may end before the rows do.
    exchange: by default what the platform has. capacity_factor: rows of a lane, over an even share.
    drop: one turn only. Of a lane, the pairs that come last by (expert, token) then contribute 0.
    """
    mesh = mesh_over(normed.shape)
    if mesh is None or mesh.shape[_EXPERT] == mesh.shape[_TENSOR] == 1:
        out = experts_of_tokens(normed, weights, index, matrices, grouped_matmul, dtype)
        return out, jnp.zeros((), jnp.int32)
    experts, parts = matrices[0].shape[0], mesh.shape[_EXPERT]
    cuts = tuple(
        _cut(weight, names, mesh)
        for weight, names in zip(matrices, (_WIDE, _WIDE, _NARROW), strict=True)
    )
    ways = _WAYS[exchange or ("padded" if jax.default_backend() == "cpu" else "ragged")]

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
            rows = _to_pairs(x, (order, inverse))
            out = multiply(rows, _own_keys(matrices, 0), sizes)
        else:
            counts = jax.lax.all_gather(sizes, _EXPERT)
            lane = lane_rows(tokens, active, experts, parts, capacity_factor)
            turn = functools.partial(_turn, lane=lane, ways=ways, multiply=multiply)
            largest = most_rows(tokens, active, experts, parts)
            lanes = counts.reshape(parts, parts, -1).sum(-1)
            if lane == largest or drop:
                out = turn(0, x, matrices, (order, inverse, counts))
                left = jnp.maximum(lanes[jax.lax.axis_index(_EXPERT)] - lane, 0).sum()
                dropped = jax.lax.psum(left, (*BATCH, TOKENS))
            else:
                # One number for the whole mesh: devices that leave a loop at different turns would wait for
                # each other's collectives.
                turns = jax.lax.pmax(-(-lanes.max() // lane), AXES)
                out = _in_turns(turn, x, matrices, (order, inverse, counts), turns)
        by_token = _to_tokens(out, (order, inverse))
        result = jnp.einsum("ma,mad->md", weights, by_token.astype(jnp.float32))
        if mesh.shape[_TENSOR] > 1:
            result = jax.lax.psum(result, _TENSOR)
        return result.astype(x.dtype).reshape(normed.shape), dropped

    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(tokens_spec(),) * 3 + cuts,
        out_specs=(tokens_spec(), PartitionSpec()),
        check_vma=False,
    )
    found: tuple[Array, Array] = mapped(normed, weights, index, *matrices)
    return found


def most_rows(tokens: int, active: int, experts: int, parts: int) -> int:
    """The rows that any routing can send from one part to another: a token's experts are distinct."""
    return tokens * min(active, experts // parts)


def lane_rows(tokens: int, active: int, experts: int, parts: int, capacity_factor: float) -> int:
    """C: capacity_factor times an even share of a part's pairs; no more than there can be."""
    share = math.ceil(capacity_factor * tokens * active / parts)
    return min(share, most_rows(tokens, active, experts, parts))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Route:
    """Where rows go in one turn, seen from one part; int32.

    Rows are a part's N pairs sorted by expert; slots are P lanes of C rows, by destination before the exchange
    and by source after it; places are the slots that arrived, sorted by expert. An index as large as what
    it points into is long: nothing is there.
    """

    starts: Any  # [P] first of my rows to each part
    sent: Any  # [P] how many
    returns: Any  # [P] first row, at each source, of those it sends here
    received: Any  # [P] how many
    row_of_slot: Any  # [P * C]
    slot_of_row: Any  # [N]
    slot_of_place: Any  # [P * C]
    place_of_slot: Any  # [P * C]
    group_sizes: Any  # [E / P]


def route(
    counts: Int[Array, "P E"],
    me: Int[Array, ""] | int,
    turn: Int[Array, ""] | int,
    *,
    rows: int,
    lane: int,
) -> Route:
    """The route of turn `turn` of part `me`: rows turn * C to (turn + 1) * C of every lane.

    counts: pairs of each source, by expert. rows: N. lane: C.
    """
    parts, first = counts.shape[0], turn * lane
    slots = parts * lane
    by_part = counts.reshape(parts, parts, -1)
    sizes = by_part.sum(-1)  # [source, destination]
    moved = jnp.clip(sizes - first, 0, lane)
    starts = jnp.minimum(_ends(sizes) - sizes + first, rows)
    sent, received = moved[me], moved[:, me]

    within = jnp.arange(lane, dtype=jnp.int32)
    row_of_slot = jnp.where(within < sent[:, None], starts[me][:, None] + within, rows)
    row = jnp.arange(rows, dtype=jnp.int32)
    to = _interval(_ends(sizes[me]), row)
    at = row - starts[me][to]
    slot_of_row = jnp.where((at >= 0) & (at < sent[to]), to * lane + at, slots)

    # A source's rows of one expert are a run in its lane, and a run in the expert's group. Groups hold
    # runs source by source.
    mine = by_part[:, me]  # [source, own expert]
    end = jnp.clip(_ends(mine) - first, 0, lane)
    begin = jnp.clip(_ends(mine) - mine - first, 0, lane)
    runs = (end - begin).T  # [own expert, source]
    run_ends = _ends(runs.reshape(-1))
    run_begins = run_ends - runs.reshape(-1)
    run_slots = (begin + jnp.arange(parts, dtype=jnp.int32)[:, None] * lane).T.reshape(-1)
    place = jnp.arange(slots, dtype=jnp.int32)
    run = jnp.minimum(_interval(run_ends, place), run_ends.shape[0] - 1)
    slot = run_slots[run] + place - run_begins[run]
    slot_of_place = jnp.where(place < run_ends[-1], slot, slots)
    expert = (within[:, None] >= end[:, None]).sum(-1)  # [source, C]
    expert = jnp.minimum(expert, runs.shape[0] - 1)
    source = jnp.arange(parts, dtype=jnp.int32)[:, None]
    base = run_begins.reshape(runs.shape)[expert, source] - begin[source, expert]
    place_of_slot = jnp.where(within < received[:, None], base + within, slots)

    route = Route(
        starts=starts[me],
        sent=sent,
        returns=starts[:, me],
        received=received,
        row_of_slot=row_of_slot.reshape(-1),
        slot_of_row=slot_of_row,
        slot_of_place=slot_of_place,
        place_of_slot=place_of_slot.reshape(-1),
        group_sizes=runs.sum(-1),
    )
    return jax.tree.map(lambda x: x.astype(jnp.int32), route)


def _ends(sizes: Array) -> Array:
    return jnp.cumsum(sizes, axis=-1)


def _interval(ends: Array, x: Array) -> Array:
    """In which of the intervals that end at `ends` x is. Tables are short: comparing beats looking up."""
    return jnp.searchsorted(ends, x, side="right", method="compare_all").astype(jnp.int32)


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
    there = route(counts, jax.lax.axis_index(_EXPERT), turn, rows=order.shape[0], lane=lane)
    deliver, bring_back = ways
    rows = deliver(_to_pairs(x, (order, inverse)), there)
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

        return *jax.lax.fori_loop(1, turns, add, pull(grad)), None, None

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


# Everything that moves rows is linear, and its transpose is known: gathers both ways, no scatter, and sums
# whose order does not change.
Move = Callable[[Array, Any], Array]


def _transposes(there: Move, back: Move) -> tuple[Move, Move]:
    """Both, each with the other as its gradient. Their second argument is integers."""

    def with_gradient(one: Move, other: Move) -> Move:
        moved = jax.custom_vjp(one)
        moved.defvjp(lambda x, by: (one(x, by), by), lambda by, grad: (other(grad, by), None))
        return moved

    return with_gradient(there, back), with_gradient(back, there)


def _pick(x: Array, at: Array) -> Array:
    """x[at], 0 where `at` is past the end."""
    return jnp.take(x, at, axis=0, mode="fill", fill_value=0)


def _pairs_of_tokens(x: Array, by: tuple[Array, Array]) -> Array:
    order, inverse = by
    return x[order // inverse.shape[-1]]


def _tokens_of_pairs(rows: Array, by: tuple[Array, Array]) -> Array:
    _, inverse = by
    return rows[inverse].sum(1, dtype=jnp.float32).astype(rows.dtype)


_to_pairs, _ = _transposes(_pairs_of_tokens, _tokens_of_pairs)
_to_tokens, _ = _transposes(
    lambda rows, by: rows[by[1]], lambda x, by: x.reshape(-1, x.shape[-1])[by[0]]
)


def _deliver_padded(rows: Array, route: Route) -> Array:
    slots = _pick(rows, route.row_of_slot)
    slots = jax.lax.all_to_all(slots, _EXPERT, 0, 0, tiled=True)
    return _pick(slots, route.slot_of_place)


def _return_padded(places: Array, route: Route) -> Array:
    slots = _pick(places, route.place_of_slot)
    slots = jax.lax.all_to_all(slots, _EXPERT, 0, 0, tiled=True)
    return _pick(slots, route.slot_of_row)


def _deliver_ragged(rows: Array, route: Route) -> Array:
    parts, slots = route.sent.shape[0], route.row_of_slot.shape[0]
    mine = jnp.full(parts, jax.lax.axis_index(_EXPERT) * (slots // parts), jnp.int32)
    arrived = jax.lax.ragged_all_to_all(
        rows,
        jnp.zeros((slots, rows.shape[1]), rows.dtype),
        route.starts,
        route.sent,
        mine,
        route.received,
        axis_name=_EXPERT,
    )
    return _pick(arrived, route.slot_of_place)


def _return_ragged(places: Array, route: Route) -> Array:
    parts, slots = route.sent.shape[0], route.row_of_slot.shape[0]
    return jax.lax.ragged_all_to_all(
        _pick(places, route.place_of_slot),
        jnp.zeros((route.slot_of_row.shape[0], places.shape[1]), places.dtype),
        jnp.arange(parts, dtype=jnp.int32) * (slots // parts),
        route.received,
        route.returns,
        route.sent,
        axis_name=_EXPERT,
    )


_WAYS = {
    "padded": _transposes(_deliver_padded, _return_padded),
    "ragged": _transposes(_deliver_ragged, _return_ragged),
}
