"""The GPU kernels, interpreted, are `attend`: outputs and gradients, whatever the mask; or they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.model.attention import KeyValues, attend, dense_attention
from gemma4_jax.model.visibility import TokenFacts, visible
from gemma4_jax.parallel import attention_bounds, triton_attention
from gemma4_jax.parallel.kernels import attend_for, describe
from gemma4_jax.presets import preset
from gemma4_jax.sharding import make_mesh

CONFIG = dataclasses.replace(preset("tiny-dense"), bidirectional="vision")
ROWS = 2


def facts_of(tokens, *, segments=False, images=False, branches=False):
    """Of two rows: packed documents of unequal lengths and padding; images; answers to one prompt."""
    order = np.broadcast_to(np.arange(tokens), (ROWS, tokens))
    index, segment, block, branch = order, None, None, None
    if segments:
        segment = 1 + (order >= tokens // 3) + (order >= np.array([[tokens // 2], [tokens - 40]]))
        segment = np.where(order < tokens - 17, segment, 0)
    if images:  # one ends a tile, one crosses from a tile into the next
        block = np.where(
            (order >= 30) & (order < 64), 0, np.where((order >= 100) & (order < 150), 1, -1)
        )
    if branches:  # positions go on from the prompt's in each
        prompt, answer = tokens // 2, tokens // 4
        branch = np.where(order < prompt, 0, np.where(order < prompt + answer, 1, 2))
        index = np.where(branch == 2, order - answer, order)
    return TokenFacts(
        *(None if f is None else jnp.asarray(f, jnp.int32) for f in (index, segment, block, branch))
    )


def case(facts, head_dim, heads=(4, 2), dtype=jnp.float32):
    tokens = facts.index.shape[1]
    rng = np.random.default_rng(tokens + head_dim)
    shapes = [(ROWS, tokens, n, head_dim) for n in (heads[0], heads[1], heads[1])]
    q, key, value = (jnp.asarray(rng.normal(size=s) * s[-1] ** -0.25, dtype) for s in shapes)
    weights = rng.normal(size=q.shape)
    if facts.segment is not None:
        weights = weights * (facts.segment > 0)[..., None, None]
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
    return triton_attention.triton_attend(*arguments, interpret=True)


MASKS = [
    # tokens, head_dim, (heads, kv heads), window, facts, k_eq_v
    (256, 256, (4, 2), 100, {}, False),  # a window that is no multiple of a tile
    (300, 256, (2, 2), 64, {"segments": True}, False),  # nor are the tokens; no heads share keys
    (256, 256, (2, 1), 1024, {"images": True}, False),  # a window longer than the row
    (256, 64, (4, 2), 100, {"images": True, "segments": True}, False),
    (128, 512, (2, 1), None, {"segments": True}, True),
    (160, 256, (2, 2), None, {"images": True}, False),  # full layers see images like text
    (256, 64, (4, 2), 80, {"branches": True, "segments": True}, False),
    (256, 64, (4, 2), None, {"branches": True}, False),
]


@pytest.mark.parametrize(("tokens", "head_dim", "heads", "window", "kinds", "from_key"), MASKS)
def test_the_kernels_are_attend(tokens, head_dim, heads, window, kinds, from_key):
    arrays = case(facts_of(tokens, **kinds), head_dim, heads)
    found = both(interpreted, *arrays, window, from_key)
    wanted = both(dense_attention, *arrays, window, from_key)
    for one, other in zip(found, wanted, strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * scale + 1e-7)


def test_in_bfloat16_errors_are_those_of_its_rounding():
    """Against the reference in float32: no further from it than the reference in bfloat16, by half."""
    facts = facts_of(128, segments=True)
    exact = both(dense_attention, *case(facts, 256, (2, 1), jnp.float32), 50, False)
    arrays = case(facts, 256, (2, 1), jnp.bfloat16)
    found, theirs = (both(f, *arrays, 50, False) for f in (interpreted, dense_attention))
    for one, other, wanted in zip(found, theirs, exact, strict=True):
        far, usual = (float(jnp.abs(x.astype(jnp.float32) - wanted).max()) for x in (one, other))
        assert far <= 1.5 * usual


@pytest.mark.parametrize("window", [None, 64, 200])
@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"segments": True},
        {"images": True},
        {"branches": True},
        {"branches": True, "segments": True},
    ],
    ids=lambda kinds: "+".join(kinds) or "plain",
)
def test_runs_of_tiles_hold_whatever_is_visible(window, kinds):
    facts = facts_of(512, **kinds)
    known = {name: fact for name, fact in vars(facts).items() if fact is not None}
    meet = attention_bounds.meetings(known, 64, 32, window, "vision")
    seen = visible(facts, facts, window=window, bidirectional="vision")
    pairs = seen.reshape(ROWS, 8, 64, 16, 32).any((2, 4))
    assert not (pairs & ~meet).any()
    first, end = attention_bounds.run_of(meet)
    tile = np.arange(16)
    held = (tile >= first[..., None]) & (tile < end[..., None])
    assert not (pairs & ~held).any()
    if not kinds:
        np.testing.assert_array_equal(held, pairs)  # and nothing outside the band
    if kinds == {"segments": True}:
        assert held.sum() < (held.shape[1] + 1) * held.shape[1] * ROWS  # less than the causal half


def test_over_a_mesh_every_device_has_its_rows_and_heads():
    arrays = case(facts_of(128, segments=True), 64)
    wanted = both(dense_attention, *arrays, 100, False)
    for sizes in ({"data": 2, "tensor": 2}, {"tensor": 4}):  # 4: twice the K/V heads
        with jax.set_mesh(make_mesh(sizes)):
            found = both(interpreted, *arrays, 100, False)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))


def test_what_the_kernels_cannot_do_goes_to_the_reference():
    q, key, value, facts, _ = case(facts_of(128), 64)
    kv = KeyValues(value, facts, key)
    odd = [x[..., :48] for x in (q, key, value)]
    refused = {
        "two-sided": (dataclasses.replace(CONFIG, bidirectional="all"), q, kv, facts, None),
        "heads of 48 numbers": (CONFIG, odd[0], KeyValues(odd[2], facts, odd[1]), facts, None),
        "not the same tokens": (CONFIG, q[:, :64], kv, facts[:, :64], None),
    }
    for reason, arguments in refused.items():
        assert reason in triton_attention.refusal(*arguments[:3])
        np.testing.assert_array_equal(interpreted(*arguments), attend(*arguments))


def test_a_gpu_takes_them_where_a_run_asks_for_them():
    assert attend_for("gpu").keywords["alone"] is attend
    assert attend_for("gpu", True).keywords["alone"] is triton_attention.triton_attend
    assert "Triton" in describe("gpu", True) and "Triton" not in describe("gpu")
