"""8 bits a number: half a step of error at most, and logits that hardly move."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.build import build
from gemma4_jax.errors import UserError
from gemma4_jax.model.cache import COMPRESSIONS, init_cache
from gemma4_jax.model.cache_precision import restored, with_scales
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.engine import Engine


def test_every_head_has_its_own_scale():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(2, 5, 3, 16)).astype(np.float32)
    value[0, 1, 2] *= 1000  # an outlier is nobody else's business
    value[1, 4] = 0
    entry = {"value": jnp.zeros((1,), jnp.int8), "value_scale": jnp.zeros((1,))}
    kept = with_scales({"value": jnp.array(value), "key": jnp.array(value)}, entry)
    assert kept["value"].dtype == jnp.int8 and kept["value_scale"].shape == (2, 5, 3, 1)
    back = restored(kept, jnp.float32)
    assert list(back) == ["value"]
    step = np.abs(value).max(-1, keepdims=True) / 127
    assert (np.abs(back["value"] - value) <= step / 2 * 1.001).all()
    floats = {"value": jnp.zeros((1,))}
    value = jnp.array(value)
    assert with_scales({"value": value, "key": value}, floats) == {"value": value}


@pytest.mark.parametrize("name", ["tiny-ple", "tiny-dense", "tiny-moe"])
@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.02), ("float8", 0.08)])
def test_logits_hardly_move(name, dtype, bound):
    """The error of whole models, relative to the spread of their logits; measured 0.004 and 0.03."""
    config = preset(name)
    model = build(config, init_params(config, jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(3, 500, (2, 70)).astype(np.int32)
    exact = np.asarray(model.logits(tokens))
    for compression in COMPRESSIONS if name == "tiny-dense" else COMPRESSIONS[:1]:
        cache = init_cache(config, 2, 80, held(dtype), compression)
        found = through(model, cache, tokens)
        error = np.abs(found - exact).std() / exact.std()
        print(name, dtype, compression, error)
        assert 0 < error < bound


def held(name):
    return {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}[name]


def through(model, cache, tokens):
    """Logits of all tokens, in chunks and single steps."""
    variables, parts, at = {"params": model.params}, [], 0
    for size in (40, 16, *(1,) * 14):
        count = jnp.full((2,), size, jnp.int32)
        part = tokens[:, at : at + size]
        x, cache = _extend(model.module, variables, part, count, cache)
        parts.append(model.module.apply(variables, x, method="logits"))
        at += size
    return np.concatenate(parts, axis=1)


_extend = jax.jit(
    lambda module, variables, *args: module.apply(variables, *args, method="extend"),
    static_argnums=0,
)


def test_half_the_memory():
    config = preset("31b")
    sizes = [
        sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(
                jax.eval_shape(lambda d=d: init_cache(config, 1, 262_144, d, "value").entries)
            )
        )
        for d in (jnp.bfloat16, jnp.int8)
    ]
    assert sizes[0] < 11.7e9 and sizes[1] < 11.7e9 / 2 * 1.02


def test_samplers_and_engines_agree():
    config = dataclasses.replace(preset("tiny-ple"), max_position=160)
    model = build(config, init_params(config, jax.random.key(0)))
    prompt = list(range(3, 60))
    options = dict(max_new_tokens=20, ignore_eos=True)
    wanted = Sampler(model, cache_dtype="int8", prefill_chunk=64).generate([prompt], **options)[0]
    engine = Engine(
        model, max_slots=2, max_tokens=320, page_size=16, prefill_tokens=64, cache_dtype="int8"
    )
    assert engine.submit(prompt, **options).result().tokens == wanted.tokens
    with pytest.raises(UserError, match=r"int4.*int8"):
        Sampler(model, cache_dtype="int4")
