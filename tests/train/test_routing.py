"""Router losses against a plain reading of their formulas, frozen routers, and loads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.losses import PreferenceConfig, RouterConfig
from configs.schema import OptimConfig
from gemma4_jax.model.adapters import LoRA, attach, init_adapters
from gemma4_jax.parallel.expert_exchange import lane_rows
from gemma4_jax.sharding import make_mesh
from train.losses import batch_totals, make_dpo_loss, make_sft_loss
from train.optim import make_optimizer, make_schedule
from train.routing import freeze_router, limited
from train.step import accumulate, init_state, make_train_step

from .helpers import random_batch, random_pairs, tiny

KEY = jax.random.key(0)


def values(loss_fn, params, batch, accumulation=1):
    run = jax.jit(lambda p, b: accumulate(loss_fn, accumulation, p, b, KEY, None))
    return run(params, batch)


def by_hand(config, module, params, batch):
    """(balance, z, load [E]) from the router's sown probabilities and indices, layer by layer."""
    _, seen = module.apply(
        {"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"],
        mutable=["intermediates"],
    )  # fmt: skip
    real = np.asarray(batch["segment_ids"] > 0).reshape(-1)
    balance, load = [], []
    for segment in seen["intermediates"].values():
        for slot in segment.values():
            if "moe" not in slot:
                continue
            (probabilities,), (index,) = slot["moe"]["router_probs"], slot["moe"]["topk_index"]
            for p, i in zip(
                np.asarray(probabilities).reshape(-1, real.size, probabilities.shape[-1]),
                np.asarray(index).reshape(-1, real.size, index.shape[-1]),
                strict=True,
            ):
                counts = np.bincount(i[real].reshape(-1), minlength=p.shape[-1])
                shares = counts / counts.sum()
                balance.append(p.shape[-1] * (shares * p[real].mean(0)).sum())
                load.append(p.shape[-1] * shares)
    assert len(balance) == config.num_layers
    return np.mean(balance), np.mean(load, axis=0)


def test_balance_and_load_without_padding():
    config, module, params = tiny("tiny-moe")
    batch = random_batch(3, 24, config.vocab_size)
    assert not (batch["segment_ids"] > 0).all()
    plain, _ = values(make_sft_loss(module, config), params, batch)
    balance, load = by_hand(config, module, params, batch)
    found = {name: float(total / weight) for name, (total, weight) in plain.metrics.items()}
    assert found["moe/balance"] == pytest.approx(balance, rel=1e-5)
    for expert, wanted in enumerate(load):
        assert found[f"moe/load/{expert}"] == pytest.approx(wanted, rel=1e-5)
    assert np.mean(load) == pytest.approx(1)
    assert found["moe/load_min"] <= 1 <= found["moe/load_max"]

    router = RouterConfig(balance_loss=0.3, z_loss=0.02)
    loss, grads = values(make_sft_loss(module, config, router=router), params, batch)
    extra = 0.3 * found["moe/balance"] + 0.02 * found["moe/z"]
    assert float(loss.value) == pytest.approx(float(plain.value) + extra, rel=1e-5)
    # What other tokens stand behind padding is nobody's business.
    padded = dict(batch) | {"tokens": jnp.where(batch["segment_ids"] > 0, batch["tokens"], 7)}
    again, _ = values(make_sft_loss(module, config, router=router), params, padded)
    assert float(again.value) == pytest.approx(float(loss.value), rel=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_what_experts_do_not_take_is_logged_over_the_whole_batch():
    """Against counts of what the routers of every device's row chose, layer by layer."""
    config, module, params = tiny("tiny-moe")
    parts, length, factor = 4, 24, 0.75
    batch = random_batch(parts, length, config.vocab_size)  # a row for each device
    experts, active = config.moe.num_experts, config.moe.num_experts_per_token
    router = RouterConfig(capacity_factor=factor)

    def loss(params, router=router):
        loss_fn = make_sft_loss(module, config, router=router)
        return loss_fn(params, batch, batch_totals(batch), KEY, None)

    def choices(params):
        names = "tokens", "positions", "segment_ids"
        variables, inputs = {"params": params}, (batch[name] for name in names)
        return limited(module, router).apply(variables, *inputs, mutable=["intermediates"])[1]

    assert "moe/dropped" not in jax.eval_shape(lambda p: loss(p, RouterConfig()), params).metrics
    with jax.set_mesh(make_mesh({"expert": parts})):
        found, seen = jax.jit(lambda p: (loss(p), choices(p)))(params)
    total, tokens = found.metrics["moe/dropped"]
    real, lane = (
        np.asarray(batch["segment_ids"] > 0),
        lane_rows(length, active, experts, parts, factor),
    )
    assert lane == 9 and tokens == real.sum() < real.size
    kept = layers = 0
    for path, index in jax.tree_util.tree_leaves_with_path(seen):
        if any(getattr(part, "key", None) == "topk_index" for part in path):
            for layer in np.asarray(index).reshape(-1, *real.shape, active):
                layers += 1
                for row, there in zip(layer, real, strict=True):
                    loads = np.bincount(row[there].reshape(-1) // (experts // parts))
                    kept += np.minimum(loads, lane).sum()
    share = 1 - kept / (layers * active * real.sum())
    assert layers == config.num_layers and 0.01 < share < 0.6
    assert float(total / tokens) == pytest.approx(share, rel=1e-5)


def test_a_step_down_the_balance_loss_evens_the_load():
    config, module, params = tiny("tiny-moe")
    batch = random_batch(4, 24, config.vocab_size)
    router = RouterConfig(balance_loss=1.0)

    def balance(params):
        found = make_sft_loss(module, config, router=router)(
            params, batch, batch_totals(batch), KEY, None
        )
        plain = make_sft_loss(module, config)(params, batch, batch_totals(batch), KEY, None)
        return found.value - plain.value

    before, grads = jax.jit(jax.value_and_grad(balance))(params)
    after = jax.jit(balance)(jax.tree.map(lambda p, g: p - 0.02 * g, params, grads))
    assert 1 < float(after) < float(before)


def test_micro_batches_weigh_by_their_tokens():
    config, module, params = tiny("tiny-moe")
    batch = random_batch(4, 24, config.vocab_size)
    router = RouterConfig(balance_loss=1.0)
    loss_fn = make_sft_loss(module, config, router=router)
    split, _ = values(loss_fn, params, batch, accumulation=4)
    tokens = np.asarray((batch["segment_ids"] > 0).sum(-1), float)
    parts = [
        by_hand(config, module, params, {n: x[i : i + 1] for n, x in batch.items()})
        for i in range(4)
    ]
    total, weight = split.metrics["moe/balance"]
    wanted = np.average([balance for balance, _ in parts], weights=tokens)
    assert float(total / weight) == pytest.approx(wanted, rel=1e-5)
    plain, _ = values(make_sft_loss(module, config), params, batch)
    assert float(split.value) == pytest.approx(float(plain.value) + wanted, rel=1e-5)


def test_a_frozen_router_beside_adapters():
    config, _, params = tiny("tiny-moe")
    lora = LoRA(rank=2, targets=("experts",))
    joined = attach(params, init_adapters(config, lora, 0, params), lora)

    def total(params):
        leaves = jax.tree_util.tree_leaves_with_path(freeze_router(params))
        return sum(leaf.sum() for path, leaf in leaves if path[0].key == "segment_0")

    moved = jax.tree.map(lambda g: bool(g.any()), jax.grad(total)(joined))
    slot = moved["segment_0"]["slot_0"]["moe"]
    assert not slot["router_proj"] and slot["gate_proj"].lora_a


def test_a_frozen_router_stays_bit_for_bit_while_experts_learn():
    config, module, params = tiny("tiny-moe")
    router = RouterConfig(freeze=True, balance_loss=1.0)
    optim = OptimConfig(peak_lr=1e-2, warmup_fraction=0, weight_decay=0.1)
    optimizer = make_optimizer(optim, 10, freeze_router=True)
    loss_fn = make_dpo_loss(module, config, PreferenceConfig(), live=False, router=router)
    step = make_train_step(loss_fn, optimizer, make_schedule(optim, 10))
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, 0)
    state, _ = step(state, random_pairs(2, 24, config.vocab_size), None)

    def compare(path, before, after):
        name = path[-1].key
        still = name in ("router_proj", "router_scale", "expert_scale", "layer_scalar")
        assert np.array_equal(before, after) == still, path

    jax.tree_util.tree_map_with_path(compare, params, state.params)
