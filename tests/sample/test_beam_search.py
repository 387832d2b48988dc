"""Beam search finds what transformers finds, what trying all texts finds, and disturbs nobody."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from gemma4_jax.checkpoint import load
from gemma4_jax.errors import UserError
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.beam_search import BeamOptions, BeamSearch, Step
from gemma4_jax.sample.engine import Engine
from tests.oracle.cases import TEXT_CASES, load_case
from tests.oracle.theirs import eager

SIZES = dict(max_slots=8, max_tokens=1024, page_size=4, prefill_tokens=32, steps=3, snapshots=4)


def table(seed, vocab, longest):
    """log-probabilities after every beginning, of random texts over a few ids."""
    rng = np.random.default_rng(seed)
    beginnings = itertools.chain.from_iterable(
        itertools.product(range(vocab), repeat=n) for n in range(longest)
    )
    return {b: np.log(rng.dirichlet(np.full(vocab, 0.5)).astype(np.float32)) for b in beginnings}


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(4))
def test_with_beams_enough_it_is_the_best_of_all_texts(seed, penalty):
    vocab, longest, stop = 4, 4, 2
    known = table(seed, vocab, longest)
    scores = {}
    for n in range(1, longest + 1):
        for text in itertools.product(range(vocab), repeat=n):
            ends = stop in text
            if text.index(stop) == n - 1 if ends else n == longest:
                total = sum(known[text[:i]][text[i]] for i in range(n))
                scores[text] = total / n**penalty
    wanted = sorted(scores, key=scores.__getitem__, reverse=True)

    options = BeamOptions(beams=vocab**longest, length_penalty=penalty, early_stopping="never")
    search = BeamSearch(options, longest, frozenset([stop]))
    live = [()]
    while live:
        rows = np.stack([known[text] for text in live])
        ids = np.broadcast_to(np.arange(vocab, dtype=np.int32), rows.shape)
        live = [(*live[step.source], step.token) for step in search.advance(ids, rows)]
    found = [tuple(token.id for token in beam.tokens) for beam in search.best()]
    assert found == wanted
    assert [score for score, _ in search.finished] == pytest.approx([scores[t] for t in wanted])


def test_when_it_stops():
    """One text ends at once with 0.5; what goes on has 0.4 and 0.1, then is as good as certain."""
    first = np.log(np.array([[0.5, 0.4, 0.1]], np.float32))
    later = np.log(np.array([[0.01, 0.98, 0.01]] * 1, np.float32))
    ids = np.array([[0, 1, 2]], np.int32)

    def steps(how, penalty):
        options = BeamOptions(beams=1, length_penalty=penalty, early_stopping=how)
        search = BeamSearch(options, 4, frozenset([0]))
        count, going = 1, search.advance(ids, first)
        while going:
            assert going == [Step(0, 1)]
            count, going = count + 1, search.advance(ids, later)
        return count, [token.id for token in search.best()[0].tokens]

    assert steps(True, 1.0) == (1, [0])
    assert steps(False, 0.0) == (1, [0]) == steps("never", 0.0)
    # A sum of log 0.4 over one token is worse than log 0.5; over four tokens it could be better, and is.
    assert steps(False, 1.0) == (1, [0])
    assert steps("never", 1.0) == (4, [1, 1, 1, 1])


def loaded(name):
    return load(load_case(name).folder)


@pytest.fixture(scope="module")
def theirs(transformers):
    """theirs(name, prompt, **options) -> their (tokens, score) of every beam, the best first."""
    import torch

    models = {name: eager(transformers, load_case(name).folder) for name in TEXT_CASES}

    def search(name, prompt, beams, stop_ids, **options):
        with torch.no_grad():
            found = models[name].generate(
                torch.tensor([prompt]), num_beams=beams, num_return_sequences=beams, do_sample=False,
                eos_token_id=stop_ids, pad_token_id=-1, return_dict_in_generate=True, output_scores=True,
                top_k=None, top_p=None, temperature=None, **options,
            )  # fmt: skip
        rows = found.sequences[:, len(prompt) :].tolist()
        texts = [[token for token in row if token >= 0] for row in rows]
        return list(zip(texts, found.sequences_scores.tolist(), strict=True))

    return search


@pytest.mark.parametrize("name", TEXT_CASES)
def test_texts_and_scores_of_transformers(theirs, name):
    """Past the window, over borders of pages, with stop ids that are often met; other requests beside it."""
    model = loaded(name)
    engine = Engine(model, **SIZES)
    inputs = load_case(name).vectors["input_ids"]
    prompt = inputs[1, :19].tolist()
    company = engine.submit(inputs[0, :9].tolist(), max_new_tokens=40, ignore_eos=True)
    next(company)
    cases = [
        (4, dict(length_penalty=1.0, early_stopping=False)),
        (4, dict(length_penalty=0.0, early_stopping=True)),
        (3, dict(length_penalty=2.0, early_stopping="never")),
        (2, dict(length_penalty=-0.5, early_stopping=False)),
    ]
    stop_ids = list(range(3, 250, 9))[:16]
    ended = set()
    for beams, options in cases:
        wanted = theirs(name, prompt, beams, stop_ids, max_new_tokens=14, **options)
        found = engine.beam_search(prompt, beams, max_new_tokens=14, stop_ids=stop_ids, **options)
        assert [one.tokens for one in found] == [tokens for tokens, _ in wanted]
        power = options["length_penalty"]
        scores = [sum(one.logprobs) / len(one.tokens) ** power for one in found]
        np.testing.assert_allclose(scores, [score for _, score in wanted], atol=2e-4)
        ended |= {one.finish_reason for one in found}
    assert ended == {"stop", "length"}
    options = dict(max_new_tokens=40, ignore_eos=True)
    (alone,) = Sampler(model).generate([inputs[0, :9].tolist()], **options)
    assert company.result().tokens == alone.tokens
    assert engine.idle and engine.pages.in_use == 0


def test_nothing_compiles_once_it_has_run_and_prompts_are_read_once(model):
    engine = Engine(model, **SIZES | dict(page_size=8))
    prompt = list(range(20, 61))
    options = dict(max_new_tokens=12, ignore_eos=True)
    first = engine.beam_search(prompt, 4, **options)
    engine.beam_search(prompt, 4, **options)  # the first one to find its prompt known
    compiled, read = [], []
    real = engine._scheduler._device.read
    engine._scheduler._device.read = lambda *args: (
        read.append(sum(map(len, args[4]))),
        real(*args),
    )[1]
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        again = engine.beam_search(prompt, 4, **options)
    finally:
        jax.monitoring.clear_event_listeners()
    assert [one.tokens for one in again] == [one.tokens for one in first]
    assert compiled == [] and read == [1]  # what a prompt needs of its own: its last token
    assert len({tuple(one.tokens) for one in first}) == 4
    text = model.tokenizer.decode(first[0].tokens)
    assert first[0].text == text and first[0].finish_reason == "length"
    # One beam is greedy.
    (greedy,) = engine.generate(prompt, **options)
    (one,) = engine.beam_search(prompt, 1, **options)
    assert (one.tokens, one.text) == (greedy.tokens, greedy.text)
    np.testing.assert_allclose(one.logprobs, greedy.logprobs, atol=1e-5)


def test_too_little_memory_waits_and_bad_searches_are_refused(model):
    engine = Engine(model, **SIZES | dict(max_tokens=160))
    prompt = list(range(20, 50))
    stays = engine.submit(prompt[:9], max_new_tokens=60, ignore_eos=True)
    next(stays)
    (wanted,) = Sampler(model).generate([prompt[:9]], max_new_tokens=60, ignore_eos=True)
    for options, says in [
        (dict(beams=0), "beams must be"),
        (dict(beams=9), "at most max_slots 8"),
        (dict(beams=8, max_new_tokens=60), "need .* positions; max_tokens is 160"),
        (dict(beams=2, length_penalty=float("nan")), "finite"),
        (dict(beams=2, early_stopping="often"), "'often'"),
        (dict(beams=2, temperature=1.0), "temperature has no meaning for beam search"),
        (dict(beams=2, stop="x"), "stop has no meaning"),
        (dict(beams=2, max_new_tokens=200), "160"),
    ]:
        with pytest.raises(UserError, match=says) as error:
            engine.beam_search(prompt, **options)
        assert "\n" not in str(error.value)
    found = engine.beam_search(prompt, 4, max_new_tokens=20, ignore_eos=True)
    assert len(found) == 4 and stays.result().tokens == wanted.tokens
    assert engine.idle and engine.pages.in_use == 0
    table = np.array(model.params["embed"]["table"])
    table[300] = np.nan
    params = model.params | {"embed": model.params["embed"] | {"table": table}}
    broken = Engine(dataclasses.replace(model, params=params), **SIZES)
    with pytest.raises(UserError, match="not finite"):
        broken.beam_search([4, 5, 6], 2, max_new_tokens=4)
    assert broken.idle and broken.pages.in_use == 0
