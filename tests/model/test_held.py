"""Attention to a cache in blocks is the reference's over its whole slice, for every way to remember."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.config import FULL
from gemma4_jax.model import held
from gemma4_jax.model.attention import KeyValues, dense_attention, rotated_slice
from gemma4_jax.model.cache import COMPRESSIONS, entry_widths
from gemma4_jax.model.held import Held, attend_held
from gemma4_jax.model.rope import rotation
from gemma4_jax.model.visibility import EMPTY, TokenFacts
from gemma4_jax.presets import preset

CONFIG = dataclasses.replace(preset("tiny-dense"), k_eq_v=True)
LAYER = next(layer for layer in CONFIG.layers if layer.kind == FULL)
ROWS, SLOTS = 3, 96


@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("block", [32, 96])
def test_blocks_are_the_whole(monkeypatch, block, compression, new):
    monkeypatch.setattr(held, "BLOCK", block)
    monkeypatch.setattr(held, "_QUERIES", 2)
    rng = np.random.default_rng(0)
    heads, width = LAYER.num_kv_heads, LAYER.head_dim
    value = jnp.asarray(rng.normal(size=(2, 3, ROWS, SLOTS, heads, width)), jnp.float32)
    scale = jnp.asarray(rng.normal(size=width), jnp.float32)
    length = jnp.array([new, 33, 70])  # in the first block, just into the second, in the third
    at = (1, 2)
    by = rotation(jnp.arange(SLOTS)[None], width, LAYER.rope)
    rotated = rotated_slice(value[at], scale, by)
    facts = TokenFacts(jnp.where(jnp.arange(SLOTS) < length[:, None], jnp.arange(SLOTS), EMPTY))
    kv = KeyValues(value[at], facts, rotated=rotated, key_scale=scale)
    if compression == "both":  # any key will do
        key = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
        kv = KeyValues(value[at], facts, key[at])
        entry = {"key": key, "value": value}
    else:
        entry = {"value": value}
        if "rotated" in entry_widths(LAYER, compression):
            entry["rotated"] = jnp.zeros((2, 3, *rotated.shape)).at[at].set(rotated)
    # Nothing that was not written may count, whatever it is.
    unwritten = (jnp.arange(SLOTS) >= length[:, None])[..., None, None]
    entry = {name: jnp.where(unwritten, 1e4, buffer) for name, buffer in entry.items()}
    q = jnp.asarray(rng.normal(size=(ROWS, new, CONFIG.num_heads, width)), jnp.float32)
    queries = TokenFacts(length[:, None] - new + jnp.arange(new))
    found = attend_held(CONFIG, q, Held(entry, at, scale, length, LAYER), queries, None)
    wanted = dense_attention(CONFIG, q, kv, queries, None)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
