"""An engine gives each request what it gets alone, whatever comes, goes and is shared meanwhile."""

import asyncio
import dataclasses
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from gemma4_jax.build import build
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler, engine_programs
from gemma4_jax.sample.engine import Engine

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
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
    real = tight._scheduler._interrupt
    tight._scheduler._interrupt = lambda task: (interrupted.append(task.number), real(task))
    streams = [tight.submit(prompt, **options) for prompt, options in cases]
    for stream, wanted in zip(streams, alone(model, cases), strict=True):
        same(stream.result(), wanted)
    assert interrupted
    assert tight.pages.in_use == 0 and tight.pages.available == tight.pages.count


@pytest.fixture
def reads(monkeypatch):
    """Prompt tokens of every prefill call."""
    counts, real = [], engine_programs.prefill

    def counted(*args):
        counts.append(int(np.sum(args[-1])))
        return real(*args)

    monkeypatch.setattr(engine_programs, "prefill", counted)
    return counts


def test_samples_of_one_prompt_read_it_once(model, reads):
    engine, sampler = Engine(model, **SIZES), Sampler(model)
    prompt = np.random.default_rng(3).integers(3, 330, 70).tolist()
    options = dict(max_new_tokens=9, temperature=1.0, top_k=30, seed=5, ignore_eos=True)
    found = [stream.result() for stream in engine.samples(prompt, 6, **options)]
    for one, wanted in zip(found, sampler.generate([prompt] * 6, **options), strict=True):
        same(one, wanted)
    assert len({tuple(one.tokens) for one in found}) == 6
    # The others read what follows the last full page, and nothing else.
    assert sum(reads) == 70 + 5 * (70 - 64)


def test_a_conversation_goes_on_from_its_pages(model, reads):
    engine, sampler = Engine(model, **SIZES), Sampler(model)
    prompt = np.random.default_rng(4).integers(3, 330, 50).tolist()
    answer = engine.submit(prompt, max_new_tokens=20, ignore_eos=True).result().tokens
    again = [*prompt, *answer, *range(5, 15)]
    wanted = sampler.generate([again], max_new_tokens=8, ignore_eos=True)[0]
    before = sum(reads)
    same(engine.submit(again, max_new_tokens=8, ignore_eos=True).result(), wanted)
    assert sum(reads) - before == 80 - (50 + 19) // 8 * 8


def test_long_prompts_do_not_stop_others(model):
    engine = Engine(model, **SIZES | dict(prefill_tokens=32, steps=1))
    first = engine.submit([5, 6, 7], max_new_tokens=40, ignore_eos=True)
    next(first)
    long = engine.submit(list(range(3, 123)), max_new_tokens=2, ignore_eos=True)
    steps = 0
    while not long.ready:
        engine.step()
        steps += 1
    got = sum(len(event.tokens) for event in first.waiting)
    assert steps >= 4 and got >= steps - 1


def test_cancelled_requests_leave_at_once(model, engine):
    stays = engine.submit([9, 8, 7], max_new_tokens=30, ignore_eos=True)
    goes = engine.submit([9, 8, 6], max_new_tokens=100, ignore_eos=True)
    got = next(goes)
    goes.cancel()
    done = goes.result()
    assert done.finish_reason == "cancelled" and done.tokens[: len(got.tokens)] == [
        token.id for token in got.tokens
    ]
    waiting = engine.submit([1] * 9, max_new_tokens=5)
    waiting.cancel()
    waiting.cancel()
    assert waiting.result().tokens == []
    same(stays.result(), alone(model, [([9, 8, 7], dict(max_new_tokens=30, ignore_eos=True))])[0])
    assert engine.idle and engine.pages.in_use == 0


def test_many_threads_and_async_readers(model, engine):
    cases = varied(6, seed=5)
    wanted = alone(model, cases)
    found = [None] * 6

    def read(i):
        found[i] = engine.submit(cases[i][0], **cases[i][1]).result()

    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()

    async def one(i):
        stream = engine.submit(cases[i][0], **cases[i][1])
        text = "".join([event.text async for event in stream])
        assert text == stream.completion.text
        found[i] = stream.completion

    async def rest():
        await asyncio.gather(*(one(i) for i in range(3, 6)))

    asyncio.run(rest())
    for thread in threads:
        thread.join()
    for one_found, one_wanted in zip(found, wanted, strict=True):
        same(one_found, one_wanted)


@pytest.mark.parametrize("pinned", [False, True])
def test_nothing_compiles_after_warming_up(model, pinned):
    if pinned:  # to a device, as what an Orbax folder holds is
        params = jax.device_put(model.params, jax.devices()[0])
        model = dataclasses.replace(model, params=params)
    engine = Engine(model, **SIZES | ({"max_slots": 1, "prefill_tokens": 32} if pinned else {}))
    engine.warm_up()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        cases = varied(10, seed=6)
        for _, options in cases:
            options.pop("min_p", None)
            options.setdefault("top_k", 20)
        streams = [engine.submit(prompt, **options) for prompt, options in cases]
        for stream in streams:
            stream.result()
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_bad_requests_are_refused_and_others_go_on(model, engine):
    stream = engine.submit([4, 5, 6], max_new_tokens=20, ignore_eos=True)
    next(stream)
    bad = [
        (dict(prompt=[3] * 150, max_new_tokens=20), "160"),
        (dict(prompt=""), "empty"),
        (dict(prompt=[]), "empty"),
        (dict(prompt=[3, 9999]), "9999"),
        (dict(prompt=[3], temperature=-1), "temperature"),
        (dict(prompt=[3], stop_ids=list(range(17))), "16"),
        (dict(prompt=[3], stop=["x"] * 10_000), "stop"),
        (dict(prompt=[3], top_p=0), "top_p"),
        (dict(prompt=b"caf\xe9"), "not bytes"),
        (dict(prompt=[3], tools=TOOLS, tool_choice="wether"), "did you mean 'weather'"),
        (dict(prompt=[3], tool_choice="required"), "needs tools"),
    ]
    for options, says in bad:
        with pytest.raises(UserError, match=says) as error:
            engine.submit(**options)
        assert "\n" not in str(error.value)
    # What is no character at all stands for one, as in any decoder.
    odd = engine.submit("caf\udce9", max_new_tokens=2)
    assert odd.prompt == tuple(model.tokenizer.encode("<bos>caf\ufffd"))
    assert odd.result().tokens
    assert len(stream.result().tokens) == 20


def test_schemas_without_an_end_are_refused_and_others_go_on(model, engine):
    pytest.importorskip("llguidance")
    from gemma4_jax.sample import constraints

    stream = engine.submit([4, 5, 6], max_new_tokens=20, ignore_eos=True)
    next(stream)
    node = {
        "type": "object",
        "properties": {"next": {"$ref": "#/$defs/node"}},
        "required": ["next"],
    }
    endless = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    itself: dict = {"type": "object", "properties": {}}
    itself["properties"]["a"] = itself
    deep: dict = {"type": "string"}
    for _ in range(100_000):
        deep = {"type": "array", "items": deep}
    for schema, says in [
        (endless, "always contains itself"),
        (itself, "Circular reference"),
        (deep, "too deeply"),
        ('{"items": ' * 100_000, "too deeply"),
        ({"enum": [object()]}, "not JSON"),
    ]:
        with pytest.raises(UserError, match=says) as error:
            engine.submit([7], constraint=constraints.json_schema(schema), max_new_tokens=4)
        assert "\n" not in str(error.value)
    parameters = {"name": "f", "parameters": itself}
    with pytest.raises(UserError, match="contains itself"):
        engine.submit([7], tools=[{"type": "function", "function": parameters}], tool_choice="f")
    # A cycle that can end is a schema like others.
    optional = endless | {"$defs": {"node": node | {"required": []}}}
    fine = engine.submit([7], constraint=constraints.json_schema(optional), max_new_tokens=4)
    assert fine.result().text.startswith("{")
    assert len(stream.result().tokens) == 20


def test_bad_engines_are_refused(model):
    for options, says in [
        (dict(max_slots=3), "power of two"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(max_tokens=7), "max_tokens 7 is less than one page of 8 .* to at least 8"),
        (dict(max_context=10**6), "max_context"),
    ]:
        with pytest.raises(UserError, match=says):
            Engine(model, **SIZES | options)


def test_numbers_that_are_none_end_their_request_only(model):
    params = jax.tree.map(lambda leaf: leaf, model.params)
    table = np.array(params["embed"]["table"])
    table[300] = np.nan
    params["embed"]["table"] = table
    broken = Engine(dataclasses.replace(model, params=params), **SIZES)
    with pytest.raises(UserError, match="not finite"):
        broken.submit([4, 5, 6], max_new_tokens=4).result()
    assert broken.idle and broken.pages.in_use == 0


def test_constraints_hold_in_company(model, engine):
    pytest.importorskip("llguidance")
    from gemma4_jax.sample import constraints

    only = constraints.choices(["apples", "naïve café", "17 pears"])
    number = constraints.regex(r"[0-9]{3,5}")
    cases = [
        ([5, 6, 7], dict(max_new_tokens=12, constraint=only, temperature=1.0, seed=[3])),
        ([8, 9], dict(max_new_tokens=12, constraint=number, temperature=1.3, seed=[4])),
        ([10, 11, 12], dict(max_new_tokens=20, ignore_eos=True)),
    ]
    streams = [engine.submit(prompt, **options) for prompt, options in cases]
    found = [stream.result() for stream in streams]
    for one, wanted in zip(found, alone(model, cases), strict=True):
        same(one, wanted)
    assert found[0].finish_reason == "length" or found[0].text in (
        "apples",
        "naïve café",
        "17 pears",
    )
    assert found[1].finish_reason == "length" or 3 <= len(found[1].text) <= 5


def test_ctrl_c_loses_nothing(model, engine, monkeypatch):
    cases = varied(3, seed=9)
    streams = [engine.submit(prompt, **options) for prompt, options in cases]
    real, hit = engine_programs.prefill, []

    def interrupted(*args):
        found = real(*args)
        if not hit:
            hit.append(os.kill(os.getpid(), signal.SIGINT))
            time.sleep(0.05)
        return found

    monkeypatch.setattr(engine_programs, "prefill", interrupted)
    # Workers that run tests ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            streams[0].result()
    finally:
        signal.signal(signal.SIGINT, before)
    assert hit
    for stream, wanted in zip(streams, alone(model, cases), strict=True):
        same(stream.result(), wanted)


def test_the_best_of_some_comes_first(model, engine):
    options = dict(max_new_tokens=12, temperature=1.5, seed=2, stop_ids=list(range(3, 19)))
    ranked = engine.best_of([5, 6, 7], 8, **options)
    means = [np.mean(one.logprobs) for one in ranked]
    ended = [one.finish_reason == "stop" for one in ranked]
    assert ended == sorted(ended, reverse=True) and 0 < sum(ended) < 8
    for group in (True, False):
        mine = [mean for mean, end in zip(means, ended, strict=True) if end == group]
        assert mine == sorted(mine, reverse=True)
    plain = Sampler(model).generate([[5, 6, 7]] * 8, **options)
    assert sorted(one.tokens for one in plain) == sorted(one.tokens for one in ranked)
