"""An output that must begin with something does, and goes on as if the model had begun so."""

import jax
import numpy as np
import pytest

from gemma4_jax.build import build
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.drafters import Lookup
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.scoring import prompt_logprobs
from gemma4_jax.text import control

SIZES = dict(max_slots=4, max_tokens=1024, page_size=16, prefill_tokens=32, steps=4, snapshots=2)
TEXT = "17 apples"


def test_it_is_the_first_tokens_and_the_rest_follows_from_it(model, tokenizer):
    prompt, ids = [5, 6, 7], tokenizer.encode(TEXT)
    rest = Sampler(model).generate([prompt + ids], 20 - len(ids), ignore_eos=True)[0]
    scores = prompt_logprobs(model, [prompt + ids])[0][-len(ids) :]
    options = dict(max_new_tokens=20, ignore_eos=True)
    engine = Engine(model, drafter=Lookup((3,)), **SIZES)
    other = engine.submit([8, 9], **options)
    found = [
        Sampler(model).generate([prompt], prefix=TEXT, **options)[0],
        Sampler(model).generate([prompt], prefix=ids, **options)[0],
        engine.submit(prompt, prefix=TEXT, **options).result(),
    ]
    for one in found:
        assert one.tokens == ids + rest.tokens
        np.testing.assert_allclose(one.logprobs, scores + rest.logprobs, atol=1e-4)
        assert one.text == tokenizer.decode(one.tokens) and one.text.startswith(TEXT)
    assert other.result().tokens == Sampler(model).generate([[8, 9]], **options)[0].tokens


def test_it_streams_and_is_drawn_like_others(model):
    """Noise goes by a token's number in its row, whoever chose those before it."""
    options = dict(max_new_tokens=20, ignore_eos=True, temperature=1.3, top_k=40, seed=[6])
    engine = Engine(model, **SIZES)
    stream = engine.submit([5, 6, 7], prefix=TEXT, **options)
    text = "".join(event.text for event in stream)
    assert text == stream.completion.text and text.startswith(TEXT)
    (alone,) = Sampler(model).generate([[5, 6, 7]], prefix=TEXT, **options)
    assert stream.completion.tokens == alone.tokens
    # The model's own beginning, as a prefix, changes nothing.
    (free,) = Sampler(model).generate([[5, 6, 7]], **options)
    for length in (1, 7, 20):
        (same,) = Sampler(model).generate([[5, 6, 7]], prefix=free.tokens[:length], **options)
        assert same.tokens == free.tokens


def test_constraints_and_thoughts_go_on_from_it(model, tokenizer):
    pytest.importorskip("llguidance")
    from gemma4_jax.sample import constraints

    engine = Engine(model, **SIZES)
    only = constraints.choices(["17 apples", "17 pears", "3 pears"])
    options = dict(max_new_tokens=20, temperature=1.0, constraint=only)
    texts = {engine.submit([5], prefix="17 p", seed=[i], **options).result().text for i in range(4)}
    assert texts == {"17 pears"}
    with pytest.raises(UserError, match=r"does not allow the prefix, of .* from token"):
        engine.submit([5], prefix="18", **options)
    opened, closed = (
        tokenizer.control_tokens[name] for name in (control.CHANNEL, control.CHANNEL_END)
    )
    thought = [opened, *tokenizer.encode("thought\n3 and ")]
    found = engine.submit(
        [5], prefix=thought, thinking_budget=len(thought) + 2, max_new_tokens=30, ignore_eos=True
    ).result()
    assert found.tokens[: len(thought)] == thought
    assert found.tokens[len(thought) :].index(closed) <= 5
    # Used up inside the prefix: it is closed behind it.
    spent = engine.submit([5], prefix=thought, thinking_budget=2, max_new_tokens=30).result()
    assert spent.tokens[len(thought)] == closed


def test_bad_prefixes(model, tokenizer):
    sampler = Sampler(model)
    stop = tokenizer.stop_ids[0]
    for options, says in [
        (dict(prefix=[9999]), "from 0 to 511"),
        (dict(prefix=[4, stop]), "behind which nothing can come"),
        (dict(prefix=[4, 400]), "may never be chosen"),
        (dict(prefix=[4, 5], suppress=[5]), "id 5, which may never"),
        (dict(prefix=[4, 5, 6], max_new_tokens=2), "3 tokens and max_new_tokens is 2"),
    ]:
        with pytest.raises(UserError, match=says):
            sampler.generate([[3]], **options)
    config = preset("tiny-dense")
    bare = build(config, init_params(config, jax.random.key(0)))
    with pytest.raises(UserError, match="no tokenizer"):
        Sampler(bare).generate([[3]], prefix="a")
