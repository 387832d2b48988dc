"""A drafter's model over a mesh: the drafts of one device, kept as often, and the tokens of no drafter."""

import jax
import numpy as np

from gemma4_jax.checkpoint import load, load_drafter
from gemma4_jax.hlo import travels
from gemma4_jax.sample import engine_programs
from gemma4_jax.sample.drafters import ModelDrafter
from gemma4_jax.sample.engine import Engine
from tests.oracle.cases import load_case
from tests.sample.meshes import over
from tests.sample.test_drafters import (
    LENGTHS,
    SIZES,
    Counted,
    expected,
    greedy,
    prompts,
    repeating_drafter,
    same_as_without,
    small,
)


def rounds_of(drafter, cases):
    """Of every request: what it was when it was drafted for, and its drafts."""
    found = [[] for _ in cases]
    for seen, drafts in drafter.rounds:
        for row, tokens in enumerate(seen):
            if tokens is not None:
                (case,) = (i for i, p in enumerate(cases) if tokens[: len(p)] == p)
                drafted = np.asarray(drafts.tokens)[row, : drafts.given[row]].tolist()
                found[case].append((len(tokens), drafted))
    return found


def test_drafts_of_rows_heads_and_positions_that_are_cut(monkeypatch):
    """And nothing is compiled after warming up, and nothing long travels."""
    target = small("tiny-dense")
    cases, options = prompts(3), greedy(30, 7, 18)
    wanted = expected(target, cases, options)
    alone = Counted(ModelDrafter(repeating_drafter(target), LENGTHS))
    same_as_without(Engine(target, drafter=alone, **SIZES), cases, options, wanted)

    programs, real = [], engine_programs.draft_rows

    def spy(*args, **options):
        if not programs:
            programs.append(real.lower(*args, **options).compile())
        return real(*args, **options)

    monkeypatch.setattr(engine_programs, "draft_rows", spy)
    drafter = Counted(ModelDrafter(repeating_drafter(target), LENGTHS))
    spread = over(target, {"data": 2, "seq": 2, "tensor": 2})
    engine = Engine(spread, drafter=drafter, **SIZES)
    engine.warm_up()
    drafter.rounds.clear()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        same_as_without(engine, cases, options, wanted)
        assert rounds_of(drafter, cases) == rounds_of(alone, cases)
        sampled = engine.submit(cases[0], max_new_tokens=9, temperature=1.0, top_k=20, seed=1)
        assert sampled.result().tokens
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    # A row's activations, between devices that have some of its heads or positions; and what was guessed.
    widest = max(target.config.d_model, target.config.num_heads * target.config.global_head_dim)
    for (operation, shape), _ in travels(programs[0].as_text()).items():
        sizes = shape[shape.index("[") + 1 : -1].split(",")
        assert np.prod([int(n) for n in sizes if n]) <= widest, (operation, shape)


def test_centroids_and_a_drafter_with_fewer_heads_than_devices():
    """Two heads over four devices that have a target's K/V heads twice; the oracle's drafts come first."""
    target, case = load(load_case("dense").folder), load_case("draft")
    prompt = case.vectors["prompt"][0].tolist()
    cases, options = [prompt, prompt[5:30]], greedy(24, 17)
    wanted, rounds = expected(target, cases, options), []
    for model in (target, over(target, {"fsdp": 2, "tensor": 4})):
        drafter = Counted(ModelDrafter(load_drafter(case.folder, model), (6,)))
        same_as_without(Engine(model, drafter=drafter, **SIZES), cases, options, wanted)
        rounds.append(rounds_of(drafter, cases))
    assert rounds[0] == rounds[1]
    assert rounds[1][0][0] == (len(prompt) + 1, case.vectors["step_token"].tolist())
