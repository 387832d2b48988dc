"""Lookups in tables that a mesh cuts are plain lookups, forward and backward, and hold nobody else's rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma4_jax.collectives import look_up
from gemma4_jax.hlo import Program
from gemma4_jax.sharding import make_mesh, spec, tokens_spec

V, L, P, B, T = 64, 3, 8, 8, 16
TABLES = {
    "token": (("vocab", "embed"), (V, 16)),
    "per_layer": (("per_layer_vocab", None), (V, L * P)),
}


def placed(kind, mesh):
    names, shape = TABLES[kind]
    rng = np.random.default_rng(0)
    table = rng.normal(size=shape).astype(np.float32)
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    cut = NamedSharding(mesh, spec(names, shape, mesh))
    places = cut, NamedSharding(mesh, tokens_spec())
    return names, jax.device_put((table, tokens), places), (table, tokens), cut


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 8}, {"data": 2, "fsdp": 2, "expert": 2}, {"expert": 2, "seq": 2, "tensor": 2}],
)
@pytest.mark.parametrize("kind", TABLES)
def test_a_lookup_on_a_mesh_is_a_lookup(kind, sizes, dtype):
    mesh = make_mesh(sizes)
    names, arguments, (table, tokens), cut = placed(kind, mesh)
    weights = np.random.default_rng(1).normal(size=(B, T, *table.shape[1:])).astype(np.float32)

    def value(table, tokens):
        found = look_up(table, names, tokens, dtype)
        return (found.astype(jnp.float32) * weights).sum(), found

    with jax.set_mesh(mesh):
        both = jax.value_and_grad(value, has_aux=True)
        (_, found), grad = jax.jit(both, out_shardings=(None, cut))(*arguments)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, table[tokens].astype(dtype))
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, weights.astype(dtype).astype(np.float32))
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-5)


def test_rows_of_a_table_cut_by_rows_are_nowhere_together():
    """Of 35 layers and 8192 tokens a device they would be 19 GB on 64 devices."""
    mesh = make_mesh({"fsdp": 8})
    names, arguments, _, cut = placed("per_layer", mesh)

    def value(table, tokens):
        return jnp.square(look_up(table, names, tokens, jnp.float32)).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(value), out_shardings=cut)
        program = Program(gradient.lower(*arguments).compile().as_text())
    assert max(program.sizes()) <= max(V // 8, B // 8 * T) * L * P
    shapes = {one.shape for one in program.collectives() if one.operation != "all-gather"}
    assert shapes == {f"f32[{B // 8},{T},{L * P}]"}
