"""LoRA through the model and the step: equal to merged weights, every target trained, nothing else touched."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.losses import PreferenceConfig
from configs.schema import OptimConfig
from gemma4_jax.build import transformer
from gemma4_jax.errors import UserError
from gemma4_jax.model.adapters import (
    TARGETS,
    LoRA,
    Quantizer,
    abstract_adapters,
    adapted_matrices,
    adapter_axes,
    attach,
    init_adapters,
    matrices,
)
from gemma4_jax.model.cache import init_cache
from gemma4_jax.model.transformer import Transformer, abstract_params
from gemma4_jax.model.weights import Adapted, Quantized, dense
from gemma4_jax.presets import preset
from train.data.sequences import fill
from train.lora import adapted_loss
from train.losses import make_dpo_loss, make_sft_loss, sequence_logprobs
from train.optim import decay_mask, make_optimizer, make_schedule
from train.step import StepOptions, accumulate, init_state, make_train_step

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
ALL = LoRA(rank=4, alpha=6.0, targets=TARGETS)


def noisy(config, lora, params, seed=1, size=0.05):
    """Adapters of which B is not 0 (and magnitudes are not the columns' lengths)."""
    rng = np.random.default_rng(seed)

    def move(path, leaf):
        noise = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
        return leaf * (1 + 0.1 * noise) if path[-1].key == "magnitude" else leaf + size * noise

    fresh = init_adapters(config, lora, 0, params)
    return jax.tree_util.tree_map_with_path(move, fresh)


def is_weight(node):
    return isinstance(node, Adapted | Quantized)


def merged(tree):
    return jax.tree.map(dense, tree, is_leaf=is_weight)


def packed_batch(config):
    """Two rows of three documents each, beyond the window together."""
    rng = np.random.default_rng(3)
    rows = [[random_sequence(rng, n, config.vocab_size) for n in (19, 23, 20)] for _ in range(2)]
    return stack([fill(row, 64) for row in rows])


@functools.cache
def module_of(name, remat="none"):
    return transformer(tiny(name)[0], remat=remat)


@functools.cache
def forward(name):
    return jax.jit(
        lambda p, b: module_of(name).apply(
            {"params": p}, b["tokens"], b["positions"], b["segment_ids"]
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_fresh_adapters_change_no_bit(name):
    config, _, params = tiny(name)
    batch = packed_batch(config)
    joined = attach(params, init_adapters(config, ALL, 0, params), ALL)
    assert any(map(is_weight, jax.tree.leaves(joined, is_leaf=is_weight)))
    # Operation by operation: XLA fuses two programs in two ways, which moves last bits.
    short = {"tokens": batch["tokens"][:1, :6]}
    module = Transformer(config)  # with XLA's own grouped product: ours wants a traced index
    with jax.disable_jit():
        ours, theirs = (module.apply({"params": p}, **short) for p in (joined, params))
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (forward(name)(p, batch) for p in (joined, params))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, merged(joined), params)


@pytest.mark.parametrize(
    ("name", "remat", "variant"),
    [
        *((name, "none", {}) for name in TINY),
        *((name, "full", {}) for name in TINY),
        # As strong as the others: 3 / sqrt(4) is 6 / 4. Not on tiny-ple, whose gradients are sums that
        # cancel: with DoRA, rounding reaches 1.2e-5 of a leaf on one version of jax.
        ("tiny-dense", "dots", {"dora": True, "rslora": True, "alpha": 3.0}),
        ("tiny-dense", "full", {"dora": True}),
    ],
)
def test_loss_and_gradients_are_those_of_merged_weights(name, remat, variant):
    """One differentiates through the products with A and B, the other through W + s A B as one array."""
    config, _, params = tiny(name)
    lora = dataclasses.replace(ALL, **variant)
    adapters, batch = noisy(config, lora, params), packed_batch(config)
    plain = make_sft_loss(module_of(name), config)
    loss_fn = adapted_loss(make_sft_loss(module_of(name, remat), config), lora)

    def whole(adapters, batch, totals, key, frozen):
        return plain(merged(attach(frozen, adapters, lora)), batch, totals, key, None)

    run = functools.partial(jax.jit, static_argnums=0)(
        lambda fn, a, b, base: accumulate(fn, 1, a, b, KEY, base)
    )
    loss, grads = run(loss_fn, adapters, batch, params)
    expected, expected_grads = run(whole, adapters, batch, params)
    np.testing.assert_allclose(loss.value, expected.value, rtol=1e-5)
    assert_trees_close(grads, expected_grads, 1e-5)
    base, _ = run(whole, init_adapters(config, lora, 0, params), batch, params)
    # Adapters matter a hundred times more than the tolerance.
    assert abs(float(base.value - expected.value)) > 1e-3 * abs(float(base.value))


@pytest.mark.parametrize("name", TINY)
def test_decoding_over_a_cache_uses_the_adapters_too(name):
    config, module, params = tiny(name)
    joined = attach(params, noisy(config, ALL, params), ALL)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 512, (2, 12)), jnp.int32)
    expected = module.apply({"params": joined}, tokens)
    count = jnp.full((2,), 12, jnp.int32)
    extend = jax.jit(lambda p, t, c: module.apply({"params": p}, t, count, c, method="extend")[0])
    hidden = extend(joined, tokens, init_cache(config, 2, 16))
    np.testing.assert_allclose(hidden, expected, atol=2e-4)
    base = extend(params, tokens, init_cache(config, 2, 16))
    assert np.abs(np.asarray(hidden - base)).max() > 0.1


@pytest.mark.parametrize("name", TINY)
def test_a_step_moves_every_adapter_and_nothing_else(name):
    config, module, params = tiny(name)
    before = jax.tree.map(np.array, params)
    adapters = init_adapters(config, ALL, 0, params)
    optim = OptimConfig(peak_lr=1e-3, schedule="constant", warmup_fraction=0)
    optimizer = make_optimizer(optim, 10)
    loss_fn = adapted_loss(make_sft_loss(module, config), ALL)
    step = make_train_step(
        loss_fn, optimizer, make_schedule(optim, 10), StepOptions(accumulation=2)
    )
    state = init_state(jax.tree.map(jnp.copy, adapters), optimizer, seed=0)
    losses = []
    for _ in range(3):
        state, metrics = step(state, random_batch(4, 24, config.vocab_size), params)
        losses.append(float(metrics["loss"]))
        if len(losses) == 1:
            first = jax.device_get(state.params)
    assert losses == sorted(losses, reverse=True)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert jax.tree.structure(first) == jax.tree.structure(abstract_adapters(config, ALL))
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        # The first gradient of A is 0 because B is: then AdamW leaves it alone.
        moved = np.asarray(leaf) != 0
        if path[-1].key == "lora_b":
            # Of every layer and every expert that saw a token.
            assert moved.any(axis=(-1, -2)).all(), jax.tree_util.keystr(path)
    after = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, adapters)
    assert all(jax.tree.leaves(after))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_reference_without_adapters_is_a_live_reference(name):
    """The base with adapters off, as reference, against a model of its own beside the same policy.

    That the policy is the merged one is another test's: here rounding of W + s A B would hide the reference's.
    """
    config, module, params = tiny(name)
    batch = dict(random_pairs(2, 24, config.vocab_size))
    batch["reference_logprobs"] = sequence_logprobs(module, config, params, batch)
    live, read = (
        make_dpo_loss(module, config, PreferenceConfig(beta=0.3), live=live)
        for live in (True, False)
    )

    def apart(adapters, batch, totals, key, frozen):
        base, reference = frozen
        return live(attach(base, adapters, ALL), batch, totals, key, reference)

    run = functools.partial(jax.jit, static_argnums=0)(
        lambda fn, a, b, frozen: accumulate(fn, 1, a, b, KEY, frozen)
    )
    moved, copy = noisy(config, ALL, params), jax.tree.map(jnp.copy, params)
    expected, expected_grads = run(apart, moved, batch, (params, copy))
    assert optax.tree.norm(expected_grads) > 1e-3
    # Read from the batch it is one more program to compile: once is enough.
    for loss_fn in (live, read) if name == "tiny-dense" else (live,):
        loss, grads = run(adapted_loss(loss_fn, ALL), moved, batch, params)
        np.testing.assert_allclose(loss.value, expected.value, rtol=1e-5)
        assert_trees_close(grads, expected_grads, 1e-6 if loss_fn is live else 1e-5)
    fresh, _ = run(adapted_loss(live, ALL), init_adapters(config, ALL, 0, params), batch, params)
    np.testing.assert_allclose(fresh.value, np.log(2), rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_targets_never_reach_the_router_or_a_table(name):
    config, _, _ = tiny(name)
    found = {m.path for m in adapted_matrices(config, ALL)}
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    matrices_ = {p for p in found if p[-1] in names | {"out_proj", "projection"}}
    assert found == matrices_
    # Everything of two axes or more per layer is adapted, but for tables and router.
    rest = {
        tuple(k.key for k in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config))
        if leaf.ndim >= (4 if path[0].key.startswith("segment_") else 2)
    } - found
    assert {p[-1] for p in rest} <= {"table", "router_proj"}
    for target in TARGETS:
        only = dataclasses.replace(ALL, targets=(target,))
        if any(m.target == target for m in matrices(config)):
            assert {m.target for m in adapted_matrices(config, only)} == {target}
        else:
            with pytest.raises(
                UserError, match=rf"nothing to adapt for lora.targets {target}; it has"
            ):
                adapted_matrices(config, only)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="unknown LoRA target 'expert'; did you mean 'experts'"):
        LoRA(rank=4, targets=("expert",))
    config, _, params = tiny("tiny-moe")
    with pytest.raises(UserError, match=r"lora.dora is on and lora.targets has 'experts'"):
        init_adapters(config, dataclasses.replace(ALL, dora=True), 0, params)


def test_shapes_axes_and_decay_follow_the_base():
    config = preset("26b-a4b")
    lora = LoRA(rank=8)
    shapes, axes = abstract_adapters(config, lora), adapter_axes(config, lora)
    moe = shapes["segment_0"]["slot_0"]["moe"]["gate_proj"]
    assert moe["lora_a"].shape == (5, 5, 128, 2816, 8)
    assert moe["lora_b"].shape == (5, 5, 128, 8, 704)
    names = axes["segment_0"]["slot_0"]
    assert names["moe"]["gate_proj"]["lora_a"] == ("layers", "run", "experts", "embed", None)
    assert names["moe"]["gate_proj"]["lora_b"] == ("layers", "run", "experts", None, "expert_mlp")
    o_proj = names["attention"]["o_proj"]
    assert o_proj["lora_a"] == ("layers", "run", "heads", "head_dim", None)
    assert o_proj["lora_b"] == ("layers", "run", None, "embed")
    assert all(jax.tree.leaves(decay_mask(shapes)))
    dora = LoRA(rank=8, targets=("attention",), dora=True)
    mask = decay_mask(abstract_adapters(config, dora))
    assert mask["segment_0"]["slot_0"]["attention"]["q_proj"] == {
        "lora_a": True, "lora_b": True, "magnitude": False,
    }  # fmt: skip


def test_dropout_is_off_without_a_key_and_follows_the_key():
    config, _, params = tiny("tiny-moe")
    lora = dataclasses.replace(ALL, dropout=0.3)
    adapters, batch = noisy(config, lora, params), random_batch(2, 24, config.vocab_size)
    run = forward("tiny-moe")
    calm = run(attach(params, adapters, lora), batch)
    np.testing.assert_array_equal(calm, run(attach(params, adapters, ALL), batch))
    first, again, other = (
        run(attach(params, adapters, lora, jax.random.key(n)), batch) for n in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    assert (np.asarray(first) != np.asarray(calm)).any()
    # Layers of one stack do not share their masks.
    leaf = attach(params, adapters, lora, KEY)["segment_0"]["slot_0"]["attention"]["q_proj"]
    assert leaf.key.shape == (*leaf.base.shape[:2], 2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [("tiny-ple", "nf4"), ("tiny-moe", "int8")])
def test_a_quantised_base_trains_as_its_rounded_values_do(name, form):
    config, module, params = tiny(name)
    quantizer = Quantizer(config, form)

    def walk(tree, path=()):
        return {
            k: walk(v, (*path, k)) if isinstance(v, dict) else quantizer((*path, k), v)
            for k, v in tree.items()
        }

    packed = walk(params)
    rounded = merged(packed)
    count = sum(isinstance(x, Quantized) for x in jax.tree.leaves(packed, is_leaf=is_weight))
    assert count == len(matrices(config))
    np.testing.assert_array_equal(packed["embed"]["table"], params["embed"]["table"])
    adapters, batch = noisy(config, ALL, params), random_batch(2, 24, config.vocab_size)
    loss_fn = adapted_loss(make_sft_loss(module, config), ALL)
    run = jax.jit(lambda a, b, p: accumulate(loss_fn, 1, a, b, KEY, p))
    loss, grads = run(adapters, batch, packed)
    expected, expected_grads = run(adapters, batch, rounded)
    np.testing.assert_allclose(loss.value, expected.value, rtol=1e-6)
    assert_trees_close(grads, expected_grads, 1e-5)
    exact, _ = run(adapters, batch, params)
    assert loss.value != exact.value


@pytest.mark.slow
def test_frozen_weights_cost_no_gradient():
    """The compiled gradient has no loop that adds up the table's, or stacked experts', own gradient."""
    config, module, params = tiny("tiny-moe")
    lora, batch = LoRA(rank=2), random_batch(2, 24, config.vocab_size)
    plain = make_sft_loss(module, config)

    def carried(loss_fn, trained, frozen):
        """Most arrays of the table's and of the experts' shapes that one loop carries."""
        run = jax.jit(lambda t, b, f: accumulate(loss_fn, 1, t, b, KEY, f)[1])
        text = run.lower(trained, batch, frozen).compile().as_text()
        loops = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
        leaves = params["embed"]["table"], params["segment_0"]["slot_0"]["moe"]["gate_proj"][0, 0]
        shapes = [f"f32[{','.join(map(str, leaf.shape))}]" for leaf in leaves]
        return [max(loop.count(shape) for loop in loops) for shape in shapes]

    # Both are read in a loop; where they are trained, it carries their gradient too.
    assert carried(plain, params, None) == [2, 2]
    fresh = init_adapters(config, lora, 0, params)
    assert max(carried(adapted_loss(plain, lora), fresh, params)) <= 1
