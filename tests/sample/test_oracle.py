"""Every greedy token of transformers, through the sampler: in company, in chunks, past the window."""

import numpy as np
import pytest

from gemma4_jax.checkpoint import load
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.drafters import Lookup
from gemma4_jax.sample.engine import Engine
from tests.oracle.cases import TEXT_CASES, load_case

CASES = [(name, "value") for name in TEXT_CASES] + [("dense", "value+rotated"), ("dense", "both")]


@pytest.mark.parametrize(("name", "compression"), CASES)
def test_greedy_tokens(name, compression):
    case = load_case(name)
    wanted = case.vectors["greedy_tokens"].tolist()
    prompt = case.vectors["greedy_prompt"][0].tolist()
    assert len(wanted) > 2 * loaded(name).config.window  # the ring goes round while decoding
    sampler = Sampler(loaded(name), cache_compression=compression, prefill_chunk=16)
    company = [case.vectors["input_ids"][1, :n].tolist() for n in (1, 33, 9)]
    done = sampler.generate([company[0], prompt, *company[1:]], len(wanted), ignore_eos=True)
    assert done[1].tokens == wanted
    logits = case.vectors["greedy_logits"].astype(np.float64)
    chosen = logits[np.arange(len(wanted)), wanted]
    logprobs = chosen - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(done[1].logprobs, logprobs, atol=1e-3)


def loaded(name):
    return load(load_case(name).folder)


DRAFTS = Lookup((3,))


@pytest.mark.parametrize(
    ("name", "drafter"),
    # Without a drafter a dispatch gives several tokens: one kind of model shows that.
    [("dense", None), *((name, DRAFTS) for name in TEXT_CASES)],
    ids=["dense-plain", *TEXT_CASES],
)
def test_greedy_tokens_through_an_engine(name, drafter):
    """Everything on at once: chunks, shared prefixes, drafts, too little memory, and company that is sampled,
    penalised, begun by a prefix, cancelled, searched for with beams."""
    case = load_case(name)
    wanted = case.vectors["greedy_tokens"].tolist()
    prompt = case.vectors["greedy_prompt"][0].tolist()
    engine = Engine(
        loaded(name), max_slots=4, max_tokens=192, page_size=4, prefill_tokens=32, steps=4, drafter=drafter
    )  # fmt: skip
    company = [case.vectors["input_ids"][1, :n].tolist() for n in (1, 33, 9, 40)]
    options = {"max_new_tokens": len(wanted), "ignore_eos": True}
    more = [
        dict(temperature=1.1, top_k=20, seed=[3]),
        dict(repetition_penalty=1.3, top_logprobs=3),
        dict(top_logprobs=5),
        dict(prefix=[9, 8, 7]),
        dict(temperature=0.7, frequency_penalty=0.5),
        {},
    ]
    prompts = (*company[:2], prompt, *company[2:], prompt)
    streams = [engine.submit(p, **options, **m) for p, m in zip(prompts, more, strict=True)]
    next(streams[4])
    streams[4].cancel()
    (best,) = engine.beam_search(prompt, 1, **options)
    found = [streams[i].result() for i in (2, 5)]
    assert [one.tokens for one in (*found, best)] == [wanted] * 3
    tops = [top[0][0] for top in found[0].top_logprobs]
    assert tops == wanted and all(len(top) == 5 for top in found[0].top_logprobs)
    assert [stream.result().finish_reason for stream in streams[:2]] == ["length"] * 2
    assert engine.idle and engine.pages.in_use == 0
