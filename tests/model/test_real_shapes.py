"""The five released models traced at their real shapes: nothing is allocated, everything must fit together."""

import jax
import jax.numpy as jnp
import pytest

from gemma4_jax.build import transformer
from gemma4_jax.logprobs import token_logprobs
from gemma4_jax.model.cache import bytes_per_token, init_cache
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import preset

RELEASED = ("e2b", "e4b", "12b", "26b-a4b", "31b")


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.mark.parametrize("name", RELEASED)
def test_loss_and_gradient_at_8192_tokens(name):
    config = preset(name)
    module = transformer(config, "bfloat16", "full")
    params = abstract_params(config)

    def loss(params, tokens):
        hidden = module.apply({"params": params}, tokens)
        targets = jnp.roll(tokens, -1, axis=1)
        logprobs = token_logprobs(
            hidden, params["embed"]["table"], targets, softcap=config.logit_softcap
        )
        return -logprobs.mean()

    value, grads = jax.eval_shape(jax.value_and_grad(loss), params, ints(2, 8192))
    assert value.shape == () and value.dtype == jnp.float32
    assert jax.tree.map(lambda g: (g.shape, g.dtype), grads) == jax.tree.map(
        lambda p: (p.shape, p.dtype), params
    )


@pytest.mark.parametrize("name", RELEASED)
def test_decode_step_at_full_context(name):
    config = preset(name)
    module = transformer(config, "bfloat16")
    cache = jax.eval_shape(lambda: init_cache(config, 1, config.max_position, jnp.bfloat16, "both"))

    def step(params, tokens, count, cache):
        return module.apply({"params": params}, tokens, count, cache, method="extend")

    params = abstract_params(config, jnp.bfloat16)
    hidden, after = jax.eval_shape(step, params, ints(1, 1), ints(1), cache)
    assert hidden.shape == (1, 1, config.d_model) and hidden.dtype == jnp.bfloat16
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, cache)

    sliding = sum(
        4 * layer.num_kv_heads * layer.head_dim * min(config.window, config.max_position)
        for layer in config.layers
        if layer.owns_kv and layer.kind == "sliding"
    )
    full = sum(
        4 * layer.num_kv_heads * layer.head_dim * config.max_position
        for layer in config.layers
        if layer.owns_kv and layer.kind == "full"
    )
    assert sum(x.size * 2 for x in jax.tree.leaves(cache.entries)) == sliding + full


@pytest.mark.parametrize(
    ("name", "expected"),
    [("e2b", 18_432), ("e4b", 57_344), ("12b", 344_064), ("26b-a4b", 225_280), ("31b", 901_120)],
)
def test_cache_bytes_per_token(name, expected):
    assert bytes_per_token(preset(name)) == expected
