"""A model laid out for decoding says what the model says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.build import build
from gemma4_jax.checkpoint import save, save_huggingface
from gemma4_jax.errors import UserError
from gemma4_jax.model.apart import is_taken_apart, take_apart
from gemma4_jax.model.layers import unembed
from gemma4_jax.model.transformer import init_params
from gemma4_jax.model.weights import Apart
from gemma4_jax.parallel.kernels import unembed_for
from gemma4_jax.presets import preset
from gemma4_jax.sample.sampler import Sampler


def model_of(kind):
    config = preset(kind)
    return build(config, init_params(config, jax.random.key(1)))


def taken_apart(kind, smallest=0):
    model = model_of(kind)
    return dataclasses.replace(model, params=take_apart(model.params, smallest))


@pytest.mark.parametrize(("kind", "rows"), [("tiny-dense", 1), ("tiny-ple", 2), ("tiny-moe", 2)])
def test_the_same_tokens_and_logits(kind, rows):
    whole, apart = model_of(kind), taken_apart(kind)
    assert is_taken_apart(apart.params)
    assert not is_taken_apart(whole.params)
    # Of unequal length: rings wrap round, and borrowed keys and values are read.
    prompts = np.random.default_rng(0).integers(3, 250, (2, 21)).tolist()
    prompts[1] = prompts[1][:5]
    theirs, ours = (
        Sampler(model).generate(
            prompts[:rows], max_new_tokens=24, ignore_eos=True, temperature=1.0, seed=3
        )
        for model in (whole, apart)
    )
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.tokens == expected.tokens
        np.testing.assert_allclose(mine.logprobs, expected.logprobs, atol=1e-4)
    # Many tokens at once, without a cache.
    np.testing.assert_allclose(
        apart.logits(prompts[:1]), whole.logits(prompts[:1]), atol=1e-4, rtol=1e-4
    )


def test_small_matrices_and_experts_stay_in_their_stacks():
    model = taken_apart("tiny-moe")
    kinds = {
        tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))[2:]: type(node)
        for path, node in jax.tree_util.tree_leaves_with_path(
            model.params, is_leaf=lambda node: isinstance(node, Apart)
        )
    }
    assert kinds["attention", "q_proj"] is Apart
    assert kinds["mlp", "down_proj"] is Apart
    assert not any(kind is Apart for names, kind in kinds.items() if "moe" in names)
    assert kinds["pre_ffw_norm", "scale"] is not Apart
    small = model_of("tiny-moe")
    assert not is_taken_apart(small.for_decoding().params)
    assert not is_taken_apart(take_apart(small.params, 1 << 30))


def test_memory_moves_stack_by_stack():
    model = model_of("tiny-dense")
    stack = model.params["segment_0"]["slot_0"]["mlp"]["gate_proj"]
    values, norm = np.array(stack), model.params["segment_0"]["slot_0"]["pre_ffw_norm"]["scale"]
    apart = take_apart(model.params, 0)["segment_0"]["slot_0"]["mlp"]["gate_proj"]
    assert stack.is_deleted()
    assert not norm.is_deleted()
    repeats, places = apart.stack
    for number, matrix in enumerate(apart.matrices):
        np.testing.assert_array_equal(matrix.T, values[divmod(number, places)])
    assert len(apart.matrices) == repeats * places


def test_bfloat16_stays_as_it_is():
    config = preset("tiny-dense")
    params = init_params(config, jax.random.key(0), jnp.bfloat16)
    assert not is_taken_apart(take_apart(params, 0))
    model = build(config, params, dtype=jnp.bfloat16)
    assert model.for_decoding() is model


@pytest.mark.parametrize("write", [save, save_huggingface])
def test_it_cannot_be_saved(tmp_path, write):
    with pytest.raises(UserError, match=r"laid out for decoding .* load it again"):
        write(taken_apart("tiny-dense"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokens", [1, 3, 80])
def test_unembedding_on_a_cpu(tokens):
    rng = np.random.default_rng(tokens)
    hidden = jnp.asarray(rng.normal(size=(2, tokens, 16)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(50, 16)), jnp.float32)
    assert unembed_for("tpu") is unembed
    ours = jax.jit(unembed_for("cpu"))(hidden, table)
    np.testing.assert_allclose(ours, unembed(hidden, table), atol=1e-5, rtol=1e-5)
