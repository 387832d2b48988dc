"""Reading programs: forms that libtpu 0.0.42 writes, cut down from compiled steps; a program of this machine."""

# ruff: noqa: E501

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemma4_jax.hlo import Collective, Program, travels
from gemma4_jax.sharding import make_mesh

TPU = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.7 (param: f32[5376,128]) -> f32[84,128] {
  %ar = f32[5376,128]{1,0:T(8,128)} all-reduce(%param), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  ROOT %slice = f32[84,128]{1,0:T(8,128)} dynamic-slice(%ar, %zero)
}

%inner_cond (p: (s32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(4), metadata={op_name="a/while"}
  ROOT %less = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%inner_body (p: (s32[])) -> (s32[]) {
  %start = (bf16[1,192]{1,0:T(8,128)(2,1)}, bf16[1,192]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=16, source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}
  %product = bf16[8,192]{1,0} fusion(%x), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"100"}
}

%open_cond (p: (s32[])) -> pred[] {
  ROOT %less.2 = pred[]{:T(512)} compare(%i, %chunks), direction=LT
}

%open_body (p: (s32[])) -> (s32[]) {
  %logits = f32[512,8]{1,0} fusion(%x), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"7"}
  %kernel = f32[8]{0} custom-call(%logits), custom_call_target="tpu_custom_call"
}

%outer_cond (p: (s32[])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(10)
  ROOT %less.3 = pred[]{:T(512)} compare(%i, %constant.2), direction=LT
}

%outer_body (p: (s32[])) -> (s32[]) {
  %while.1 = (s32[]) while(%t), condition=%inner_cond, body=%inner_body
  %rs = f32[84,128]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %gather = bf16[8,128]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %alone = f32[9]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %both = (f32[4]{0}, f32[6]{0}) all-reduce(%p, %q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %while.2 = (s32[]) while(%t), condition=%outer_cond, body=%outer_body
  %while.3 = (s32[]) while(%t), condition=%open_cond, body=%open_body, metadata={op_name="step/token_scores/while"}
}
"""


def test_collectives_of_a_tpu_program():
    found = Program(TPU).collectives({"data": 1, "fsdp": 2, "tensor": 4})
    assert set(found) == {
        Collective("collective-permute", "bf16[1,192]", ("fsdp",), 40, 384),
        Collective("reduce-scatter", "f32[84,128]", ("fsdp",), 10, 84 * 128 * 4),
        Collective("all-gather", "bf16[8,128]", ("tensor",), 1, 2048),
        Collective("all-reduce", "f32[4]", ("fsdp", "tensor"), 1, 40),
    }


def test_operands_that_are_a_tuple_of_their_own_do_not_arrive():
    """As libtpu 0.0.50 writes it, whose offsets and sizes are operands."""
    layout, offsets = "{2,1,0:T(2,128)(2,1)}", ", ".join(["s32[4]{0:T(128)}"] * 4)
    operands = f"(bf16[512,2,128]{layout}, bf16[1024,2,128]{layout}, {offsets})"
    line = (
        f"  %s = ({operands}, bf16[1024,2,128]{layout}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) "
        "ragged-all-to-all-start(%a, %b, %c, %d, %e, %f), replica_groups={{0,1,2,3},{4,5,6,7}}"
    )
    text = f"HloModule m\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}\n"
    assert travels(text) == {("ragged-all-to-all", "bf16[1024,2,128]"): 1}
    (one,) = Program(text).collectives()
    assert one.bytes == 1024 * 2 * 128 * 2


def test_cycles_go_with_trips():
    open_ended = Program(TPU).cycles()
    assert open_ended.total == 40 * 100 + 7
    assert open_ended.without == {
        "collective-permute-start": 40,
        "all-gather": 1,
        "all-reduce": 2,
        "tpu_custom_call": 1,
    }
    assert Program(TPU, {"token_scores": 3}).cycles().total == 40 * 100 + 3 * 7


def test_a_program_of_this_machine():
    """A scan of gathers, as XLA:CPU writes it."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    places = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec())

    def body(x, w):
        return jnp.tanh(x @ w), None

    arrays = jax.device_put(
        (np.ones((5, 16, 16), np.float32), np.ones((8, 16), np.float32)), places
    )
    with jax.set_mesh(mesh):
        step = jax.jit(lambda w, x: jax.lax.scan(body, x, w)[0], out_shardings=places[1])
        text = step.lower(*arrays).compile().as_text()
    counts = travels(text)
    assert counts["all-reduce", "f32[8,16]"] == 5  # partial products, one a layer
    everything = Program(text).collectives(dict(mesh.shape))
    assert {one.axes for one in everything} == {("fsdp",)}
    assert max(one.count for one in everything) == 5
