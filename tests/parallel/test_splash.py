"""The splash kernel, interpreted, is `attend`: outputs and gradients, whatever the mask; or it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.model.attention import KeyValues, attend, dense_attention
from gemma4_jax.model.visibility import TokenFacts
from gemma4_jax.parallel import splash
from gemma4_jax.parallel.kernels import attend_for, describe
from gemma4_jax.presets import preset
from gemma4_jax.sharding import make_mesh

CONFIG = dataclasses.replace(preset("tiny-dense"), bidirectional="vision")
ROWS, HEADS, KV_HEADS = 2, 4, 2


def case(tokens, head_dim, segments, images):
    rng = np.random.default_rng(tokens + head_dim)
    shapes = [(ROWS, tokens, n, head_dim) for n in (HEADS, KV_HEADS, KV_HEADS)]
    q, key, value = (jnp.asarray(rng.normal(size=s) * s[-1] ** -0.25, jnp.float32) for s in shapes)
    index = np.broadcast_to(np.arange(tokens), (ROWS, tokens))
    segment = block = None
    if segments:  # of unequal lengths, and padding
        segment = 1 + (index >= tokens // 3) + (index >= np.array([[tokens // 2], [tokens - 40]]))
        segment = jnp.asarray(np.where(index < tokens - 17, segment, 0), jnp.int32)
    if images:
        block = jnp.asarray(np.where((index >= 30) & (index < 90), 0, -1), jnp.int32)
    facts = TokenFacts(jnp.asarray(index, jnp.int32), segment, block)
    weights = rng.normal(size=q.shape) * (1 if segment is None else (segment > 0)[..., None, None])
    return q, key, value, facts, jnp.asarray(weights, jnp.float32)


def both(function, q, key, value, facts, weights, window, from_key):
    """Output where it counts, and gradients; from_key: values are the keys' (k_eq_v), as far as masks go."""

    def loss(q, key, value):
        held = key if from_key else value
        out = function(CONFIG, q, KeyValues(held, facts, key), facts, window)
        return (out * weights).sum(), out * (weights != 0)

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, key, value)
    return out, *gradients


def interpreted(*arguments):
    return splash.splash_attend(*arguments, interpret=True)


@pytest.mark.parametrize("segments", [False, True], ids=["one", "packed"])
@pytest.mark.parametrize(
    ("tokens", "head_dim", "window", "images", "from_key"),
    [
        (384, 128, 100, False, False),  # a window that is no multiple of a tile
        (512, 256, 128, False, False),
        (256, 256, 1024, False, False),  # longer than the row
        (256, 512, None, False, True),
        (384, 128, None, True, False),  # full layers see images like text
    ],
)
def test_the_kernel_is_attend(tokens, head_dim, window, images, from_key, segments):
    arrays = case(tokens, head_dim, segments, images)
    q, key, value, facts, _ = arrays
    assert splash.refusal(CONFIG, q, KeyValues(value, facts, key), facts, window) is None
    found = both(interpreted, *arrays, window, from_key)
    wanted = both(dense_attention, *arrays, window, from_key)
    for one, other in zip(found, wanted, strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * scale + 1e-7)


def test_over_a_mesh_every_device_has_its_rows_and_heads():
    arrays = case(256, 128, True, False)
    wanted = both(dense_attention, *arrays, 100, False)
    for sizes in ({"data": 2, "tensor": 2}, {"tensor": 4}):  # 4: twice the K/V heads
        with jax.set_mesh(make_mesh(sizes)):
            found = both(interpreted, *arrays, 100, False)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))


def test_what_the_kernel_cannot_do_goes_to_the_reference():
    q, key, value, facts, _ = case(256, 128, False, True)
    kv = KeyValues(value, facts, key)
    branches = dataclasses.replace(facts, branch=jnp.zeros((ROWS, 256), jnp.int32))
    short = case(200, 128, False, False)
    refused = {
        "images": (CONFIG, q, kv, facts, 100),
        "branches": (CONFIG, q, kv, branches, None),
        "two-sided": (dataclasses.replace(CONFIG, bidirectional="all"), q, kv, facts, None),
        "200 tokens": (CONFIG, short[0], KeyValues(short[2], short[3], short[1]), short[3], None),
        "not the same tokens": (CONFIG, q[:, :128], kv, facts[:, :128], None),
    }
    for reason, arguments in refused.items():
        assert reason in splash.refusal(*arguments)
        np.testing.assert_array_equal(interpreted(*arguments), attend(*arguments))


def test_platforms_have_their_own():
    assert attend_for("tpu").keywords["alone"] is splash.splash_attend
    assert attend_for("cpu").keywords["alone"] is attend_for("gpu").keywords["alone"] is attend
    assert "splash" in describe("tpu") and "splash" not in describe("cpu")
