"""The scanned model equals a plain loop over its layers; remat changes nothing; initialisation is sound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.build import transformer
from gemma4_jax.config import SLIDING
from gemma4_jax.logprobs import token_logprobs
from gemma4_jax.model.attention import KeyValues, dense_attention
from gemma4_jax.model.layers import gelu, rms_normalize
from gemma4_jax.model.layout import layer_address, segments
from gemma4_jax.model.rope import rotate, rotation
from gemma4_jax.model.transformer import abstract_params, init_params, logical_axes
from gemma4_jax.model.visibility import TokenFacts
from gemma4_jax.presets import PRESETS, preset

TWINS = ("tiny-ple", "tiny-dense", "tiny-moe")


@functools.cache
def parameters(name):
    """Initial parameters, every scale disturbed so that leaving one out shows."""
    rng = np.random.default_rng(0)
    params = init_params(preset(name), jax.random.key(1))
    return jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)


@functools.cache
def batch():
    rng = np.random.default_rng(3)
    tokens = jnp.asarray(rng.integers(3, 500, (2, 48)), jnp.int32)
    segment_ids = jnp.asarray(np.sort(rng.integers(0, 3, (2, 48)), axis=1), jnp.int32)
    return tokens, segment_ids


def loss_of(name, hidden, params):
    tokens, segment_ids = batch()
    logprobs = token_logprobs(
        hidden,
        params["embed"]["table"],
        jnp.roll(tokens, -1, 1),
        softcap=30.0,
        mask=segment_ids > 0,
    )
    return -logprobs.sum() / 96


@functools.cache
def scanned(name, remat="none"):
    module = transformer(preset(name), remat=remat)
    tokens, segment_ids = batch()

    def loss(params):
        hidden = module.apply({"params": params}, tokens, segment_ids=segment_ids)
        return loss_of(name, hidden, params)

    return jax.jit(jax.value_and_grad(loss))(parameters(name))


def assert_same(ours, theirs, limit):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours[1]), jax.tree.leaves(theirs[1]), strict=True
    ):
        assert np.abs(a - b).max() <= limit * max(1e-3, np.abs(b).max()), jax.tree_util.keystr(path)


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("name", ["tiny-ple", "tiny-moe"])
def test_remat_changes_neither_loss_nor_gradients(name, remat):
    assert_same(scanned(name, remat), scanned(name), 1e-5)


def plain_forward(config, params, tokens, segment_ids):
    """Layer by layer, unstacked, dense attention, K/V lent as values: written for reading, not for speed."""
    norm = lambda x, p: rms_normalize(x, config.norm_eps) * p["scale"]  # noqa: E731
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    restart = jnp.stack(
        [jnp.array([list(row).index(s) for s in row]) for row in np.array(segment_ids)]
    )
    positions, facts = index - restart, TokenFacts(index, segment_ids)
    x = params["embed"]["table"][tokens] * config.d_model**0.5
    if config.per_layer_input_width:
        p = params["per_layer_embed"]
        context = jnp.einsum("btd,dlp->btlp", x, p["projection"]) * config.d_model**-0.5
        token_part = p["table"][tokens].reshape(context.shape) * config.per_layer_input_width**0.5
        u = (token_part + norm(context, p["norm"])) * 2**-0.5
    lent = {}
    for layer in config.layers:
        at = layer_address(config, layer.index)
        p = params[f"segment_{at.segment}"][f"slot_{at.slot}"]
        p = jax.tree.map(lambda leaf, at=at: leaf[at.index], p)
        a, by = p["attention"], rotation(positions, layer.head_dim, layer.rope)
        z = norm(x, p["pre_attention_norm"])
        q = rotate(norm(jnp.einsum("btd,dnh->btnh", z, a["q_proj"]), a["q_norm"]), by)
        if layer.owns_kv:
            raw = jnp.einsum("btd,dkh->btkh", z, a["k_proj"])
            other = raw if layer.value_from_key else jnp.einsum("btd,dkh->btkh", z, a["v_proj"])
            lent[layer.index] = KeyValues(
                rms_normalize(other, config.norm_eps), facts, rotate(norm(raw, a["k_norm"]), by)
            )
        window = config.window if layer.kind == SLIDING else None
        out = dense_attention(config, q, lent[layer.kv_source], facts, window)
        x = x + norm(jnp.einsum("btnh,nhd->btd", out, a["o_proj"]), p["post_attention_norm"])
        m, z = p["mlp"], norm(x, p["pre_ffw_norm"])
        branch = (gelu(z @ m["gate_proj"]) * (z @ m["up_proj"])) @ m["down_proj"]
        if config.moe:
            e = p["moe"]
            r = rms_normalize(x, config.norm_eps) * e["router_scale"] * config.d_model**-0.5
            probabilities = jax.nn.softmax(r @ e["router_proj"])
            top, chosen = jax.lax.top_k(probabilities, config.moe.num_experts_per_token)
            weights = jnp.zeros_like(probabilities)
            rows = jnp.indices(chosen.shape)
            weights = weights.at[rows[0], rows[1], chosen].set(top / top.sum(-1, keepdims=True))
            z = norm(x, p["pre_moe_norm"])
            inner = gelu(jnp.einsum("btd,edf->btef", z, e["gate_proj"]))
            inner = inner * jnp.einsum("btd,edf->btef", z, e["up_proj"])
            every = jnp.einsum("btef,efd->bted", inner, e["down_proj"])
            routed = jnp.einsum("bte,bted->btd", weights * e["expert_scale"], every)
            branch = norm(branch, p["post_mlp_norm"]) + norm(routed, p["post_moe_norm"])
        x = x + norm(branch, p["post_ffw_norm"])
        if config.per_layer_input_width:
            c = p["per_layer_input"]
            mixed = (gelu(x @ c["gate_proj"]) * u[:, :, layer.index]) @ c["out_proj"]
            x = x + norm(mixed, c["norm"])
        x = x * jax.lax.stop_gradient(p["layer_scalar"])
    return norm(x, params["final_norm"])


@pytest.mark.parametrize("name", TWINS)
def test_scan_equals_a_plain_loop_over_layers(name):
    config = preset(name)

    def loss(params):
        return loss_of(name, plain_forward(config, params, *batch()), params)

    plain = jax.jit(jax.value_and_grad(loss))(parameters(name))
    assert_same(scanned(name), plain, 1e-4)
    # The layer scalar is a buffer; everything else is trained.
    for path, grad in jax.tree.leaves_with_path(scanned(name)[1]):
        trained = "layer_scalar" not in jax.tree_util.keystr(path)
        assert bool(np.any(grad != 0)) == trained, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", TWINS)
def test_packed_rows_equal_separate_rows(name):
    module, params = transformer(preset(name)), parameters(name)
    rng = np.random.default_rng(4)
    parts = [rng.integers(3, 500, n) for n in (20, 11, 14)]
    packed = np.zeros((1, 48), np.int32)
    segment_ids = np.zeros((1, 48), np.int32)
    separate = np.zeros((3, 48), np.int32)
    masks = np.zeros((3, 48), np.int32)
    start = 0
    for i, part in enumerate(parts):
        packed[0, start : start + len(part)] = part
        segment_ids[0, start : start + len(part)] = i + 1
        separate[i, : len(part)], masks[i, : len(part)] = part, 1
        start += len(part)
    run = jax.jit(lambda t, s: module.apply({"params": params}, t, segment_ids=s))
    together, alone = run(packed, segment_ids), run(separate, masks)
    start = 0
    for i, part in enumerate(parts):
        np.testing.assert_allclose(
            together[0, start : start + len(part)], alone[i, : len(part)], atol=5e-5
        )
        start += len(part)


def test_branches_need_positions():
    module = transformer(preset("tiny-dense"))
    tokens = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="branches need positions"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, branches=tokens))


@pytest.mark.parametrize("name", TWINS)
def test_fresh_parameters_start_at_unit_scale(name):
    config = preset(name)
    params = init_params(config, jax.random.key(7))
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: jnp.array_equal(a, b), params, init_params(config, jax.random.key(7))
        )
    )
    assert not jnp.array_equal(
        params["embed"]["table"], init_params(config, jax.random.key(8))["embed"]["table"]
    )
    module = transformer(config)
    tokens = batch()[0]
    hidden = jax.jit(lambda p: module.apply({"params": p}, tokens))(params)
    logits = jax.jit(lambda p, h: module.apply({"params": p}, h, method="logits"))(params, hidden)
    assert 0.5 < float(hidden.std()) < 2 and 0.5 < float(logits.std()) < 2


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_layout(name):
    config = preset(name)
    cut = segments(config)
    assert [s.start for s in cut[1:]] + [config.num_layers] == [s.stop for s in cut]
    addresses = [layer_address(config, i) for i in range(config.num_layers)]
    assert len(set(addresses)) == config.num_layers
    for layer, at in zip(config.layers, addresses, strict=True):
        assert cut[at.segment].pattern[at.slot].layer.signature == layer.signature
    assert sum(len(s.pattern) for s in cut) <= 4  # bodies to compile, however deep
    axes, shapes = logical_axes(config), abstract_params(config)
    flat = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    for names, shape in zip(flat, jax.tree.leaves(shapes), strict=True):
        assert len(names) == len(shape.shape)
