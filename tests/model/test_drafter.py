"""The drafter against transformers' own: every step of a round, from the cache of the target it drafts for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.checkpoint import load, load_drafter
from gemma4_jax.config import CentroidConfig, DrafterConfig
from gemma4_jax.errors import UserError
from gemma4_jax.hf_drafter import drafter_from_hf
from gemma4_jax.model import drafter as drafting
from gemma4_jax.model.cache import init_cache
from gemma4_jax.presets import preset
from tests.oracle.cases import DIALECTS, load_case


@functools.cache
def target():
    return load(load_case("dense").folder)


@functools.cache
def drafter():
    return load_drafter(load_case("draft").folder, target())


@functools.cache
def prompt_read(compression):
    """The target's cache after the prompt, and the hidden state of its last token."""
    model, tokens = target(), load_case("draft").vectors["prompt"]
    cache = init_cache(model.config, 1, 72, compression=compression, slack=1)
    extend = jax.jit(
        lambda params, *args: model.module.apply({"params": params}, *args, method="extend")
    )
    for start in range(0, tokens.shape[1], 8):
        piece = tokens[:, start : start + 8].astype(np.int32)
        hidden, cache = extend(model.params, piece, jnp.array([8]), cache)
    return cache, hidden[:, -1]


def test_both_dialects_are_the_same_drafter():
    case = load_case("draft")
    ours, theirs = (drafter_from_hf(case.config_in(dialect)) for dialect in DIALECTS)
    assert ours == theirs == drafter().module.config
    assert ours.target_width == 48 and ours.centroids == CentroidConfig(count=16, active=4)


def test_every_step_of_a_round():
    """Logits, hidden states and drafts; the window of 8 must show the ninth key."""
    v, (module, params) = load_case("draft").vectors, (drafter().module, drafter().params)
    cache, hidden = prompt_read("value")
    np.testing.assert_allclose(hidden, v["first_hidden"][0], atol=5e-4)
    lent = drafting.lend(target().config, target().params, cache, jnp.float32)

    @jax.jit
    def one(both, length):
        halves = jnp.split(both[None, None], 2, axis=-1)
        y, hidden = module.apply({"params": params}, *halves, length, lent)
        return module.apply({"params": params}, y, method="logits")[0], hidden[0, 0]

    for i in range(6):
        logits, after = one(v["step_inputs_embeds"][i], jnp.asarray(v["position"][0], jnp.int32))
        np.testing.assert_allclose(logits, v["step_logits"][i], atol=1e-3, err_msg=str(i))
        np.testing.assert_allclose(after, v["step_projected_hidden"][i], atol=5e-4, err_msg=str(i))


@pytest.mark.parametrize("compression", ["value", "both"])
def test_the_drafts_of_a_round(compression):
    v, (module, params) = load_case("draft").vectors, (drafter().module, drafter().params)
    cache, hidden = prompt_read(compression)
    first = jnp.asarray(v["first_token"][0], jnp.int32)
    run = jax.jit(drafting.draft, static_argnums=(0, 2, 8))
    of_target = target().module, target().params, cache, first, hidden
    drafts = run(module, params, *of_target, jnp.int32(6), 7)
    assert drafts[0].tolist() == [*v["step_token"].tolist(), 0]
    shorter = run(module, params, *of_target, jnp.int32(2), 7)
    assert shorter[0].tolist() == [*v["step_token"][:2].tolist(), 0, 0, 0, 0, 0]


def test_all_ids_scored_where_there_are_no_centroids():
    config = dataclasses.replace(drafter().module.config, centroids=None)
    whole = drafting.Drafter(config)
    params = {k: v for k, v in drafter().params.items() if k not in ("centroids", "token_ordering")}
    y = jax.random.normal(jax.random.key(3), (5, 36))
    logits = whole.apply({"params": params}, y, method="logits")
    np.testing.assert_allclose(logits, y @ params["embed"]["table"].T, atol=1e-5)
    best = whole.apply({"params": params}, y, method="likeliest")
    np.testing.assert_array_equal(best, np.argmax(logits, -1))

    some = drafter().module.apply({"params": drafter().params}, y, method="logits")
    kept = np.asarray(some) > np.asarray(some).min(-1, keepdims=True)
    assert (kept.sum(-1) == 4 * 256 // 16).all()
    np.testing.assert_allclose(np.asarray(some)[kept], np.asarray(logits)[kept], atol=1e-5)


def test_fresh_parameters_have_the_shapes_of_files():
    config = drafter().module.config
    fresh = drafting.init_params(config, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), drafter().params)


def test_what_does_not_fit_is_said():
    model, folder = target(), load_case("draft").folder
    narrow = dataclasses.replace(model, config=dataclasses.replace(model.config, d_model=64))
    with pytest.raises(UserError, match="d_model 48, the model has 64"):
        load_drafter(folder, narrow)
    with pytest.raises(UserError, match="'gemma4_text' is no drafter"):
        load_drafter(load_case("dense").folder, model)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_drafter(folder / "nowhere", model)
    with pytest.raises(UserError, match="a drafter, which cannot run alone"):
        load(folder)


def test_damaged_folders_are_refused(tmp_path):
    folder = load_case("draft").folder
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"intermediate_size": 44', '"intermediate_size": 45')
    )
    with pytest.raises(UserError, match="has shape"):
        load_drafter(tmp_path, target())
    (tmp_path / "config.json").write_text(
        config.replace('"use_ordered_embeddings": true', '"use_ordered_embeddings": false')
    )
    with pytest.raises(UserError, match="does not belong to this drafter"):
        load_drafter(tmp_path, target())


@pytest.mark.parametrize(
    ("target", "width", "d_ff", "heads", "centroids", "wanted"),
    [
        ("e2b", 256, 2048, 4, True, 77_731_332),
        ("e4b", 256, 2048, 4, True, 78_517_764),
        ("12b", 1024, 8192, 16, False, 422_856_964),
        ("26b-a4b", 1024, 8192, 16, False, 419_711_236),
        ("31b", 1024, 8192, 32, False, 469_518_596),
    ],
)
def test_released_sizes(target, width, d_ff, heads, centroids, wanted):
    """Parameters of the specification's table (10.2), without `token_ordering`."""
    model = preset(target)
    stack = dataclasses.replace(
        model,
        d_model=width,
        d_ff=d_ff,
        num_heads=heads,
        layer_types=("sliding",) * 3 + ("full",),
        num_kv_shared_layers=0,
        double_wide_mlp=False,
        per_layer_input_width=0,
        moe=None,
        logit_softcap=None,
    )
    ordered = CentroidConfig(count=2048, active=32) if centroids else None
    config = DrafterConfig(stack=stack, target_width=model.d_model, centroids=ordered)
    config.check_fits(model)
    shapes = drafting.abstract_params(config)
    shapes.pop("token_ordering", None)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == wanted
