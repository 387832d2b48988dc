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
from train.losses import batch_totals, make_dpo_loss, make_sft_loss, sequence_logprobs
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
# tiny-moe is tiny-dense with experts beside its MLP: where both would show the same, it stands for both.
KINDS = ("tiny-ple", "tiny-moe")


@functools.cache
def fresh(name, lora):
    config, _, params = tiny(name)
    return jax.jit(functools.partial(init_adapters, config, lora, 0))(params)


@functools.cache
def noisy(name, lora):
    """Adapters of which B is not 0 (and magnitudes are not the columns' lengths)."""
    rng = np.random.default_rng(1)

    def move(path, leaf):
        noise = rng.normal(size=leaf.shape)
        is_magnitude = path[-1].key == "magnitude"
        moved = leaf * (1 + 0.1 * noise) if is_magnitude else leaf + 0.05 * noise
        return jnp.asarray(moved, jnp.float32)

    return jax.tree_util.tree_map_with_path(move, jax.device_get(fresh(name, lora)))


def is_weight(node):
    return isinstance(node, Adapted | Quantized)


@jax.jit
def merged(tree):
    return jax.tree.map(dense, tree, is_leaf=is_weight)


def quantised(name, form):
    """The parameters of a tiny model with every matrix packed."""
    config, _, params = tiny(name)
    quantizer = Quantizer(config, form)

    def walk(tree, path=()):
        return {
            k: walk(v, (*path, k)) if isinstance(v, dict) else quantizer((*path, k), v)
            for k, v in tree.items()
        }

    return walk(params)


@functools.cache
def packed_batch(name):
    """Two rows of three documents each, beyond the window together."""
    rng, vocab_size = np.random.default_rng(3), tiny(name)[0].vocab_size
    rows = [[random_sequence(rng, n, vocab_size) for n in (19, 23, 20)] for _ in range(2)]
    return stack([fill(row, 64) for row in rows])


@functools.cache
def short_tokens(name):
    vocab_size = tiny(name)[0].vocab_size
    return jnp.asarray(np.random.default_rng(0).integers(0, vocab_size, (2, 12)), jnp.int32)


@functools.cache
def forward(name):
    module = tiny(name)[1]
    return jax.jit(lambda params: module.apply({"params": params}, short_tokens(name)))


def compiled_gradient(loss_fn, *arguments):
    """(trained, batch, frozen) -> loss and gradient, compiled for such arguments."""
    run = jax.jit(lambda t, b, f: accumulate(loss_fn, 1, t, b, KEY, f))
    return run.lower(*arguments).compile()


@functools.cache
def gradient_of_weights(name):
    """Of a model without adapters, whatever its weights are."""
    config, module, params = tiny(name)
    return compiled_gradient(make_sft_loss(module, config), params, packed_batch(name), None)


@functools.cache
def gradient_of_adapters(name, remat="none", lora=ALL, form=None):
    config, _, params = tiny(name)
    loss_fn = adapted_loss(make_sft_loss(transformer(config, remat=remat), config), lora)
    base = quantised(name, form) if form else params
    return compiled_gradient(loss_fn, noisy(name, lora), packed_batch(name), base)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_fresh_adapters_change_no_bit(name):
    config, _, params = tiny(name)
    joined = attach(params, fresh(name, ALL), ALL)
    assert any(map(is_weight, jax.tree.leaves(joined, is_leaf=is_weight)))
    # Operation by operation: XLA fuses two programs in two ways, which moves last bits.
    tokens = short_tokens(name)[:1, :6]
    module = Transformer(config)  # with XLA's own grouped product: ours wants a traced index
    with jax.disable_jit():
        ours, theirs = (module.apply({"params": p}, tokens) for p in (joined, params))
    np.testing.assert_array_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, merged(joined), params)


@pytest.mark.parametrize(
    ("name", "remat", "variant", "form"),
    [
        # As strong as the others: 3 / sqrt(4) is 6 / 4. Not on tiny-ple, whose gradients are sums that
        # cancel: with DoRA, rounding reaches 1.2e-5 of a leaf on one version of jax.
        ("tiny-dense", "full", {"dora": True, "rslora": True, "alpha": 3.0}, None),
        ("tiny-ple", "dots", {}, "nf4"),
        ("tiny-moe", "none", {}, None),
        ("tiny-moe", "full", {}, "int8"),
    ],
)
def test_loss_and_gradients_are_those_of_merged_weights(name, remat, variant, form):
    """One differentiates through the products with A and B, the other through W + s A B as one array.

    Of a quantised base, W is its rounded values.
    """
    params, lora = tiny(name)[2], dataclasses.replace(ALL, **variant)
    adapters, batch = noisy(name, lora), packed_batch(name)
    base = quantised(name, form) if form else params
    loss, grads = gradient_of_adapters(name, remat, lora, form)(adapters, batch, base)

    plain = gradient_of_weights(name)
    weights, back = jax.vjp(lambda adapters: merged(attach(base, adapters, lora)), adapters)
    expected, weight_grads = plain(weights, batch, None)
    np.testing.assert_allclose(loss.value, expected.value, rtol=1e-6 if form else 1e-5)
    assert_trees_close(grads, back(weight_grads)[0], 1e-5)

    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        # Of every layer and every expert, which all see a token.
        moves = (np.asarray(leaf) != 0).any(axis=(-1, -2))
        assert moves.all() or path[-1].key == "magnitude", jax.tree_util.keystr(path)
    # Adapters matter a hundred times more than the tolerance; rounding matters at all.
    without, _ = plain(params, batch, None)
    assert abs(float(without.value - expected.value)) > 1e-3 * abs(float(without.value))
    if form:
        exact, _ = plain(merged(attach(params, adapters, lora)), batch, None)
        assert loss.value != exact.value


@pytest.mark.parametrize(("name", "form"), [("tiny-ple", "nf4"), ("tiny-moe", "int8")])
def test_quantising_packs_every_matrix_and_nothing_else(name, form):
    config, _, params = tiny(name)
    packed = quantised(name, form)
    count = sum(isinstance(x, Quantized) for x in jax.tree.leaves(packed, is_leaf=is_weight))
    assert count == len(matrices(config))
    np.testing.assert_array_equal(packed["embed"]["table"], params["embed"]["table"])


@pytest.mark.parametrize("name", KINDS)
def test_decoding_over_a_cache_uses_the_adapters_too(name):
    config, module, params = tiny(name)
    joined, tokens = attach(params, noisy(name, ALL), ALL), short_tokens(name)
    count = jnp.full((2,), tokens.shape[1], jnp.int32)
    cache = init_cache(config, 2, 16)
    extend = jax.jit(
        lambda p: module.apply({"params": p}, tokens, count, cache, method="extend")[0]
    )
    hidden = extend(joined)
    np.testing.assert_allclose(hidden, forward(name)(joined), atol=2e-4)
    base = extend(attach(params, fresh(name, ALL), ALL))
    assert np.abs(np.asarray(hidden - base)).max() > 0.1


def test_a_step_moves_every_adapter_and_nothing_else():
    """Of the kind with most targets; that the others' adapters have gradients is in another test."""
    config, module, params = tiny("tiny-moe")
    before = jax.tree.map(np.array, params)
    adapters = fresh("tiny-moe", ALL)
    optim = OptimConfig(peak_lr=1e-3, schedule="constant", warmup_fraction=0)
    optimizer = make_optimizer(optim, 10)
    loss_fn = adapted_loss(make_sft_loss(module, config), ALL)
    step = make_train_step(
        loss_fn, optimizer, make_schedule(optim, 10), StepOptions(accumulation=2)
    )
    state = init_state(jax.tree.map(jnp.array, adapters), optimizer, seed=0)
    batch, losses = random_batch(4, 24, config.vocab_size), []
    for _ in range(3):
        state, metrics = step(state, batch, params)
        losses.append(float(metrics["loss"]))
        if len(losses) == 1:
            first = jax.device_get(state.params)
    assert losses == sorted(losses, reverse=True)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert jax.tree.structure(first) == jax.tree.structure(abstract_adapters(config, ALL))
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        # The first gradient of A is 0 because B is: then AdamW leaves it alone.
        if path[-1].key == "lora_b":
            # Of every layer and every expert that saw a token.
            assert (leaf != 0).any(axis=(-1, -2)).all(), jax.tree_util.keystr(path)
    after = jax.tree.map(lambda a, b: (np.asarray(a) != b).any(), state.params, adapters)
    assert all(jax.tree.leaves(after))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_reference_without_adapters_is_a_live_reference(name):
    """The base with adapters off, as reference, against the base's log-probabilities beside the same policy.

    That the policy is the merged one is another test's: here rounding of W + s A B would hide the reference's.
    """
    config, module, params = tiny(name)
    pairs = random_pairs(2, 24, config.vocab_size)
    losses = [
        adapted_loss(make_dpo_loss(module, config, PreferenceConfig(beta=0.3), live=live), ALL)
        for live in (True, False)
    ]

    @jax.jit
    def both(adapters, base):
        batch = {**pairs, "reference_logprobs": sequence_logprobs(module, config, base, pairs)}
        if name == "tiny-dense":
            return [accumulate(loss_fn, 1, adapters, batch, KEY, base) for loss_fn in losses]
        # The gradient knows nothing of the kind of model: once is enough.
        totals = batch_totals(batch)
        return [(loss_fn(adapters, batch, totals, KEY, base), {}) for loss_fn in losses]

    (loss, grads), (expected, expected_grads) = both(noisy(name, ALL), params)
    assert abs(float(expected.value) - np.log(2)) > 0.01
    np.testing.assert_allclose(loss.value, expected.value, rtol=1e-5)
    assert name != "tiny-dense" or optax.tree.norm(expected_grads) > 1e-3
    assert_trees_close(grads, expected_grads, 1e-6)
    (start, _), _ = both(fresh(name, ALL), params)
    np.testing.assert_allclose(start.value, np.log(2), rtol=1e-5)


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
    params, run = tiny("tiny-moe")[2], forward("tiny-moe")
    lora = dataclasses.replace(ALL, dropout=0.3)
    adapters = noisy("tiny-moe", lora)
    calm = run(attach(params, adapters, lora))
    np.testing.assert_array_equal(calm, run(attach(params, adapters, ALL)))
    first, again, other = (
        run(attach(params, adapters, lora, jax.random.key(n))) for n in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    assert (np.asarray(first) != np.asarray(calm)).any()
    # Layers of one stack do not share their masks.
    leaf = attach(params, adapters, lora, KEY)["segment_0"]["slot_0"]["attention"]["q_proj"]
    assert leaf.key.shape == (*leaf.base.shape[:2], 2)


@pytest.mark.slow
def test_frozen_weights_cost_no_gradient():
    """The compiled gradient has no loop that adds up the table's, or stacked experts', own gradient."""
    params = tiny("tiny-moe")[2]

    def carried(compiled):
        """Most arrays of the table's and of the experts' shapes that one loop carries."""
        text = compiled.as_text()
        loops = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
        leaves = params["embed"]["table"], params["segment_0"]["slot_0"]["moe"]["gate_proj"][0, 0]
        shapes = [f"f32[{','.join(map(str, leaf.shape))}]" for leaf in leaves]
        return [max(loop.count(shape) for loop in loops) for shape in shapes]

    # Both are read in a loop; where they are trained, it carries their gradient too.
    assert carried(gradient_of_weights("tiny-moe")) == [2, 2]
    assert max(carried(gradient_of_adapters("tiny-moe"))) <= 1
