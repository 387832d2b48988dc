"""Scores are changed as written out by hand; without penalties nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.penalties import Penalties, penalised

PROMPT = [5, 9, 9, 300, 41, 7]
SIZES = dict(max_slots=4, max_tokens=512, page_size=8, prefill_tokens=32, steps=4, snapshots=2)


def by_hand(logits, prompt, output, repetition, presence, frequency, bias):
    scores = logits.astype(np.float64).copy()
    for i in set(prompt) | set(output):
        scores[i] = scores[i] / repetition if scores[i] > 0 else scores[i] * repetition
    for i in set(output):
        scores[i] -= presence + frequency * output.count(i)
    for i, value in bias.items():
        scores[i] += value
    return scores


def test_scores_equal_those_by_hand():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 50)).astype(np.float32)
    outputs = [[1, 1, 2], [], [7, 8, 8, 8]]
    prompts = [[2, 3], [4], [8, 9]]
    values = [(1.3, 0.5, 0.2), (2.0, 1.0, 1.0), (0.7, -0.5, 0.0)]
    biases = [{}, {6: -np.inf, 7: 2.0}, {8: 1.5}]
    counts, prompted = np.zeros((3, 50), np.int32), np.zeros((3, 50), bool)
    bias = np.zeros((3, 50), np.float32)
    for row in range(3):
        np.add.at(counts[row], outputs[row], 1)
        prompted[row, prompts[row]] = True
        for i, value in biases[row].items():
            bias[row, i] = value
    columns = (jnp.array(column, jnp.float32) for column in zip(*values, strict=True))
    got = penalised(jnp.array(logits), Penalties(*columns, bias, counts, prompted))
    for row in range(3):
        want = by_hand(logits[row], prompts[row], outputs[row], *values[row], biases[row])
        np.testing.assert_allclose(got[row], want, rtol=1e-5)


def greedy_by_hand(model, steps, **by):
    tokens = list(PROMPT)
    for _ in range(steps):
        logits = np.array(model.logits(np.array([tokens]))[0, -1])
        scores = by_hand(logits, PROMPT, tokens[len(PROMPT) :], **by)
        scores[model.tokenizer.vocab_size :] = -np.inf
        tokens.append(int(scores.argmax()))
    return tokens[len(PROMPT) :]


def test_decoding_counts_what_it_says(model):
    by = dict(repetition=1.8, presence=0.7, frequency=0.4, bias={11: 2.5, 12: -np.inf})
    want = greedy_by_hand(model, 10, **by)
    options = dict(
        max_new_tokens=10,
        ignore_eos=True,
        repetition_penalty=1.8,
        presence_penalty=0.7,
        frequency_penalty=0.4,
        logit_bias={11: 2.5},
        suppress=[12],
    )
    assert Sampler(model).generate([PROMPT], **options)[0].tokens == want
    engine = Engine(model, **SIZES)
    plain = Sampler(model).generate([PROMPT], max_new_tokens=20, ignore_eos=True)[0]
    assert plain.tokens[:10] != want
    company = engine.submit(PROMPT, max_new_tokens=20, ignore_eos=True)
    next(company)
    assert engine.submit(PROMPT, **options).result().tokens == want
    assert company.result().tokens == plain.tokens
    assert not engine._scheduler._device.penalised  # gone with who asked for them


def test_the_likeliest_are_told(model):
    options = dict(max_new_tokens=4, ignore_eos=True)
    found = Sampler(model).generate([PROMPT], top_logprobs=5, **options)[0]
    logits = model.logits(np.array([PROMPT]))[0, -1]
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    order = np.argsort(-logprobs)[:5]
    assert [i for i, _ in found.top_logprobs[0]] == order.tolist()
    np.testing.assert_allclose([p for _, p in found.top_logprobs[0]], logprobs[order], atol=1e-5)
    engine = Engine(model, **SIZES)
    others = engine.submit([3, 4], **options), engine.submit(PROMPT, top_logprobs=5, **options)
    assert others[0].result().top_logprobs == []
    again = others[1].result()
    assert [[i for i, _ in top] for top in again.top_logprobs] == [
        [i for i, _ in top] for top in found.top_logprobs
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(repetition_penalty=0), "repetition_penalty"),
        (dict(frequency_penalty=float("nan")), "frequency_penalty"),
        (dict(logit_bias={999: 1.0}), "999"),
        (dict(logit_bias={3: float("inf")}), "logit_bias"),
        (dict(suppress=[-1]), "-1"),
        (dict(top_logprobs=21), "20"),
    ],
)
def test_bad_values_are_refused(model, options, says):
    with pytest.raises(UserError, match=says):
        Sampler(model).generate([PROMPT], **options)
