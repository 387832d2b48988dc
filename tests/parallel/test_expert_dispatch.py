"""Experts on the devices that hold them give what all experts on every device give; what travels is counted."""

import functools
import math
import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from gemma4_jax.errors import UserError
from gemma4_jax.hlo import travels
from gemma4_jax.model.moe import MoE, experts_of_tokens
from gemma4_jax.model.weights import Adapted, quantize
from gemma4_jax.parallel.expert_dispatch import dispatch, dispatch_within
from gemma4_jax.parallel.expert_exchange import lane_rows, route
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul
from gemma4_jax.presets import preset
from gemma4_jax.sharding import AXES, make_mesh, shardings, tokens_spec

from ..train.helpers import assert_trees_close

BATCH, TOKENS, ACTIVE, EXPERTS, D, F, RANK = 8, 6, 2, 8, 16, 12, 3
WIDE, NARROW = ("experts", "embed", "expert_mlp"), ("experts", "expert_mlp", "embed")


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@functools.cache
def problem(kind="plain"):
    """What a layer is trained on (tokens, weights, floats of matrices), its constants, and a cotangent."""
    rng = np.random.default_rng(0)

    def matrix(*shape):
        base = draw(rng, *shape) / shape[1] ** 0.5
        if kind == "plain":
            return base
        base = quantize(base, "nf4" if kind == "nf4" else "int8", lead=1, inputs=1)
        if kind == "nf4":
            return base
        a, b = draw(rng, EXPERTS, shape[1], RANK), draw(rng, EXPERTS, RANK, shape[2])
        return Adapted(base, a, b, scale=0.5)

    matrices = matrix(EXPERTS, D, F), matrix(EXPERTS, D, F), matrix(EXPERTS, F, D)
    floats = jax.tree.map(lambda x: x if x.dtype == jnp.float32 else None, matrices)
    codes = jax.tree.map(lambda x: None if x.dtype == jnp.float32 else x, matrices)
    normed, ct = draw(rng, BATCH, TOKENS, D), draw(rng, BATCH, TOKENS, D)
    weights = jnp.abs(draw(rng, BATCH, TOKENS, ACTIVE))
    return (normed, weights, floats), codes, ct


def routings():
    """Indices [B, T, A] by name, from even to as uneven as there can be."""
    even = np.random.default_rng(1).random((BATCH, TOKENS, EXPERTS)).argsort(-1)[..., :ACTIVE]
    two = np.broadcast_to([5, 4], even.shape)  # two experts, both of one part
    odd = even | 1  # no even expert has a token
    odd[..., 1] = (odd[..., 0] + 2) % EXPERTS
    rows = np.arange(BATCH)[:, None, None]  # all tokens of a row to the same two
    by_row = np.broadcast_to((rows + np.asarray([0, 3])) % EXPERTS, even.shape)
    found = {"even": even, "two": two, "odd": odd, "by row": by_row}
    return {name: jnp.asarray(index, jnp.int32) for name, index in found.items()}


@functools.cache
def with_gradients(routed, product=blocked_grouped_matmul):
    """jit of (trained, index, codes, ct) -> ((loss, output), gradients)."""

    def loss(trained, index, codes, ct):
        normed, weights, floats = trained
        matrices = jax.tree.map(
            lambda a, b: b if a is None else a, floats, codes, is_leaf=lambda x: x is None
        )
        out, _ = routed(normed, weights, index, matrices, product, jnp.float32)
        return (out * ct).sum(), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def emulated_ragged_all_to_all(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """`jax.lax.ragged_all_to_all`, which XLA:CPU lacks; no number where the two sides disagree."""
    mine = operand, input_offsets, send_sizes, output_offsets
    operands, starts, sizes, places = jax.lax.all_gather(mine, axis_name)
    me, at = jax.lax.axis_index(axis_name), jnp.arange(output.shape[0])
    starts, sizes, places = (x[:, me] for x in (starts, sizes, places))
    inside = (at >= places[:, None]) & (at < (places + sizes)[:, None])
    source = inside.argmax(0)
    rows = operands[source, at - places[source] + starts[source]]
    rows = jnp.where((sizes == recv_sizes).all(), rows, jnp.nan)
    return jnp.where(inside.any(0)[:, None], rows, output)


@jax.custom_vjp
def careless_product(rows, weights, group_sizes):
    """A grouped product that leaves no numbers in rows past the last group, and bears none there."""
    return spoiled(blocked_grouped_matmul(rows, weights, group_sizes), group_sizes)


def spoiled(rows, group_sizes):
    return jnp.where(jnp.arange(rows.shape[0])[:, None] < group_sizes.sum(), rows, jnp.nan)


def _careless_backward(saved, grad):
    rows, weights, group_sizes = saved
    _, pull = jax.vjp(blocked_grouped_matmul, rows, weights, group_sizes)
    d_rows, d_weights, _ = pull(grad)
    return spoiled(d_rows, group_sizes), d_weights + 0 * (rows.sum() + grad.sum()), None


careless_product.defvjp(lambda *args: (careless_product(*args), args), _careless_backward)


def ragged(*args):
    return dispatch(*args, exchange="ragged", capacity_factor=1.0)


class Case(NamedTuple):
    mesh: dict[str, int]
    kind: str = "plain"
    routed: object = dispatch
    product: object = blocked_grouped_matmul


CASES = {
    "one turn": Case({"expert": 2}, "nf4"),
    "turns": Case({"expert": 4, "data": 2}),
    "ragged": Case({"expert": 4, "data": 2}, "plain", ragged, careless_product),
    "cut widths": Case({"expert": 2, "tensor": 2, "fsdp": 2}),
    "cut rows": Case({"expert": 2, "seq": 2, "tensor": 2}, "qlora"),
    "one expert each": Case({"expert": 8}, "qlora", ragged, careless_product),
    "no exchange": Case({"tensor": 2}, "qlora"),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_all_experts_everywhere(name, monkeypatch):
    """Output and gradients of tokens, weights and matrices; one program for all routings."""
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", emulated_ragged_all_to_all)
    case = CASES[name]
    trained, codes, ct = problem(case.kind)
    for index in routings().values():
        expected = with_gradients(experts_of_tokens)(trained, index, codes, ct)
        with jax.set_mesh(make_mesh(case.mesh)):
            found = with_gradients(case.routed, case.product)(trained, index, codes, ct)
        assert_trees_close(found, expected, 1e-5)


@pytest.mark.parametrize("lane", [2, 5, 40])
def test_routes(lane):
    """Played by hand over all parts and turns, every row is delivered once, among its expert's, and returns."""
    parts, experts, rows = 4, 12, 40
    rng = np.random.default_rng(lane)
    choice = np.minimum(rng.geometric(0.3, (parts, rows)), experts) - 1
    choice[1] = 7  # all to one part
    choice.sort()
    counts = jnp.stack([jnp.bincount(c, length=experts) for c in choice])
    fullest = counts.reshape(parts, parts, -1).sum(-1).max()
    routes = jax.jit(
        jax.vmap(lambda me, turn: route(counts, me, turn, rows=rows, lane=lane), (0, None))
    )
    names = np.arange(parts * rows).reshape(parts, rows)
    nothing, delivered, returned = -1, [], np.full((parts, rows), -1)
    for turn in range(-(-fullest // lane)):
        r = jax.tree.map(np.asarray, routes(jnp.arange(parts), turn))

        def pick(x, at):
            return np.stack([np.append(own, nothing)[i] for own, i in zip(x, at, strict=True)])

        def exchanged(slots):
            return slots.reshape(parts, parts, lane).swapaxes(0, 1).reshape(parts, -1)

        slots = exchanged(pick(names, r.row_of_slot))
        # The ragged exchange fills the same slots.
        sliced = np.full_like(slots, nothing)
        for source, to in np.ndindex(parts, parts):
            start, size = r.starts[source, to], r.sent[source, to]
            assert size == r.received[to, source] and start == r.returns[to, source]
            sliced[to, source * lane :][:size] = names[source, start:][:size]
        np.testing.assert_array_equal(sliced, slots)

        places = pick(slots, r.slot_of_place)
        for part in range(parts):
            held = places[part][places[part] != nothing]
            at = np.repeat(np.arange(experts // parts), r.group_sizes[part])
            np.testing.assert_array_equal(choice.reshape(-1)[held], at + part * (experts // parts))
            assert (places[part][len(held) :] == nothing).all()
            delivered.extend(held)
        np.testing.assert_array_equal(pick(places, r.place_of_slot), slots)
        home = pick(exchanged(slots), r.slot_of_row)
        returned = np.where(home == nothing, returned, home)
    assert sorted(delivered) == list(range(parts * rows))
    np.testing.assert_array_equal(returned, names)


@pytest.mark.parametrize("padded", [False, True])
def test_what_does_not_fit_a_lane_is_dropped_and_counted(padded):
    """Played by hand. Padding takes no room and is not counted."""
    (normed, weights, floats), _, _ = problem()
    lengths = np.arange(BATCH) % TOKENS + 1 if padded else np.full(BATCH, TOKENS)
    real = np.arange(TOKENS) < lengths[:, None]
    mesh = {"expert": 4, "data": 2}  # a row for each device
    lane = lane_rows(TOKENS, ACTIVE, EXPERTS, 4, 1.0)
    assert lane == 3

    @jax.jit
    def run(index):
        args = normed, weights, index, floats, blocked_grouped_matmul, jnp.float32
        return dispatch_within(1.0)(*args, jnp.asarray(real) if padded else None)

    for name, index in routings().items():
        kept = np.ones(index.shape, np.float32)
        for row in range(BATCH):
            flat = np.asarray(index[row]).reshape(-1)
            for part in range(4):
                mine = [
                    n
                    for n in np.argsort(flat, kind="stable")
                    if flat[n] // 2 == part and real[row, n // ACTIVE]
                ]
                kept[row].reshape(-1)[mine[lane:]] = 0
        kept *= real[..., None]
        expected = experts_jit(normed, weights * kept, index, floats)
        with jax.set_mesh(make_mesh(mesh)):
            (out, dropped), (again, _) = run(index), run(index)
        assert dropped == (kept[real] == 0).sum() and (name == "even" or dropped > 0)
        assert_trees_close(out, expected, 1e-5)
        np.testing.assert_array_equal(out, again)


def test_lanes_that_hold_any_routing_drop_nothing():
    trained, codes, ct = problem()
    with jax.set_mesh(make_mesh({"expert": 4, "data": 2})):
        for index in routings().values():
            every = with_gradients(dispatch)(trained, index, codes, ct)
            found = with_gradients(dispatch_within(4.0))(trained, index, codes, ct)
            assert_trees_close(found, every, 1e-6)


@jax.jit
def experts_jit(normed, weights, index, matrices):
    product = blocked_grouped_matmul
    return experts_of_tokens(normed, weights, index, matrices, product, jnp.float32)[0]


def placed(trained, index, mesh, struct=False):
    """The arguments where a training step has them."""

    def put(x, names):
        return (
            (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=names))
            if struct
            else jax.device_put(x, names)
        )

    tokens = NamedSharding(mesh, tokens_spec())
    normed, weights, floats = trained
    floats = tuple(
        put(x, shardings(names, x, mesh))
        for x, names in zip(floats, (WIDE, WIDE, NARROW), strict=True)
    )
    return (put(normed, tokens), put(weights, tokens), floats), put(index, tokens)


def test_what_travels():
    """Lanes of rows and results, and the counts: no expert's matrix over `expert`, and no tokens else."""
    trained, codes, ct = problem()
    mesh = make_mesh({"expert": 4, "data": 2})
    with jax.set_mesh(mesh):
        trained, index = placed(trained, routings()["even"], mesh)
        step = with_gradients(dispatch).lower(trained, index, codes, ct).compile()
    found = travels(step.as_text())
    lane = math.ceil(2.0 * TOKENS * ACTIVE / 4)
    # Four lanes a time, to the experts and back, forward and backward; and once more in the turns after the
    # first, whose backward pass fetches the rows again.
    assert found.pop(("all-to-all", f"f32[{lane},{D}]")) == (2 + 2) + (2 + 3)
    assert found.pop(("all-gather", f"s32[4,{EXPERTS}]")) == 1
    # Over `data`, of gradients; of the loss; and of the number of turns.
    assert found.pop(("all-reduce", f"f32[{EXPERTS // 4},{D},{F}]")) == 1
    assert {name for name, _ in found} == {"all-reduce"}


def test_where_the_mesh_does_not_cut_the_tokens():
    """A last row, and no mesh: computed as without."""
    trained, codes, ct = problem()
    (normed, weights, floats), index = trained, routings()["even"]
    part = (normed[:3], weights[:3], floats), index[:3], codes, ct[:3]
    expected = with_gradients(experts_of_tokens)(*part)
    assert_trees_close(with_gradients(dispatch)(*part), expected, 0)
    with jax.set_mesh(make_mesh({"expert": 4})):
        assert_trees_close(with_gradients(dispatch)(*part), expected, 1e-5)


def test_experts_that_do_not_divide():
    (normed, weights, floats), _, _ = problem()
    six = jax.tree.map(lambda x: x[:6], floats)
    args = normed, weights, routings()["even"], six, blocked_grouped_matmul, jnp.float32
    with (
        jax.set_mesh(make_mesh({"expert": 4})),
        pytest.raises(
            UserError, match=r"mesh.expert is 4, which does not divide the 6 of axis 'experts'"
        ),
    ):
        dispatch(*args)


def test_every_part_drops_inputs_of_its_own():
    """Of equal rows through equal experts, only the draw of an adapter's dropout tells parts apart."""
    rng = np.random.default_rng(0)
    key = jax.random.key_data(jax.random.key(0))

    def matrix(inputs, outputs):
        one = draw(rng, 1, inputs, outputs), draw(rng, 1, inputs, RANK), draw(rng, 1, RANK, outputs)
        base, a, b = (jnp.repeat(x, EXPERTS, 0) for x in one)
        return Adapted(base, a, b, key=key, dropout=0.5)

    matrices = matrix(D, F), matrix(D, F), matrix(F, D)
    normed = jnp.broadcast_to(draw(rng, D), (BATCH, TOKENS, D))
    index = jnp.broadcast_to(jnp.arange(BATCH)[:, None, None], (BATCH, TOKENS, 1))
    with jax.set_mesh(make_mesh({"expert": 4})):
        run = jax.jit(dispatch, static_argnums=(4, 5))
        out, _ = run(
            normed, jnp.ones(index.shape), index, matrices, blocked_grouped_matmul, jnp.float32
        )
    assert len(np.unique(np.asarray(out).reshape(-1, D), axis=0)) == BATCH * TOKENS


def test_routing_sums_are_of_the_whole_batch():
    config = preset("tiny-moe")
    moe = MoE(config, jnp.float32, blocked_grouped_matmul, dispatch)
    rng = np.random.default_rng(0)
    stream = draw(rng, BATCH, TOKENS, config.d_model)
    real = jnp.asarray(rng.random((BATCH, TOKENS)) < 0.7)
    params = jax.jit(moe.init)(jax.random.key(0), stream, stream)["params"]

    def sums(params, stream, real):
        variables = {"params": params}
        return moe.apply(variables, stream, stream, real, mutable=["routing"])[1]["routing"]["sums"]

    expected = jax.jit(sums)(params, stream, real)
    assert expected["tokens"] == real.sum() and expected["chosen"].sum() == 2 * real.sum()
    mesh = make_mesh({"expert": 4, "seq": 2})
    with jax.set_mesh(mesh):
        tokens = NamedSharding(mesh, tokens_spec())
        found = jax.jit(sums)(params, jax.device_put(stream, tokens), real)
    assert_trees_close(found, expected, 1e-5)


@pytest.mark.slow
def test_a_tpu_moves_routed_rows_alone(monkeypatch, no_compilation_cache):
    """What the ragged exchange compiles to, for eight chips that are not there."""
    pytest.importorskip("libtpu", reason="needs libtpu: pip install -e '.[tpu]'")
    from jax.experimental import topologies

    for name, value in [
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ]:
        monkeypatch.setitem(os.environ, name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x4")
    shape = [{"expert": 4, "fsdp": 2}.get(axis, 1) for axis in AXES]
    devices = np.asarray(topology.devices).reshape(shape)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    tokens, d_model, width = 256, 256, 128
    trained = (
        jax.ShapeDtypeStruct((BATCH, tokens, d_model), jnp.bfloat16),
        jax.ShapeDtypeStruct((BATCH, tokens, ACTIVE), jnp.float32),
        tuple(
            jax.ShapeDtypeStruct((EXPERTS, *shape), jnp.float32)
            for shape in ((d_model, width), (d_model, width), (width, d_model))
        ),
    )
    index = jax.ShapeDtypeStruct((BATCH, tokens, ACTIVE), jnp.int32)
    ct = jax.ShapeDtypeStruct((BATCH, tokens, d_model), jnp.bfloat16)

    def routed(normed, weights, index, matrices, product, dtype):
        return dispatch(normed, weights, index, matrices, product, jnp.bfloat16, exchange="ragged")

    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        trained, index = placed(trained, index, mesh, struct=True)
        step = with_gradients(routed, jax.lax.ragged_dot).lower(trained, index, (None,) * 3, ct)
        text = step.compile().as_text()
    found = travels(text)
    rows = {
        int(re.search(r"\d+(?=,)", shape).group()): times
        for (name, shape), times in found.items()
        if name == "ragged-all-to-all"
    }
    # Into buffers of 4 lanes, and back to a device's own pairs; in the loops as in `test_what_travels`.
    pairs = tokens * ACTIVE
    assert rows == {2 * pairs: (1 + 1) + (1 + 2), pairs: (1 + 1) + (1 + 1)}
    # Of experts, a device gathers its own two over fsdp.
    gathered = {shape for name, shape in found if name == "all-gather"}
    assert gathered == {f"bf16[2,{d_model},{width}]", f"bf16[2,{width},{d_model}]"}
    assert "all-to-all" not in {name for name, _ in found}
