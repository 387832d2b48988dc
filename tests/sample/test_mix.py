"""Sixty-four requests of all kinds at once: each gets exactly what it gets alone."""

import dataclasses

import numpy as np
import pytest

from gemma4_jax.build import build
from gemma4_jax.sample import Sampler, constraints
from gemma4_jax.sample.drafters import Lookup
from gemma4_jax.sample.engine import Engine

pytest.importorskip("llguidance", reason="pip install -e '.[dev]'")

LONGEST, COUNT = 8192, 64
#: Beside the longest, which writes long too, there is little memory for rows that do: somebody is interrupted.
SIZES = dict(max_slots=4, max_tokens=8320, page_size=8, prefill_tokens=512, steps=4, snapshots=4)
SHORT, LONG_TEXT = 8, 47


@dataclasses.dataclass(frozen=True)
class Asked:
    prompt: list[int]
    options: dict
    cancelled_after: int | None  # tokens


def mix(seed):
    """Lengths from 1 to 8192 whose logarithms are even; half of the prompts begin alike."""
    forms = [
        constraints.choices(["apples", "naïve café", "17 pears"]),
        constraints.regex(r"[0-9]{3,5}-[a-f]+"),
        constraints.json_schema({"type": "object", "properties": {"n": {"type": "integer"}}}),
    ]
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(0, np.log(LONGEST), COUNT)).astype(int)
    lengths[:3] = 1, LONGEST, LONGEST - 1
    rng.shuffle(lengths)
    shared = rng.integers(3, 330, LONGEST).tolist()
    asked = []
    for i, length in enumerate(lengths.tolist()):
        common = int(rng.integers(length)) if i % 2 else 0
        prompt = shared[:common] + rng.integers(3, 330, length - common).tolist()
        writes = LONG_TEXT if length < SHORT or length == LONGEST else int(rng.integers(1, 30))
        options = dict(max_new_tokens=writes, seed=[i])
        if rng.random() < 0.5:
            options |= dict(
                temperature=float(rng.uniform(0.5, 1.5)), top_k=int(rng.integers(2, 64))
            )
        if i % 6 == 2 and length < LONGEST:
            options |= dict(constraint=forms[i % 3])
        elif rng.random() < 0.7 or length == LONGEST:
            options |= dict(ignore_eos=True)
        asked.append(
            Asked(
                prompt, options, int(rng.integers(12)) if i % 7 == 3 and length < LONGEST else None
            )
        )
    return asked


def arrivals(asked, rng):
    """At random, the last one first; but right behind the longest come three that write long."""
    short = [
        i
        for i, one in enumerate(asked)
        if one.options["max_new_tokens"] == LONG_TEXT
        and one.options.get("ignore_eos")
        and one.cancelled_after is None
    ][:3]
    assert len(short) == 3
    order = [i for i in rng.permutation(COUNT).tolist() if i not in short]
    longest = next(i for i, one in enumerate(asked) if len(one.prompt) == LONGEST)
    at = order.index(longest)
    return [*order[:at], *short, *order[at:]]


@pytest.fixture(scope="module")
def long_model(model, tokenizer):
    config = dataclasses.replace(model.config, max_position=LONGEST + 64)
    return build(config, model.params, tokenizer)


@pytest.fixture(scope="module")
def alone(long_model):
    """What each gets in an engine that it has for itself; a few of them by a sampler too."""
    one = Engine(long_model, **SIZES | dict(max_slots=1, snapshots=1))
    sampler = Sampler(long_model, max_batch=1)
    found = []
    for i, asked in enumerate(mix(0)):
        found.append(one.submit(asked.prompt, **asked.options).result())
        one.pages.forget()
        if i % 24 == 0 or len(asked.prompt) == LONGEST:
            (other,) = sampler.generate([asked.prompt], **asked.options)
            assert other.tokens == found[-1].tokens
    return found


@pytest.mark.slow
@pytest.mark.parametrize("drafter", [None, Lookup((3,))], ids=["plain", "drafter"])
def test_any_mix_gives_each_what_it_gets_alone(long_model, alone, drafter):
    """Arriving at random, some cancelled, with too little memory, with and without drafts."""
    engine = Engine(long_model, drafter=drafter, **SIZES)
    interrupted = []
    real = engine._scheduler._interrupt
    engine._scheduler._interrupt = lambda task: (interrupted.append(task.number), real(task))
    asked, rng = mix(0), np.random.default_rng(1)
    order = arrivals(asked, rng)
    streams, together = {}, 0
    while order or not engine.idle:
        while order and rng.random() < 0.4:
            i = order.pop()
            streams[i] = engine.submit(asked[i].prompt, **asked[i].options)
        engine.step()
        together = max(together, sum(not stream.ended for stream in streams.values()))
        for i, stream in streams.items():
            most = asked[i].cancelled_after
            got = sum(len(event.tokens) for event in stream.waiting)
            if most is not None and got >= most:
                stream.cancel()
    kinds = dict.fromkeys(("cancelled", "stop", "length"), 0)
    for i, wanted in enumerate(alone):
        found = streams[i].result()
        kinds[found.finish_reason] += 1
        if found.finish_reason == "cancelled":
            assert asked[i].cancelled_after is not None
            assert found.tokens == wanted.tokens[: len(found.tokens)], i
        else:
            assert found.tokens == wanted.tokens, i
            assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason), i
    assert min(kinds.values()) >= 3 and interrupted and together > SIZES["max_slots"]
    assert engine.pages.in_use == 0 and engine.pages.available == engine.pages.count
