"""The train step: exact accumulation, packing, sparse masks, skipped steps, no [B,T,V] array."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.losses import PreferenceConfig, SFTLossConfig
from configs.schema import OptimConfig
from gemma4_jax.build import transformer
from gemma4_jax.data.encode import Sequence
from gemma4_jax.model.layers import soft_cap
from gemma4_jax.model.transformer import abstract_params
from train.data.sequences import fill
from train.data.shared_prefix import fill_pairs
from train.losses import (
    Loss,
    batch_totals,
    make_dpo_loss,
    make_sft_loss,
    neftune_noise,
    reference_pass,
)
from train.optim import make_optimizer, make_schedule
from train.step import (
    StepOptions,
    accumulate,
    apply_updates,
    init_state,
    make_train_step,
)

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


@functools.partial(jax.jit, static_argnums=(0, 3))
def loss_and_gradient(loss_fn, params, batch, accumulation=1, frozen=None):
    """The loss with its metrics, and the gradient of the mean."""
    return accumulate(loss_fn, accumulation, params, batch, KEY, frozen)


def gradient(loss_fn, params, batch, accumulation=1, frozen=None):
    """Loss and gradient of the mean."""
    loss, grads = loss_and_gradient(loss_fn, params, batch, accumulation, frozen)
    return loss.value, grads


def norm(tree):
    return np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(jax.device_get(tree))))


def plain_loss(module, config):
    """The same loss with whole logits, as one would write it first."""

    def loss_fn(params, batch, totals, key, frozen):
        hidden = module.apply(
            {"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"]
        )
        logits = jnp.einsum("btd,vd->btv", hidden, params["embed"]["table"])
        logprobs = jax.nn.log_softmax(soft_cap(logits, config.logit_softcap))
        picked = jnp.take_along_axis(logprobs, batch["targets"][..., None], -1)[..., 0]
        picked = jnp.where(batch["loss_mask"], picked, 0.0)
        return Loss(value=-picked.sum() / totals["targets"], metrics={})

    return loss_fn


@functools.cache
def sft_loss(name):
    config, module, _ = tiny(name)
    return make_sft_loss(module, config)


def test_accumulation_equals_one_big_batch():
    name = "tiny-moe"  # its routers have sums and weights of their own
    config, _, params = tiny(name)
    # Rows have unequal numbers of targets: means of means would differ.
    batch = random_batch(4, 24, config.vocab_size)
    assert len(set(batch["loss_mask"].sum(-1).tolist())) > 1
    loss, grads = gradient(sft_loss(name), params, batch)
    split_loss, split_grads = gradient(sft_loss(name), params, batch, accumulation=4)
    np.testing.assert_allclose(split_loss, loss, rtol=1e-6)
    assert_trees_close(split_grads, grads, 1e-5)


@pytest.mark.parametrize("name", TINY)
def test_packed_rows_equal_separate_rows(name):
    config, _, params = tiny(name)
    rng = np.random.default_rng(3)
    # Longer than the window together, so that leaking across rows or positions would show.
    rows = [random_sequence(rng, length, config.vocab_size) for length in (23, 17, 20, 15)]
    loss, grads = gradient(sft_loss(name), params, stack([fill([row], 24) for row in rows]))
    packed_loss, packed_grads = gradient(sft_loss(name), params, stack([fill(rows, 80)]))
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-6)
    assert_trees_close(packed_grads, grads, 1e-5)


@pytest.mark.parametrize("name", TINY)
def test_sparse_masks_give_the_gradients_of_a_plain_loss(name):
    config, module, params = tiny(name)
    whole = plain_loss(module, config)
    for share in (0.0, 0.1, 1.0):
        batch = random_batch(4, 24, config.vocab_size, share=share)
        loss, grads = gradient(sft_loss(name), params, batch)
        plain, plain_grads = gradient(whole, params, batch)
        np.testing.assert_allclose(loss, plain, rtol=1e-5)
        assert_trees_close(grads, plain_grads, 1e-5)
        assert norm(grads) > 1e-3


def test_label_smoothing_and_z_loss_against_whole_logits():
    config, module, params = tiny("tiny-dense")
    batch = random_batch(3, 24, config.vocab_size)
    options = SFTLossConfig(label_smoothing=0.2, z_loss=0.05)

    def whole(params, batch, totals, key, frozen):
        hidden = module.apply(
            {"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"]
        )
        logits = jnp.einsum("btd,vd->btv", hidden, params["embed"]["table"])
        logits = soft_cap(logits, config.logit_softcap)
        logprobs = jax.nn.log_softmax(logits)
        goal = 0.8 * jax.nn.one_hot(batch["targets"], config.vocab_size) + 0.2 / config.vocab_size
        per_token = -(goal * logprobs).sum(-1) + 0.05 * jax.nn.logsumexp(logits, -1) ** 2
        total = jnp.where(batch["loss_mask"], per_token, 0.0).sum()
        return Loss(value=total / totals["targets"], metrics={})

    loss, grads = gradient(make_sft_loss(module, config, options), params, batch)
    wanted, wanted_grads = gradient(whole, params, batch)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert_trees_close(grads, wanted_grads, 1e-5)


def test_neftune_noise_has_the_size_the_paper_gives():
    segment_ids = jnp.asarray([[1] * 50 + [2] * 150 + [0] * 56])
    noise = np.asarray(neftune_noise(KEY, segment_ids, 32, alpha=5.0))[0]
    for part, length in ((noise[:50], 50), (noise[50:200], 150)):
        size = 5 / np.sqrt(length * 32)
        assert 0.98 * size < np.abs(part).max() <= size
        assert abs(part.mean()) < 0.05 * size
        assert part.std() == pytest.approx(size / np.sqrt(3), rel=0.05)
    assert not noise[200:].any()


def test_neftune_changes_with_the_key_and_only_while_asked_for():
    config, module, params = tiny("tiny-dense")
    batch = random_batch(4, 24, config.vocab_size)
    noisy = make_sft_loss(module, config, SFTLossConfig(neftune_alpha=5.0))

    @jax.jit
    def value(key):
        return noisy(params, batch, batch_totals(batch), key, None).value

    values = [float(value(jax.random.key(n))) for n in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert float(gradient(sft_loss("tiny-dense"), params, batch)[0]) not in values


def test_dpo_accumulated_and_with_a_live_reference():
    config, module, params = tiny("tiny-dense")
    batch = dict(random_pairs(4, 24, config.vocab_size))
    reference = jax.tree.map(lambda p: p * 1.01, params)
    batch["reference_logprobs"] = reference_pass(module, config)(reference, batch)
    read = make_dpo_loss(module, config, PreferenceConfig(beta=0.3), live=False)
    loss, grads = gradient(read, params, batch)
    split_loss, split_grads = gradient(read, params, batch, 2)
    np.testing.assert_allclose(split_loss, loss, rtol=1e-6)
    assert_trees_close(split_grads, grads, 1e-5)
    live = make_dpo_loss(module, config, PreferenceConfig(beta=0.3), live=True)
    live_loss, live_grads = gradient(live, params, batch, frozen=reference)
    np.testing.assert_allclose(live_loss, loss, rtol=1e-5)
    assert_trees_close(live_grads, grads, 1e-5)


@pytest.mark.parametrize("name", TINY)
def test_packed_pairs_with_one_prompt_equal_separate_rows(name):
    config, module, params = tiny(name)
    rng = np.random.default_rng(5)
    pairs = []
    for prompt, *answers in ((9, 14, 3), (20, 4, 11), (2, 6, 6)):  # windows are 8 to 16 tokens
        start = random_sequence(rng, prompt, config.vocab_size).tokens
        sides = []
        for length in answers:
            tokens = rng.integers(0, config.vocab_size, length).astype(np.int32)
            mask = np.arange(prompt + length) >= prompt
            sides.append(Sequence(np.concatenate([start, tokens]), mask))
        pairs.append(tuple(sides))
    reference = jnp.asarray(rng.normal(-40, 2, (3, 2)), jnp.float32)
    flat = stack([fill([side], 40) for pair in pairs for side in pair])
    separate = {n: x.reshape(3, 2, 40) for n, x in flat.items()} | {"reference_logprobs": reference}
    # Two rows: of two pairs, and of one beside an empty place.
    packed = stack([fill_pairs(pairs[:2], 72), fill_pairs(pairs[2:], 72)]) | {
        "pair_mask": jnp.asarray([[True, True], [True, False]]),
        "reference_logprobs": jnp.zeros((2, 2, 2))
        .at[0]
        .set(reference[:2])
        .at[1, 0]
        .set(reference[2]),
    }
    mix = PreferenceConfig(types=("sigmoid", "ipo", "sft"), wpo=True)
    loss_fn = make_dpo_loss(module, config, mix, live=False)
    loss, grads = loss_and_gradient(loss_fn, params, separate)
    packed_loss, packed_grads = loss_and_gradient(loss_fn, params, packed)
    np.testing.assert_allclose(packed_loss.value, loss.value, rtol=1e-5)
    assert_trees_close(packed_grads, grads, 1e-5)
    for metric, (total, weight) in loss.metrics.items():
        if metric.startswith("moe/"):  # routers see each prompt once, and count it once
            continue
        np.testing.assert_allclose(
            packed_loss.metrics[metric], (total, weight), rtol=1e-4, atol=1e-4, err_msg=metric
        )


def make(loss_fn, params, step_options=None, **options):
    step_options = step_options or StepOptions()
    config = OptimConfig(peak_lr=1e-2, schedule="constant", warmup_fraction=0, **options)
    optimizer = make_optimizer(config, 10)
    step = make_train_step(loss_fn, optimizer, make_schedule(config, 10), step_options)
    own = jax.tree.map(np.array, params)  # steps donate theirs
    return step, init_state(jax.device_put(own), optimizer, 0, step_options)


def test_steps_train_everything_but_layer_scalars():
    config, _, params = tiny("tiny-ple")
    batch = random_batch(4, 24, config.vocab_size)
    _, grads = gradient(sft_loss("tiny-ple"), params, batch)
    options = StepOptions(group_norms=True)
    step, state = make(sft_loss("tiny-ple"), params, options, weight_decay=0.1, clip_norm=1e-3)
    history = []
    for _ in range(4):
        state, metrics = step(state, batch, None)
        history.append(jax.device_get(metrics))
    losses = [float(m["loss"]) for m in history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    # The norm is that before clipping to 1e-3.
    np.testing.assert_allclose(history[0]["grad_norm"], norm(grads), rtol=1e-5)
    groups = {n: float(v) for n, v in history[0].items() if n.startswith("grad_norm/")}
    assert {"attention", "mlp", "norm", "embed", "per_layer_input", "per_layer_embed"} <= {
        name.removeprefix("grad_norm/") for name in groups
    }
    total = sum(part**2 for part in groups.values()) ** 0.5
    assert total == pytest.approx(float(history[0]["grad_norm"]), rel=1e-5)
    assert float(history[-1]["learning_rate"]) == pytest.approx(1e-2)
    assert int(state.step) == 4 and int(state.skipped) == 0

    def compare(path, before, after):
        assert np.array_equal(before, after) == (path[-1].key == "layer_scalar"), path

    jax.tree_util.tree_map_with_path(compare, params, jax.device_get(state.params))


def test_a_step_that_is_not_finite_changes_nothing_but_counts():
    config, _, params = tiny("tiny-dense")

    def loss_fn(params, batch, totals, key, frozen):
        loss = sft_loss("tiny-dense")(params, batch, totals, key, frozen)
        # At 0 the square root has a finite value and an infinite slope.
        at = jnp.where(batch["steep"][0], 0.0, 1.0)
        root = jnp.sqrt(jnp.abs(params["final_norm"]["scale"][0] * at))
        bad = jnp.where(batch["bad"][0], jnp.nan, 0.0)
        return Loss(value=loss.value + bad + root, metrics={})

    def batch(**extra):
        clean = random_batch(4, 24, config.vocab_size)
        flags = {"bad": jnp.asarray([False]), "steep": jnp.asarray([False])}
        return {**clean, **flags, **{k: jnp.asarray([v]) for k, v in extra.items()}}

    step, state = make(loss_fn, params)
    state, metrics = step(state, batch(), None)
    assert float(metrics["skipped"]) == 0
    before = jax.device_get((state.params, state.opt_state))
    for count, extra in ((1, {"bad": True}), (2, {"steep": True})):
        state, metrics = step(state, batch(**extra), None)
        assert float(metrics["bad_steps"]) == float(metrics["skipped"]) == count
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    after = jax.device_get((state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    state, metrics = step(state, batch(), None)
    assert (float(metrics["bad_steps"]), float(metrics["skipped"])) == (0, 2)
    assert int(state.step) == 4


def test_bfloat16_parameters_keep_their_type_and_one_program():
    config, _, params = tiny("tiny-dense")
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    step, state = make(sft_loss("tiny-dense"), params)
    for seed in range(3):
        state, metrics = step(state, random_batch(4, 24, config.vocab_size, seed), None)
    assert {str(p.dtype) for p in jax.tree.leaves(state.params)} == {"bfloat16"}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {str(m.dtype) for m in moments} == {"float32"}
    assert np.isfinite(metrics["loss"]) and step._cache_size() == 1


def linear_loss(params, batch, totals, key, frozen):
    """The batch's slope times each parameter; the gradient is that slope."""
    value = batch["slope"][0] * (params["q_proj"].sum() + params["scale"].sum()) + batch["add"][0]
    held = {"frozen": (frozen["q_proj"].sum(), jnp.float32(1))} if frozen is not None else {}
    return Loss(value=value, metrics=held)


def number_batch(slope=1.0, add=0.0):
    ones = jnp.ones((1, 2), jnp.int32)
    return {
        "slope": jnp.asarray([slope]),
        "add": jnp.asarray([add]),
        "loss_mask": ones.astype(bool),
        "segment_ids": ones,
    }


NUMBERS = {"q_proj": jnp.full((2, 3), 2.0), "scale": jnp.full(3, 1.0)}


def test_tokens_are_counted_past_32_bits():
    step, state = make(linear_loss, NUMBERS)
    almost = dataclasses.replace(state, tokens=jnp.uint32([2**32 - 3, 0]))
    state, _ = step(almost, number_batch(), None)
    assert state.num_tokens() == 2**32 - 1
    # A step that is skipped has seen its tokens too.
    state, metrics = step(state, number_batch(add=float("nan")), None)
    assert metrics["skipped"] == 1 and state.num_tokens() == 2**32 + 1
    padded = {**number_batch(), "segment_ids": jnp.asarray([[1, 0]])}
    assert step(state, padded, None)[0].num_tokens() == 2**32 + 2


def test_a_moving_average_follows():
    step, state = make(linear_loss, NUMBERS, StepOptions(average_decay=0.9), clip_norm=1e9)
    history = [state.params["scale"]]
    wanted = np.asarray(history[0])
    for _ in range(3):
        state, _ = step(state, number_batch(), None)
        wanted = 0.9 * wanted + 0.1 * np.asarray(state.params["scale"])
    np.testing.assert_allclose(state.average["scale"], wanted, rtol=1e-6)
    assert (np.asarray(state.average["scale"]) > np.asarray(state.params["scale"])).all()


def test_a_reference_that_follows_moves_every_so_many_steps():
    options = StepOptions(sync_every=2, sync_alpha=0.25)
    step, state = make(linear_loss, NUMBERS, options)
    start = np.asarray(state.params["q_proj"])
    for number in range(1, 5):
        before = np.asarray(state.reference["q_proj"])
        state, metrics = step(state, number_batch(), None)
        assert float(metrics["frozen"]) == pytest.approx(before.sum())  # the loss reads it
        policy = np.asarray(state.params["q_proj"])
        wanted = before if number % 2 else 0.75 * before + 0.25 * policy
        np.testing.assert_allclose(state.reference["q_proj"], wanted, rtol=1e-6)
    assert not np.array_equal(state.reference["q_proj"], start)


def test_a_spike_is_skipped_and_leaves_no_trace():
    step, state = make(linear_loss, NUMBERS, StepOptions(spike_sigma=5.0))
    rng = np.random.default_rng(0)

    def noise():
        return number_batch(slope=1e-9, add=3 + 0.1 * rng.normal())

    # As far from the mean before the window is full: not yet judged.
    state, metrics = step(state, number_batch(slope=1e-9, add=4.0), None)
    for _ in range(80):
        state, metrics = step(state, noise(), None)
    assert float(metrics["skipped"]) == 0
    assert float(state.typical_loss) == pytest.approx(3, abs=0.1)
    assert 0.05 < float(state.loss_spread) ** 0.5 < 0.2
    before = jax.device_get(state)
    state, metrics = step(state, number_batch(slope=1.0, add=5.0), None)
    assert (float(metrics["skipped"]), float(metrics["bad_steps"])) == (1, 1)
    for name in ("params", "opt_state", "typical_loss", "loss_spread"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(state, name))
    state, metrics = step(state, noise(), None)
    assert (float(metrics["skipped"]), float(metrics["bad_steps"])) == (1, 0)


def test_stochastic_rounding_is_right_on_average():
    params = {"p": jnp.full(200_000, 1.0, jnp.bfloat16)}
    tiny_update = {
        "p": jnp.full(200_000, 1e-3, jnp.float32)
    }  # a quarter of the next number's distance
    nearest = apply_updates(params, tiny_update, None)["p"]
    assert (nearest == 1).all()
    moved = apply_updates(params, tiny_update, KEY)["p"]
    assert moved.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(moved, np.float32))) == {1.0, 1.0078125}
    assert float(moved.astype(jnp.float32).mean()) == pytest.approx(1.001, abs=2e-5)
    extreme = {"p": jnp.asarray([jnp.inf, -jnp.inf, jnp.nan], jnp.float32)}
    kept = apply_updates({"p": jnp.zeros(3, jnp.bfloat16)}, extreme, KEY)["p"]
    np.testing.assert_array_equal(np.asarray(kept, np.float32), [np.inf, -np.inf, np.nan])


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
        "dpo": make_dpo_loss(module, config, PreferenceConfig(), live=False),
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
