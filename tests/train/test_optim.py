"""Schedules and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.schema import OptimConfig
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import preset
from train.optim import decay_mask, make_optimizer, make_schedule


def rates(steps=100, **options):
    schedule = make_schedule(OptimConfig(peak_lr=1.0, **options), steps)
    return np.asarray([float(schedule(i)) for i in range(steps)])


def test_warmup_climbs_from_the_first_update_on():
    climb = rates(warmup_fraction=0.1)[:11]
    np.testing.assert_allclose(climb, [*np.arange(1, 11) / 10, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1)]
)
def test_fall(schedule, middle):
    fall = rates(schedule=schedule, warmup_fraction=0, final_lr_fraction=0.1)
    assert fall[0] == pytest.approx(1.0)
    assert fall[50] == pytest.approx(middle, abs=1e-6)
    assert fall[-1] == pytest.approx(1 if schedule == "constant" else 0.1, abs=0.01)
    assert (np.diff(fall) <= 0).all()


def test_a_run_of_one_step_has_a_rate():
    assert rates(steps=1) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-ple", "tiny-moe", "31b"])
def test_only_projection_matrices_decay(name):
    mask = decay_mask(abstract_params(preset(name)))
    decays, stays = set(), set()
    jax.tree_util.tree_map_with_path(
        lambda path, flag: (decays if flag else stays).add(path[-1].key), mask
    )
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert decays <= projections | {"router_proj", "out_proj"}
    assert {"table", "scale", "layer_scalar"} <= stays
    assert not {name for name in stays if name.endswith("_proj")}


def test_decay_is_decoupled_from_the_gradient():
    config = OptimConfig(peak_lr=0.1, schedule="constant", warmup_fraction=0, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    params = {"q_proj": jnp.full(3, 2.0), "scale": jnp.full(3, 2.0)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["q_proj"], 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(after["scale"], params["scale"])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_every_optimiser_descends_decays_projections_and_leaves_still_what_has_no_gradient(name):
    config = OptimConfig(
        name=name, peak_lr=0.02, schedule="constant", warmup_fraction=0, weight_decay=0.5
    )
    optimizer = make_optimizer(config, 100)
    key = jax.random.key(0)
    goal = jax.random.normal(key, (2, 1, 16, 4, 8))
    params = {
        "q_proj": jnp.zeros((2, 1, 16, 4, 8), jnp.bfloat16),
        "o_proj": jnp.ones((2, 1, 4, 8, 16)),
        "layer_scalar": jnp.full((2, 1), 0.7),
    }
    state = optimizer.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype("float32")}

    def loss(params):
        return jnp.square(params["q_proj"].astype(jnp.float32) - goal).mean()

    first = loss(params)
    for _ in range(20):
        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
    assert loss(params) < 0.9 * first
    np.testing.assert_array_equal(params["layer_scalar"], np.full((2, 1), 0.7, np.float32))
    # No gradient, so nothing but the decay moved it.
    np.testing.assert_allclose(params["o_proj"], (1 - 0.02 * 0.5) ** 20, rtol=1e-4)


def test_muon_takes_each_layers_projections_as_matrices_of_their_own():
    """Orthogonalised updates: all singular values of every layer's matrix are about alike."""
    config = OptimConfig(
        name="muon", peak_lr=1.0, schedule="constant", warmup_fraction=0, clip_norm=1e9
    )
    optimizer = make_optimizer(config, 10)
    shapes = {"q_proj": (2, 3, 16, 4, 2), "o_proj": (2, 3, 4, 2, 16), "down_proj": (2, 3, 5, 8, 16)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()} | {
        "table": jnp.zeros((32, 8))
    }
    keys = jax.random.split(jax.random.key(0), len(params))
    # Gradients whose layers differ a thousandfold in size.
    scale = 10.0 ** jnp.arange(-1, 2)
    grads = {
        name: jax.random.normal(k, p.shape)
        * (scale.reshape(1, 3, *[1] * (p.ndim - 2)) if name != "table" else 1)
        for (name, p), k in zip(params.items(), keys, strict=True)
    }
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for name, (rows, columns) in {
        "q_proj": (16, 8),
        "o_proj": (8, 16),
        "down_proj": (8, 16),
    }.items():
        singular = np.linalg.svd(
            np.asarray(updates[name]).reshape(-1, rows, columns), compute_uv=False
        )
        assert singular.max() / singular.min() < 2.5, name
    # The table is AdamW's, whose first update is a multiple of the gradient's sign.
    size = np.abs(updates["table"])
    assert size.max() / size.min() < 1.001


def test_adafactor_keeps_next_to_nothing():
    params = {"down_proj": jnp.zeros((2, 1, 256, 512))}
    sizes = {
        name: sum(
            leaf.size
            for leaf in jax.tree.leaves(make_optimizer(OptimConfig(name=name), 10).init(params))
        )
        for name in ("adamw", "adafactor")
    }
    assert sizes["adamw"] > 2 * 256 * 512 * 2 > 100 * sizes["adafactor"]
