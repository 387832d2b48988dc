"""A step on many devices is that of one: losses, gradients and updates on every mesh, and what lives where."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs.losses import PreferenceConfig, RouterConfig
from configs.schema import BatchConfig
from gemma4_jax.build import transformer
from gemma4_jax.errors import UserError
from gemma4_jax.hlo import travels
from gemma4_jax.logprobs import token_logprobs
from gemma4_jax.model.transformer import Media, logical_axes
from gemma4_jax.sharding import make_mesh, shardings, spec, tokens_spec
from train.data.sequences import fill
from train.losses import make_dpo_loss, make_sft_loss
from train.placement import check_batch, check_model, own_rows, put_tree, state_shardings
from train.step import StepOptions, init_state, make_train_step

from .helpers import (
    TINY,
    assert_trees_close,
    random_batch,
    random_pairs,
    random_sequence,
    stack,
    tiny,
)

MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"expert": 4},
    {"seq": 4},
    {"tensor": 4},
    {"data": 2, "fsdp": 4},
    {"fsdp": 4, "tensor": 2},
    {"expert": 2, "seq": 4},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"fsdp": 2, "seq": 2, "tensor": 2},
    {"data": 2, "expert": 2, "seq": 2},
    {"data": 2, "fsdp": 2, "seq": 2},
]
# DPO differs in its batch and its loss, not in what is cut.
STEPS = [("sft", sizes) for sizes in MESHES]
STEPS += [("dpo", {"data": 2, "fsdp": 4}), ("dpo", {"expert": 2, "seq": 2, "tensor": 2})]


def packed_batch(rows, length, vocab):
    """Rows of two documents and padding; the documents are longer than a window together, and than a shard."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 4, length // 2, (rows, 2))
    return stack(
        [fill([random_sequence(rng, int(n), vocab) for n in row], length) for row in lengths]
    )


def one_step(name, task, sizes, accumulation=1):
    """(state after a step, metrics) of 16 rows or 8 pairs."""
    config, module, params = tiny(name)
    mesh = make_mesh(sizes)
    if task == "sft":
        loss, batch = make_sft_loss(module, config), packed_batch(16, 32, config.vocab_size)
    else:
        batch = random_pairs(16, 24, config.vocab_size)
        loss = make_dpo_loss(module, config, PreferenceConfig(), live=False)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3))
    options = StepOptions(accumulation=accumulation, average_decay=0.9)
    places = shardings(logical_axes(config), params, mesh)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda p: init_state(p, optimizer, 0, options), params)
        all_places = state_shardings(abstract, places, mesh)
        begin = jax.jit(lambda p: init_state(p, optimizer, 0, options), out_shardings=all_places)
        state = begin(put_tree(params, places))
        step = make_train_step(loss, optimizer, lambda _: 1e-2, options, all_places)
        rows = own_rows(jax.tree.map(np.asarray, dict(batch)), mesh)
        return step(state, rows, None)


@pytest.fixture(scope="module")
def alone():
    """The same step on one device, by (model, task)."""
    found = {}

    def of(name, task):
        if (name, task) not in found:
            found[name, task] = jax.device_get(one_step(name, task, {}))
        return found[name, task]

    return of


def name_of(step):
    task, sizes = step
    return "-".join([task, *(f"{axis}{size}" for axis, size in sizes.items())])


@pytest.mark.parametrize("task, sizes", STEPS, ids=map(name_of, STEPS))
@pytest.mark.parametrize("name", TINY)
def test_a_step_on_a_mesh_is_that_of_one_device(alone, name, task, sizes):
    state, metrics = one_step(name, task, sizes)
    expected, expected_metrics = alone(name, task)
    for key, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    # The first moment of the first step is the clipped gradient.
    moments = [s.opt_state[1][0].mu for s in (jax.device_get(state), expected)]
    assert_trees_close(*moments, 1e-5)
    assert_trees_close(jax.device_get(state.params), expected.params, 1e-5)


@pytest.mark.parametrize("sizes", [{"seq": 4}, {"fsdp": 2, "seq": 2, "tensor": 2}], ids=str)
def test_image_blocks_over_a_border(sizes):
    """Log-probabilities and gradients of rows whose images lie across shards, through whole models."""
    config, _, params = tiny("tiny-dense")
    config = dataclasses.replace(config, bidirectional="vision")
    module = transformer(config)
    rng = np.random.default_rng(1)
    rows, length = 4, 64
    kinds = np.zeros((rows, length), np.int32)
    for row, start in enumerate((3, 13, 24, 40)):  # shards of 8 and 16 begin inside them
        kinds[row, start : start + 14] = 1
    segments = np.where(np.arange(length) < 60, 1, 0)[None].repeat(rows, 0)
    segments[0, 30:60] = 2
    batch = {
        "tokens": rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32),
        "segments": segments.astype(np.int32),
        "kinds": kinds,
        "embeddings": rng.normal(size=(rows, length, config.d_model)).astype(np.float32),
    }
    weights = rng.normal(size=(rows, length)).astype(np.float32) * (segments > 0) * (kinds == 0)

    def value(params, embeddings, batch):
        media = Media(embeddings, batch["kinds"])
        hidden = module.apply(
            {"params": params}, batch["tokens"], segment_ids=batch["segments"], media=media
        )
        table, targets = params["embed"]["table"], jnp.roll(batch["tokens"], -1, axis=1)
        return (token_logprobs(hidden, table, targets, softcap=30.0) * weights).sum()

    def on(sizes):
        mesh = make_mesh(sizes)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(logical_axes(config), params, mesh))
            cut = jax.device_put(batch, NamedSharding(mesh, tokens_spec()))
            found = jax.jit(jax.value_and_grad(value, (0, 1)))(placed, cut["embeddings"], cut)
            return jax.device_get(found)

    (loss, gradients), (expected, expected_gradients) = on(sizes), on({})
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_trees_close(gradients, expected_gradients, 1e-5)
    batch["kinds"] = np.zeros_like(kinds)
    assert abs(on({})[0] - expected) > 1e-3 * abs(expected)  # the images are seen


def test_micro_batches_on_a_mesh(alone):
    name = "tiny-moe"  # its routers have sums and weights of their own
    state, metrics = one_step(name, "sft", {"data": 2, "fsdp": 2}, accumulation=2)
    expected, expected_metrics = alone(name, "sft")
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    assert_trees_close(jax.device_get(state.params), expected.params, 1e-5)


def test_state_is_cut_as_the_parameters_are():
    state, _ = one_step("tiny-moe", "sft", {"data": 2, "fsdp": 4})
    mlp = "segment_0", "slot_0", "mlp", "gate_proj"

    def at(tree):
        for key in mlp:
            tree = tree[key]
        return tree

    adam = state.opt_state[1][0]
    for tree in (state.params, state.average, adam.mu, adam.nu):
        leaf = at(tree)
        assert leaf.sharding.spec == PartitionSpec(None, None, "fsdp", None)
        assert leaf.addressable_shards[0].data.nbytes * 4 == leaf.nbytes
    whole = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if leaf.sharding.is_fully_replicated
    }
    assert all("scale" in name or "layer_scalar" in name for name in whole), whole


def test_the_loss_gathers_no_hidden_states():
    """Sorting wanted positions over all devices would."""
    config, module, params = tiny("tiny-dense")
    mesh = make_mesh({"data": 8})
    loss = make_sft_loss(module, config)
    with jax.set_mesh(mesh):
        places = shardings(logical_axes(config), params, mesh)
        batch = own_rows(jax.tree.map(np.asarray, dict(random_batch(16, 24, 512))), mesh)
        totals = {"targets": np.float32(100), "tokens": np.float32(300)}

        def value(params, batch):
            return loss(params, batch, totals, jax.random.key(0), None).value

        compiled = jax.jit(jax.grad(value)).lower(put_tree(params, places), batch).compile()
    text = compiled.as_text()
    assert "all-reduce" in text  # of the gradients
    assert "all-gather" not in text and "all-to-all" not in text


def test_a_layer_is_gathered_at_a_time_and_no_activation():
    config, module, params = tiny("tiny-dense")
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    loss = make_sft_loss(module, config)
    rows, length = 16, 64
    with jax.set_mesh(mesh):
        places = shardings(logical_axes(config), params, mesh)
        batch = random_batch(rows, length, config.vocab_size)
        batch = own_rows(jax.tree.map(np.asarray, dict(batch)), mesh)
        totals = {"targets": np.float32(100), "tokens": np.float32(300)}

        def value(params, batch):
            return loss(params, batch, totals, jax.random.key(0), None).value

        gradient = jax.jit(jax.grad(value), out_shardings=places)
        compiled = gradient.lower(put_tree(params, places), batch).compile()
    gathered = {
        shape: times
        for (name, shape), times in travels(compiled.as_text()).items()
        if name == "all-gather" and shape.startswith("f32")
    }
    # The loss projects on a device's half of the vocabulary, all of its columns: once, and backward again.
    table = f"f32[{config.vocab_size // 2},{config.d_model}]"
    assert gathered.pop(table) <= 2
    largest = max(layer.d_ff for layer in config.layers) // 2 * config.d_model
    sizes = [math.prod(map(int, re.findall(r"\d+", shape[3:]))) for shape in gathered]
    assert sizes and max(sizes) <= largest
    # Hidden states of more than one device's rows would be larger.
    assert largest < rows // 4 * length * config.d_model


def test_what_does_not_divide_is_one_line():
    mesh = make_mesh({"fsdp": 8})
    with pytest.raises(
        UserError, match=r"mesh.fsdp is 8, which does not divide the 20 .*: 4, 5, 10"
    ):
        spec(("embed", "mlp"), (20, 32), mesh)
    with pytest.raises(KeyError, match="no rule for the logical axis 'width'"):
        spec(("width",), (8,), mesh)
    with pytest.raises(UserError, match=r"batch.rows is 12 .*a multiple of 8"):
        check_batch(mesh, BatchConfig(rows=12), 64)
    with pytest.raises(UserError, match=r"mesh.expert is 2, and this model has no experts"):
        check_model(make_mesh({"expert": 2}), tiny("tiny-dense")[0], RouterConfig())
    limited = RouterConfig(capacity_factor=1.25)
    with pytest.raises(
        UserError, match=r"capacity_factor is 1.25, and mesh.expert is 1: .*; set mesh.expert"
    ):
        check_model(mesh, tiny("tiny-moe")[0], limited)
    with pytest.raises(UserError, match=r"capacity_factor is 1.25, and this model has no experts"):
        check_model(mesh, tiny("tiny-dense")[0], limited)
    with pytest.raises(UserError, match=r"mesh.seq is 4, .* does not divide rows of 100 tokens"):
        check_batch(make_mesh({"seq": 4}), BatchConfig(rows=8), 100)
    with pytest.raises(UserError, match="needs 16 devices, there are 8"):
        make_mesh({"data": 16})
