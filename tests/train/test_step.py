"""The train step: exact accumulation, packing, sparse masks, skipped steps, no [B,T,V] array."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.schema import OptimConfig
from gemma4_jax.build import transformer
from gemma4_jax.model.layers import soft_cap
from gemma4_jax.model.transformer import abstract_params
from train.data.sequences import fill
from train.losses import Loss, make_dpo_loss, make_sft_loss, sequence_logprobs
from train.optim import make_optimizer, make_schedule
from train.step import accumulate, init_state, make_train_step

from .helpers import (
    TINY,
    assert_trees_close,
    random_batch,
    random_pairs,
    random_sequence,
    stack,
    tiny,
)

KEY = jax.random.key(0)


def gradient(loss_fn, params, batch, accumulation=1, frozen=None):
    """Loss and gradient of the mean."""
    loss, grads = jax.jit(lambda p, b: accumulate(loss_fn, accumulation, p, b, KEY, frozen))(
        params, batch
    )
    return loss.sum / loss.weight, jax.tree.map(lambda g: g / loss.weight, grads)


def plain_loss(module, config):
    """The same loss with whole logits, as one would write it first."""

    def loss_fn(params, batch, key, frozen):
        hidden = module.apply(
            {"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"]
        )
        logits = jnp.einsum("btd,vd->btv", hidden, params["embed"]["table"])
        logprobs = jax.nn.log_softmax(soft_cap(logits, config.logit_softcap))
        picked = jnp.take_along_axis(logprobs, batch["targets"][..., None], -1)[..., 0]
        picked = jnp.where(batch["loss_mask"], picked, 0.0)
        weight = batch["loss_mask"].sum().astype(jnp.float32)
        return Loss(sum=-picked.sum(), weight=weight, metrics={})

    return loss_fn


@pytest.mark.parametrize("name", TINY)
def test_accumulation_equals_one_big_batch(name):
    config, module, params = tiny(name)
    # Rows have unequal numbers of targets: means of means would differ.
    batch = random_batch(4, 24, config.vocab_size)
    weights = batch["loss_mask"].sum(-1)
    assert len(set(weights.tolist())) > 1
    loss_fn = make_sft_loss(module, config)
    loss, grads = gradient(loss_fn, params, batch)
    split_loss, split_grads = gradient(loss_fn, params, batch, accumulation=4)
    np.testing.assert_allclose(split_loss, loss, rtol=1e-6)
    assert_trees_close(split_grads, grads, 1e-5)


def test_accumulated_dpo_equals_one_big_batch():
    config, module, params = tiny("tiny-ple")
    batch = random_pairs(4, 24, config.vocab_size)
    loss_fn = make_dpo_loss(module, config, beta=0.1, live=False)
    loss, grads = gradient(loss_fn, params, batch)
    split_loss, split_grads = gradient(loss_fn, params, batch, 2)
    np.testing.assert_allclose(split_loss, loss, rtol=1e-6)
    assert_trees_close(split_grads, grads, 1e-5)


@pytest.mark.parametrize("name", TINY)
def test_packed_rows_equal_separate_rows(name):
    config, module, params = tiny(name)
    rng = np.random.default_rng(3)
    # Longer than the window together, so that leaking across rows or positions would show.
    rows = [random_sequence(rng, length, config.vocab_size) for length in (23, 17, 20)]
    loss_fn = make_sft_loss(module, config)
    separate = stack([fill([row], 24) for row in rows])
    packed = stack([fill(rows, 64)])
    loss, grads = gradient(loss_fn, params, separate)
    packed_loss, packed_grads = gradient(loss_fn, params, packed)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-6)
    assert_trees_close(packed_grads, grads, 1e-5)


@pytest.mark.parametrize("name", TINY)
def test_sparse_masks_give_the_gradients_of_a_plain_loss(name):
    config, module, params = tiny(name)
    chunked, whole = make_sft_loss(module, config), plain_loss(module, config)
    for share in (0.0, 0.1, 1.0):
        batch = random_batch(2, 24, config.vocab_size, share=share)
        loss, grads = gradient(chunked, params, batch)
        plain, plain_grads = gradient(whole, params, batch)
        np.testing.assert_allclose(loss, plain, rtol=1e-5)
        assert_trees_close(grads, plain_grads, 1e-5)
        assert optax.tree.norm(grads) > 1e-3


def make(loss_fn, params, **options):
    config = OptimConfig(peak_lr=1e-2, schedule="constant", warmup_fraction=0, **options)
    optimizer = make_optimizer(config, 10)
    step = make_train_step(loss_fn, optimizer, make_schedule(config, 10))
    return step, init_state(jax.tree.map(jnp.copy, params), optimizer, seed=0)


def test_a_step_lowers_the_loss_and_says_so():
    config, module, params = tiny("tiny-ple")
    batch = random_batch(2, 24, config.vocab_size)
    step, state = make(make_sft_loss(module, config), params)
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch, None)
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    assert int(state.step) == 4
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2)
    assert float(metrics["skipped"]) == 0


def test_grad_norm_is_that_before_clipping():
    config, module, params = tiny("tiny-dense")
    batch = random_batch(2, 24, config.vocab_size)
    loss_fn = make_sft_loss(module, config)
    _, grads = gradient(loss_fn, params, batch)
    step, state = make(loss_fn, params, clip_norm=1e-3)
    _, metrics = step(state, batch, None)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_counts(bad):
    config, module, params = tiny("tiny-dense")
    sft = make_sft_loss(module, config)

    def loss_fn(params, batch, key, frozen):
        loss = sft(params, batch, key, frozen)
        poison = jnp.where(batch["poison"], jnp.nan, 0.0).sum()
        if bad == "gradient":
            # Finite value, infinite slope.
            poison = (
                jnp.sqrt(jnp.abs(params["final_norm"]["scale"][0] * 0.0)) * batch["poison"].sum()
            )
        return Loss(sum=loss.sum + poison, weight=loss.weight, metrics={})

    def batch(poison):
        clean = random_batch(2, 24, config.vocab_size)
        return {**clean, "poison": jnp.asarray([poison, False])}

    step, state = make(loss_fn, params)
    state, _ = step(state, batch(False), None) if bad == "loss" else (state, None)
    before = jax.device_get((state.params, state.opt_state))
    for count in (1, 2):
        state, metrics = step(state, batch(True), None)
        assert float(metrics["bad_steps"]) == float(metrics["skipped"]) == count
    after = jax.device_get((state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    if bad == "loss":
        state, metrics = step(state, batch(False), None)
        assert (float(metrics["bad_steps"]), float(metrics["skipped"])) == (0, 2)
        assert int(state.step) == 4


def test_layer_scalar_never_moves_although_everything_else_does():
    config, module, params = tiny("tiny-ple")
    step, state = make(make_sft_loss(module, config), params, weight_decay=0.1)
    for seed in range(2):
        state, _ = step(state, random_batch(2, 24, config.vocab_size, seed), None)

    def compare(path, before, after):
        same = np.array_equal(before, after)
        assert same == (path[-1].key == "layer_scalar"), path

    jax.tree_util.tree_map_with_path(compare, params, jax.device_get(state.params))


def test_bfloat16_parameters_keep_their_type_and_one_program():
    config, module, params = tiny("tiny-dense")
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    step, state = make(make_sft_loss(module, config), params)
    for seed in range(3):
        state, metrics = step(state, random_batch(2, 24, config.vocab_size, seed), None)
    assert {str(p.dtype) for p in jax.tree.leaves(state.params)} == {"bfloat16"}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {str(m.dtype) for m in moments} == {"float32"}
    assert np.isfinite(metrics["loss"]) and step._cache_size() == 1


def test_live_reference_equals_precomputed():
    config, module, params = tiny("tiny-moe")
    reference = jax.tree.map(lambda p: p * 1.01, params)
    batch = dict(random_pairs(3, 24, config.vocab_size))
    batch["reference_logprobs"] = sequence_logprobs(module, config, reference, batch)
    computed = gradient(make_dpo_loss(module, config, beta=0.3, live=False), params, batch)
    live = gradient(
        make_dpo_loss(module, config, beta=0.3, live=True), params, batch, frozen=reference
    )
    np.testing.assert_allclose(live[0], computed[0], rtol=1e-5)
    assert_trees_close(live[1], computed[1], 1e-4)


def test_first_dpo_step_from_the_reference_itself():
    config, module, params = tiny("tiny-ple")
    batch = dict(random_pairs(3, 24, config.vocab_size))
    batch["reference_logprobs"] = sequence_logprobs(module, config, params, batch)
    step, state = make(make_dpo_loss(module, config, beta=0.1, live=False), params)
    _, metrics = step(state, batch, None)
    assert float(metrics["loss"]) == pytest.approx(np.log(2), abs=1e-5)
    assert float(metrics["rewards/margins"]) == pytest.approx(0, abs=1e-4)


def largest_array(program: str) -> int:
    """Elements of the largest array that a compiled program names."""
    shapes = re.findall(r"[a-z]+[0-9]+\[([0-9,]+)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize("task", ["sft", "dpo", "plain"])
def test_compiled_step_holds_no_array_of_all_logits(task):
    rows, length = 8, 1024
    config, _, _ = tiny("tiny-dense")
    config = dataclasses.replace(config, vocab_size=32_768)
    module = transformer(config)
    shape = (rows // 2, 2, length) if task == "dpo" else (rows, length)
    batch = {
        name: jax.ShapeDtypeStruct(shape, bool if name == "loss_mask" else jnp.int32)
        for name in ("tokens", "targets", "loss_mask", "segment_ids", "positions")
    }
    loss_fn = {
        "sft": make_sft_loss(module, config),
        "dpo": make_dpo_loss(module, config, beta=0.1, live=False),
        "plain": plain_loss(module, config),
    }[task]
    if task == "dpo":
        batch["reference_logprobs"] = jax.ShapeDtypeStruct((rows // 2, 2), jnp.float32)
    optimizer = make_optimizer(OptimConfig(), 10)
    state = jax.eval_shape(
        lambda params: init_state(params, optimizer, 0), abstract_params(config, jnp.float32)
    )
    step = make_train_step(loss_fn, optimizer, make_schedule(OptimConfig(), 10))
    compiled = step.lower(state, batch, None).compile()
    logits = rows * length * config.vocab_size
    holds = largest_array(compiled.as_text()) >= logits
    large = compiled.memory_analysis().temp_size_in_bytes >= 4 * logits
    # The plain loss shows that both checks can tell.
    assert (holds, large) == ((True, True) if task == "plain" else (False, False))
