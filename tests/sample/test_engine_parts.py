"""An engine over a mesh that cuts rows: each part has its own, and tokens are those of one device."""

import functools

import jax
import numpy as np
import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.hlo import travels
from gemma4_jax.sample import beam_programs, constraints, engine_programs
from gemma4_jax.sample.drafters import Lookup
from gemma4_jax.sample.engine import Engine
from tests.sample.meshes import over
from tests.sample.test_engine import SIZES, alone, same, varied

# Memory for one long request in each of two parts, and no more.
TIGHT = SIZES | dict(max_tokens=272)


@pytest.fixture(scope="module")
def spread(model):
    return over(model, {"data": 2})


def nothing_is_lost(engine):
    """No row, no page, no snapshot."""
    assert engine.idle and engine.pages.in_use == 0
    engine.pages.forget()
    assert engine.pages.available == engine.pages.count
    places = {i for pages in engine.pages.parts for i in pages._free_snapshots}
    assert places == set(range(SIZES["snapshots"]))


def test_any_mix_of_requests_with_too_little_memory(model, spread):
    """Greedy and sampled, alike and not, cancelled and interrupted; and nothing compiles meanwhile."""
    cases = varied(24, seed=7, longest=90)
    for _, options in cases:
        options.pop("min_p", None)
        options.setdefault("top_k", 20)
        options["max_new_tokens"] += 10
    wanted = alone(model, cases)
    engine = Engine(spread, **TIGHT)
    engine.warm_up()
    compiled, interrupted, parts, cancelled = [], [], set(), {}
    scheduler = engine._scheduler
    real = scheduler._interrupt
    scheduler._interrupt = lambda task: (interrupted.append(task.number), real(task))
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    rng, streams = np.random.default_rng(0), []
    try:
        while len(streams) < len(cases) or not engine.idle:
            if len(streams) < len(cases) and rng.random() < 0.8:
                prompt, options = cases[len(streams)]
                streams.append(engine.submit(prompt, **options))
            engine.step()
            running = scheduler._active()
            parts |= {(task.part, task.slot) for task in running}
            if running and rng.random() < 0.15:
                number = running[int(rng.integers(len(running)))].number
                streams[number].cancel()
                cancelled[number] = True
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    assert interrupted and len(cancelled) >= 3
    # Slots 2 and 3 are the second part's, when there are four.
    assert {(0, 0), (0, 1), (1, 1), (1, 2), (1, 3)} <= parts
    assert not parts & {(0, 2), (0, 3), (1, 0)}
    for number, (stream, one) in enumerate(zip(streams, wanted, strict=True)):
        found = stream.result()
        if number in cancelled:
            assert found.tokens == one.tokens[: len(found.tokens)]
        else:
            same(found, one)
    nothing_is_lost(engine)


@pytest.fixture
def reads(monkeypatch):
    """Prompt tokens of every row of every prefill call."""
    counts, real = [], engine_programs.prefill

    def counted(*args):
        counts.append(np.asarray(args[-1]).tolist())
        return real(*args)

    monkeypatch.setattr(engine_programs, "prefill", counted)
    return counts


def test_samples_of_a_prompt_are_read_once_in_each_part(spread, reads):
    engine = Engine(spread, **TIGHT)
    prompt = np.random.default_rng(3).integers(3, 330, 60).tolist()
    options = dict(max_new_tokens=9, temperature=1.0, top_k=30, seed=5, ignore_eos=True)
    found = [stream.result().tokens for stream in engine.samples(prompt, 6, **options)]
    assert len(set(map(tuple, found))) == 6
    # Both at once; the others read what follows the last full page.
    assert reads[0] == [60, 60] and sum(map(sum, reads[1:])) == 4 * (60 - 56)
    nothing_is_lost(engine)


def test_a_conversation_stays_where_its_pages_are(model, spread, reads):
    engine = Engine(spread, **SIZES)
    rng = np.random.default_rng(4)
    turns = [rng.integers(3, 330, 66).tolist() for _ in range(2)]
    options = dict(max_new_tokens=12, ignore_eos=True)
    streams = [engine.submit(turn, **options) for turn in turns]
    answers = [stream.result().tokens for stream in streams]
    # The second was in the second part; the first part is as free now, and is asked first.
    again = [*turns[1], *answers[1], *range(5, 15)]
    before = len(reads)
    found = engine.submit(again, **options).result()
    assert reads[before:] == [[0, len(again) - (66 + 11) // 8 * 8]]
    same(found, alone(model, [(again, options)])[0])


def test_lookup_drafts_over_two_parts(model, spread):
    engine = Engine(spread, drafter=Lookup((3,)), **SIZES | dict(max_slots=2, prefill_tokens=32))
    rng = np.random.default_rng(5)
    cases = [
        (case + case[-5:] * 2, dict(max_new_tokens=20, ignore_eos=True))
        for case in rng.integers(3, 330, (3, 15)).tolist()
    ]
    streams = [engine.submit(prompt, **options) for prompt, options in cases]
    for stream, wanted in zip(streams, alone(model, cases), strict=True):
        same(stream.result(), wanted)
    assert engine.idle and engine.pages.in_use == 0


def test_drafts_of_constrained_rows_in_two_parts(model, spread):
    """With free and sampled rows beside them, in slots of both parts; what a grammar allows is drafted."""
    pytest.importorskip("llguidance")
    engine = Engine(spread, drafter=Lookup((3,)), **SIZES | dict(prefill_tokens=32))
    device = engine._scheduler._device
    bound, real = [], device.verify

    def spy(wanted, drafts, masks=None):
        dispatch = real(wanted, drafts, masks)
        if masks is not None:
            assert masks.shape[0] == len(wanted.requests) == device.rows
            # Words of rows that may choose anything are -1.
            rows = np.flatnonzero((masks != -1).any(axis=(1, 2)))
            bound.extend((int(row) * 2 // device.rows, int(dispatch.count[row])) for row in rows)
        return dispatch

    device.verify = spy
    encode = model.tokenizer.encode
    pears = constraints.regex("(17 pears, ){5}3 apples")
    cases = [
        (encode("17 pears, 17 pears, "), dict(constraint=pears)),
        (encode("3 apples and 17 pears"), dict(constraint=constraints.regex("[a-z ,0-9]{9,30}"))),
        (encode("3 apples"), dict(constraint=pears, prefix="17 p", temperature=1.0, seed=[5])),
        (encode("3 apples, 3 apples, "), dict(ignore_eos=True, temperature=1.0, seed=[6])),
    ]
    cases = [(prompt, dict(max_new_tokens=70, **more)) for prompt, more in cases]
    streams = [engine.submit(prompt, **options) for prompt, options in cases]
    for stream, wanted in zip(streams, alone(model, cases), strict=True):
        same(stream.result(), wanted)
    assert engine.idle and engine.pages.in_use == 0
    # Drafts were kept along masks in both parts.
    assert {part for part, count in bound if count > 1} == {0, 1}


def test_beams_are_in_one_part(model, spread, monkeypatch):
    """The second while a request is in the first, then the first; the texts and scores of one device."""
    sizes = SIZES | dict(max_slots=8, prefill_tokens=32)
    plain, engine, parts, compiled = Engine(model, **sizes), Engine(spread, **sizes), [], []
    scheduler = engine._scheduler
    real = scheduler._further
    scheduler._further = lambda task, *rest: (parts.append(task.part), real(task, *rest))[1]
    rng = np.random.default_rng(6)
    company, *prompts = (rng.integers(3, 330, n).tolist() for n in (15, 41, 37))
    stop_ids = list(range(3, 250, 9))[:16]
    options = dict(max_new_tokens=14, stop_ids=stop_ids, length_penalty=0.7)

    def search(which, prompt):
        parts.clear()
        return which.beam_search(prompt, 4, **options)

    def alike(found, wanted):
        assert [(one.tokens, one.finish_reason) for one in found] == [
            (one.tokens, one.finish_reason) for one in wanted
        ]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)

    wanted = [search(plain, prompt) for prompt in prompts]
    assert {one.finish_reason for found in wanted for one in found} == {"stop", "length"}
    seen = spied(monkeypatch, beam_programs, ("fork", "follow", "copy_pages"))
    beside = engine.submit(company, max_new_tokens=60, ignore_eos=True)
    next(beside)
    alike(search(engine, prompts[0]), wanted[0])
    assert set(parts) == {1} and engine.active == 1
    same(beside.result(), alone(model, [(company, dict(max_new_tokens=60, ignore_eos=True))])[0])
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        found = search(engine, prompts[1])
    finally:
        jax.monitoring.clear_event_listeners()
    alike(found, wanted[1])
    assert set(parts) == {0} and compiled == []
    nothing_is_lost(engine)
    assert len(seen) == 3
    for name, program in seen.items():
        assert not travels(program.as_text()), name
        assert name == "fork" or program.memory_analysis().alias_size_in_bytes > 0  # in place


def spied(monkeypatch, module, names):
    """The compiled programs, by name, as soon as they have run."""
    seen = {}
    for name in names:
        program = getattr(module, name)

        @functools.wraps(program)
        def spy(*args, name=name, program=program, **options):
            if name not in seen:
                seen[name] = program.lower(*args, **options).compile()
            return program(*args, **options)

        monkeypatch.setattr(module, name, spy)
    return seen


PROGRAMS = ("prefill", "first", "enter", "continue_rows", "resize", "load")


def test_nothing_of_a_part_goes_to_another(spread, monkeypatch):
    """Between parts go what was chosen and who is done, a few numbers a row: never memory, never weights."""
    seen = spied(monkeypatch, engine_programs, PROGRAMS)
    engine = Engine(spread, **TIGHT)
    device = engine._scheduler._device
    for memory in (device._pool, device._state.rings):
        for leaf in jax.tree.leaves(memory):
            assert leaf.sharding.shard_shape(leaf.shape)[2] == leaf.shape[2] // 2
    prompt = list(range(3, 60))
    streams = [
        engine.submit(prompt[i:], max_new_tokens=6, temperature=1.0, top_k=20, seed=[i])
        for i in range(4)
    ]
    for stream in streams:
        stream.result()
    assert sorted(seen) == sorted(PROGRAMS)
    for name, compiled in seen.items():
        for (operation, shape), _ in travels(compiled.as_text()).items():
            sizes = shape[shape.index("[") + 1 : -1].split(",")
            numbers = np.prod([int(n) for n in sizes if n])
            assert numbers <= SIZES["steps"] * SIZES["max_slots"], (name, operation, shape)
        if name in ("prefill", "enter", "continue_rows", "load"):
            assert compiled.memory_analysis().alias_size_in_bytes > 0  # written in place


def test_what_does_not_divide_is_refused(model, spread):
    with pytest.raises(UserError, match="max_slots must be a power of two times 2"):
        Engine(spread, **SIZES | dict(max_slots=3))
    with pytest.raises(UserError, match=r"max_tokens 64 for each of 2 parts"):
        Engine(spread, **SIZES | dict(max_tokens=130, max_context=65))
    with pytest.raises(UserError, match=r"max_tokens 15 .* each of 2 parts .* at least 16"):
        Engine(spread, **SIZES | dict(max_tokens=15))
    for beams, new, says in [
        (3, 4, "beams must be at most max_slots 2 for each of 2 parts of rows, got 3"),
        (2, 120, "2 beams .* may need .* max_tokens is 136 for each of 2 parts of rows"),
    ]:
        with pytest.raises(UserError, match=says) as error:
            Engine(spread, **TIGHT).beam_search([4, 5, 6] * 3, beams, max_new_tokens=new)
        assert "\n" not in str(error.value)
