"""An engine gives each request what it gets alone, whatever comes, goes and is shared meanwhile."""

import asyncio
import dataclasses
import threading

import jax
import numpy as np
import pytest

from gemma4_jax.build import build
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.engine import Engine

SIZES = dict(max_slots=4, max_tokens=1024, page_size=8, prefill_tokens=64, steps=4, snapshots=6)


def varied(count, seed=0, longest=100):
    """Prompts and options: some begin alike, some are sampled."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, 330, 40).tolist()
    cases = []
    for i in range(count):
        prompt = rng.integers(3, 330, int(rng.integers(1, longest - 40))).tolist()
        if i % 3 == 0:
            prompt = shared[: int(rng.integers(10, 40))] + prompt
        options = dict(max_new_tokens=int(rng.integers(1, 30)), seed=[i], ignore_eos=bool(i % 2))
        if i % 4 == 1:
            options |= dict(temperature=1.2, top_k=20, top_p=0.9)
        if i % 4 == 3:
            options |= dict(temperature=0.8, min_p=0.01)
        cases.append((prompt, options))
    return cases


def alone(model, cases):
    sampler = Sampler(model, max_batch=1)
    return [sampler.generate([prompt], **options)[0] for prompt, options in cases]


def same(found, wanted):
    assert found.tokens == wanted.tokens
    assert found.text == wanted.text
    assert found.finish_reason == wanted.finish_reason
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-4)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, **SIZES)


def test_requests_get_what_they_get_alone(model, engine):
    cases = varied(12)
    streams = [engine.submit(prompt, **options) for prompt, options in cases]
    for stream, wanted in zip(streams, alone(model, cases), strict=True):
        same(stream.result(), wanted)
    assert engine.idle and engine.pages.in_use == 0


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe"])
def test_other_kinds_of_models(name):
    config = dataclasses.replace(preset(name), max_position=160)
    other = build(config, init_params(config, jax.random.key(0)))
    cases = [(prompt, {**options, "ignore_eos": True}) for prompt, options in varied(5, seed=1)]
    engine = Engine(other, **SIZES)
    streams = [engine.submit(prompt, **options) for prompt, options in cases]
    for stream, wanted in zip(streams, alone(other, cases), strict=True):
        same(stream.result(), wanted)


def test_too_little_memory_interrupts_and_changes_nothing(model):
    cases = [
        (prompt, options | {"max_new_tokens": 40})
        for prompt, options in varied(8, seed=2, longest=90)
    ]
    tight = Engine(model, **SIZES | dict(max_tokens=136))
    interrupted = []
    real = tight._interrupt
    tight._interrupt = lambda task: (interrupted.append(task.number), real(task))
    streams = [tight.submit(prompt, **options) for prompt, options in cases]
    for stream, wanted in zip(streams, alone(model, cases), strict=True):
        same(stream.result(), wanted)
    assert interrupted
    assert tight.pages.in_use == 0 and tight.pages.available == tight.pages.count
