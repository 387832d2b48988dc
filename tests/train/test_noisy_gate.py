"""Noisy routers: the formula, a draw of its own for every layer and micro-batch, nothing left in the model."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import sft
from configs.losses import RouterConfig
from gemma4_jax import checkpoint
from gemma4_jax.build import Model, transformer
from gemma4_jax.model.layers import rms_normalize
from gemma4_jax.model.moe import MoE, RouterNoise
from gemma4_jax.model.transformer import abstract_params, init_params
from gemma4_jax.presets import preset
from gemma4_jax.sharding import make_mesh
from gemma4_jax.text.tokenizer import Tokenizer
from train import sft as train_sft
from train.loop import Task
from train.losses import Loss, Params, batch_totals, make_sft_loss
from train.noisy_gate import keyed, noisy, noisy_loss, with_noise, without_noise
from train.optim import decay_mask, matrix_axes
from train.start import Start
from train.step import accumulate

from .conftest import sum_rows, write_rows
from .helpers import assert_trees_close, random_batch, tiny
from .test_runs import rows_of

KEY = jax.random.key(0)


def drawn(key: jax.Array, shape: tuple[int, ...], size: float | np.ndarray) -> np.ndarray:
    """The noise, from its key data."""
    return np.asarray(jax.random.normal(jax.random.wrap_key_data(key), shape)) * size


def test_logits_are_those_of_the_formula():
    config, _, params = tiny("tiny-moe")
    weights = jax.tree.map(lambda x: x[0, 0], params["segment_0"]["slot_0"]["moe"])
    rng = np.random.default_rng(1)
    stream, normed = jnp.asarray(rng.normal(size=(2, 3, 5, config.d_model)), jnp.float32)
    experts = config.moe.num_experts
    noise = jnp.asarray(rng.normal(size=(config.d_model, experts)), jnp.float32)
    key = jax.random.key_data(jax.random.key(7))
    module = MoE(config, jnp.float32, jax.lax.ragged_dot)

    @jax.jit
    def probabilities(weights):
        _, seen = module.apply({"params": weights}, stream, normed, mutable=["intermediates"])
        return seen["intermediates"]["router_probs"][0]

    rows = np.asarray(stream).reshape(-1, config.d_model)
    read = np.asarray(rms_normalize(jnp.asarray(rows), config.norm_eps) * weights["router_scale"])
    read = read * config.d_model**-0.5
    clean = read @ np.asarray(weights["router_proj"])
    size = np.log1p(np.exp(read @ np.asarray(noise)))
    assert size.std() > 0.1
    for logits, given in (
        (clean, weights),
        (clean, {**weights, "router_noise": noise}),  # without a key there is no noise
        (
            clean + drawn(key, clean.shape, size),
            {**weights, "router_noise": RouterNoise(noise, key)},
        ),
    ):
        wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(probabilities(given), wanted, rtol=2e-5)


def test_every_layer_draws_its_own():
    kinds = ("sliding", "sliding", "full") * 2
    config = dataclasses.replace(
        preset("tiny-moe"), layer_types=kinds, num_kv_shared_layers=0, vocab_size=64
    )
    params = with_noise(init_params(config, KEY))
    # Without a router's own logits the noise is all there is: ln 2 times the draw.
    flat = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key == "router_proj" else leaf, params
    )
    tokens = jnp.arange(6)[None]
    given = keyed(flat, KEY)
    _, seen = jax.jit(
        lambda p: transformer(config).apply({"params": p}, tokens, mutable=["intermediates"])
    )(given)
    found = []
    for slot in ("slot_0", "slot_1"):
        keys = given["segment_0"][slot]["moe"]["router_noise"].key
        (probabilities,) = seen["intermediates"]["segment_0"][slot]["moe"]["router_probs"]
        for key, p in zip(
            keys.reshape(-1, 2),
            probabilities.reshape(-1, *probabilities.shape[-2:]),
            strict=True,
        ):
            logits = drawn(key, p.shape, np.log(2))
            np.testing.assert_allclose(p, jax.nn.softmax(logits), rtol=1e-5)
            found.append(logits)
    assert len(found) == config.num_layers == 6
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 0.1 for other in found[:i])


def test_micro_batches_draw_their_own():
    config, _, params = tiny("tiny-moe")
    params = with_noise(params)
    row = random_batch(1, 8, config.vocab_size)
    batch = {name: jnp.concatenate([x, x]) for name, x in row.items()}

    def draw(params, batch, totals, key, frozen):
        """The first number that a layer draws, in the place of a loss."""
        noise = params["segment_0"]["slot_1"]["moe"]["router_noise"]
        first = jax.random.normal(jax.random.wrap_key_data(noise.key.reshape(-1, 2)[0]))
        return Loss(value=first + 0 * noise.weight.sum(), metrics={})

    both, _ = accumulate(noisy_loss(draw), 2, params, batch, KEY, None)
    one, other = (
        float(noisy_loss(draw)(params, row, {}, key, None).value) for key in jax.random.split(KEY)
    )
    assert abs(one - other) > 1e-3
    assert float(both.value) == pytest.approx(one + other)


def made(name: str, remat: str = "none", **router) -> Task:
    """A task of a tiny model, as far as noise concerns it."""
    config, _, params = tiny(name)
    module = transformer(config, remat=remat)
    loss_fn = make_sft_loss(module, config)
    start = Start(
        config=config, tokenizer=None, module=module, mesh=make_mesh({}), load=lambda: params
    )
    run = dataclasses.replace(sft.PRESETS["tiny"](), router=RouterConfig(**router))
    return Task(
        config=run, start=start, workdir=None, source=None, loss_fn=loss_fn, initial=start.load
    )


@functools.cache
def found(remat: str) -> tuple[Loss, Params]:
    """Loss and gradient of a tiny model with noise."""
    task = made("tiny-moe", remat, noise=True)
    trained, batch = noisy(task).initial(), random_batch(2, 24, task.start.config.vocab_size)
    return jax.jit(lambda p: accumulate(noisy(task).loss_fn, 1, p, batch, KEY, None))(trained)


def test_gradients_reach_the_noise_with_and_without_remat():
    config, _, _ = tiny("tiny-moe")
    loss, grads = found("none")
    for slot in ("slot_0", "slot_1"):
        slope = grads["segment_0"][slot]["moe"]["router_noise"]
        assert slope.shape[-2:] == (config.d_model, config.moe.num_experts)
        assert (np.abs(slope).max(axis=(-1, -2)) > 1e-5).all()
    again, again_grads = found("full")
    assert float(again.value) == pytest.approx(float(loss.value), rel=1e-6)
    assert_trees_close(again_grads, grads, 1e-5)


def test_without_the_option_nothing_changes():
    for name, router in (("tiny-moe", {}), ("tiny-dense", {"noise": True})):
        task = made(name, **router)
        assert noisy(task) is task


def test_the_model_alone_has_no_noise():
    task = made("tiny-moe", noise=True)
    with_it, params, model = noisy(task), task.initial(), task.start.config
    trained = with_it.initial()
    assert jax.tree.structure(with_it.whole(trained)) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, with_it.whole(trained), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), with_it.abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), trained
    )
    assert with_noise(abstract_params(model)).keys() == trained.keys()
    # Validation: to the bit what the model without W_noise says; training: not.
    batch = random_batch(2, 24, model.vocab_size)
    loss = jax.jit(lambda p, f: f(p, batch, batch_totals(batch), KEY, None).value, static_argnums=1)
    clean = float(loss(params, task.loss_fn))
    assert float(loss(trained, with_it.validation_loss_fn)) == clean
    assert abs(float(found("none")[0].value) - clean) > 1e-4


def test_the_noise_is_no_projection_to_the_optimiser():
    _, _, params = tiny("tiny-moe")
    for find, left_out in ((decay_mask, False), (matrix_axes, None)):
        found = find(with_noise(params))["segment_0"]["slot_0"]["moe"]
        assert found["router_noise"] is left_out and found["gate_proj"]


def test_a_run_with_noise_goes_on_and_exports_the_model_alone(tokenizer_file, tmp_path):
    """With moments in host memory, and a count of tokens that goes on as well."""
    data = write_rows(tmp_path / "rows.jsonl", sum_rows(20))
    start = tmp_path / "start"
    model, module, params = tiny("tiny-moe", vocab_size=384)
    checkpoint.save_huggingface(Model(model, params, module, Tokenizer.load(tokenizer_file)), start)
    work = tmp_path / "run"
    base = sft.PRESETS["tiny"]()
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, architecture="", path=str(start)),
        data=dataclasses.replace(base.data, path=str(data)),
        router=RouterConfig(noise=True, balance_loss=0.01),
        optim=dataclasses.replace(base.optim, offload=True),
        run=dataclasses.replace(
            base.run, workdir=str(work), steps=4, log_every=1, save_every=2, samples=0,
            export_huggingface=True,
        ),
    )  # fmt: skip
    assert train_sft.run(config) == 0
    rows, last = rows_of(work), work / "checkpoints" / "4"
    state = ocp.StandardCheckpointer().restore(last / "state")
    exported = checkpoint.load(work / "huggingface").params
    jax.tree.map(np.testing.assert_array_equal, exported, without_noise(state["params"]))
    moved = state["params"]["segment_0"]["slot_0"]["moe"]["router_noise"]
    assert np.abs(moved).max() > 0

    shutil.rmtree(last)
    # Where the moments are is no part of a checkpoint, nor of the result.
    on_device = dataclasses.replace(config.optim, offload=False)
    assert train_sft.run(dataclasses.replace(config, optim=on_device)) == 0
    again = ocp.StandardCheckpointer().restore(last / "state")
    jax.tree.map(np.testing.assert_array_equal, again, state)
    for name in ("loss", "num_tokens"):
        assert [row[name] for row in rows_of(work)] == [row[name] for row in rows]
    assert rows[-1]["num_tokens"] > rows[-2]["num_tokens"] > 0
