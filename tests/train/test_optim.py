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
