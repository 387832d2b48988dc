"""How rows travel between the parts of a mesh axis, each holding some experts: index arithmetic and exchanges.

A turn moves at most C rows, a lane, from each part to each. Two exchanges put the same rows in the same slots:
"ragged" moves the routed rows alone, "padded" moves whole lanes. XLA:CPU has no ragged exchange. All of it
runs inside `shard_map`, on local arrays. Not here: what is multiplied, how many turns (`expert_dispatch.py`).

Letters: M tokens of a device, A active experts per token, N = M A pairs, E experts, P parts (devices along
`expert`), C rows of a lane, D d_model.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

EXPERT = "expert"
Exchange = Literal["ragged", "padded"]


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


to_pairs, _ = _transposes(_pairs_of_tokens, _tokens_of_pairs)
to_tokens, _ = _transposes(
    lambda rows, by: rows[by[1]], lambda x, by: x.reshape(-1, x.shape[-1])[by[0]]
)


def _deliver_padded(rows: Array, route: Route) -> Array:
    slots = _pick(rows, route.row_of_slot)
    slots = jax.lax.all_to_all(slots, EXPERT, 0, 0, tiled=True)
    return _pick(slots, route.slot_of_place)


def _return_padded(places: Array, route: Route) -> Array:
    slots = _pick(places, route.place_of_slot)
    slots = jax.lax.all_to_all(slots, EXPERT, 0, 0, tiled=True)
    return _pick(slots, route.slot_of_row)


def _deliver_ragged(rows: Array, route: Route) -> Array:
    parts, slots = route.sent.shape[0], route.row_of_slot.shape[0]
    mine = jnp.full(parts, jax.lax.axis_index(EXPERT) * (slots // parts), jnp.int32)
    arrived = jax.lax.ragged_all_to_all(
        rows,
        jnp.zeros((slots, rows.shape[1]), rows.dtype),
        route.starts,
        route.sent,
        mine,
        route.received,
        axis_name=EXPERT,
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
        axis_name=EXPERT,
    )


# Exchange -> (rows [N, D] to places [P * C, D], and back).
WAYS = {
    "padded": _transposes(_deliver_padded, _return_padded),
    "ragged": _transposes(_deliver_ragged, _return_ragged),
}
