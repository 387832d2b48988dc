"""An engine with a drafter gives what it gives without one, in fewer steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.build import build
from gemma4_jax.checkpoint import load, load_drafter
from gemma4_jax.config import DrafterConfig
from gemma4_jax.errors import UserError
from gemma4_jax.model import drafter as drafting
from gemma4_jax.model.cache import init_cache
from gemma4_jax.model.drafter import Drafter, DraftModel
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler, constraints
from gemma4_jax.sample.drafters import History, Lookup, ModelDrafter, open_drafter
from gemma4_jax.sample.engine import Engine
from tests.oracle.cases import load_case

SIZES = dict(max_slots=2, max_tokens=512, page_size=8, prefill_tokens=32, steps=4, snapshots=2)
LENGTHS = (3,)


class Counted:
    """A drafter, and what it was asked and said."""

    def __init__(self, drafter):
        self.drafter, self.rounds = drafter, []
        self.lengths, self.reads_hidden = drafter.lengths, drafter.reads_hidden

    def placed(self, mesh):
        self.drafter = self.drafter.placed(mesh)
        return self

    def propose(self, histories, most, target):
        drafts = self.drafter.propose(histories, most, target)
        seen = [None if h is None else list(h.tokens) for h in histories]
        self.rounds.append((seen, drafts))
        return drafts


def small(name):
    config = dataclasses.replace(
        preset(name),
        d_model=32,
        d_ff=48,
        window=16,
        max_position=160,
        layer_types=("sliding", "sliding", "full"),
    )
    return build(config, init_params(config, jax.random.key(0)))


def drafter_config(target):
    """Two layers, a sliding and a full one, as wide as the target."""
    stack = dataclasses.replace(
        target.config,
        layer_types=("sliding", "full"),
        num_kv_shared_layers=0,
        per_layer_input_width=0,
        per_layer_vocab_size=0,
        double_wide_mlp=False,
        moe=None,
        logit_softcap=None,
    )
    return DrafterConfig(stack=stack, target_width=target.config.d_model)


def fresh_drafter(target):
    config = drafter_config(target)
    return DraftModel(Drafter(config), drafting.init_params(config, jax.random.key(2)))


def repeating_drafter(target):
    """It says what the hidden state it is given says: the token that was chosen from it, once more."""
    drafter = fresh_drafter(target)
    params, width = drafter.params, target.config.d_model
    for name in ("layer_0", "layer_1"):
        for norm in ("post_attention_norm", "post_ffw_norm"):
            params[name][norm] = {"scale": jnp.zeros(width)}
    params["pre_projection"] = jnp.concatenate([jnp.zeros((width, width)), jnp.eye(width)])
    params["post_projection"] = jnp.eye(width)
    params["embed"] = {"table": target.params["embed"]["table"]}
    return drafter


def prompts(count):
    """Of many lengths; all but the first end in a pattern that has been there before."""
    rng = np.random.default_rng(3)
    cases = [rng.integers(3, 330, int(rng.integers(1, 60))).tolist() for _ in range(count)]
    return cases[:1] + [case + case[-5:] * 2 for case in cases[1:]]


def greedy(*lengths):
    return dict(max_new_tokens=list(lengths))


def same_as_without(engine, cases, options, wanted=None):
    """The completions, which are the sampler's."""
    wanted = wanted or expected(engine.model, cases, options)
    streams = [
        engine.submit(
            prompt, ignore_eos=True, **{name: values[i] for name, values in options.items()}
        )
        for i, prompt in enumerate(cases)
    ]
    for stream, completion in zip(streams, wanted, strict=True):
        found = stream.result()
        assert found.tokens == completion.tokens
        np.testing.assert_allclose(found.logprobs, completion.logprobs, atol=1e-4)
    assert engine.idle and engine.pages.in_use == 0
    return wanted


def expected(target, cases, options):
    return Sampler(target, prefill_chunk=32).generate(cases, ignore_eos=True, **options)


def test_shared_keys_and_a_drafter_that_is_never_right(model):
    """Greedy, sampled and penalised rows, two at a time."""
    drafter = Counted(ModelDrafter(fresh_drafter(model), LENGTHS))
    options = dict(
        max_new_tokens=[30, 7, 1, 25, 18],
        temperature=[0.0, 0.0, 0.0, 0.9, 1.3],
        top_k=[9, 9, 9, 20, 5],
        seed=[4, 5, 6, 7, 8],
        repetition_penalty=[1.0, 1.0, 1.0, 1.0, 1.2],
    )
    same_as_without(Engine(model, drafter=drafter, **SIZES), prompts(5), options)
    assert drafter.rounds


def test_lookup_and_a_stop_id_in_a_round(model):
    engine = Engine(model, drafter=Lookup(LENGTHS), **SIZES)
    cases = prompts(2)
    wanted = same_as_without(engine, cases, greedy(30, 7))
    whole = wanted[0].tokens
    stop = whole[20]
    ended = engine.submit(cases[0], max_new_tokens=30, stop_ids=[stop]).result()
    assert ended.tokens == whole[: whole.index(stop) + 1]
    assert ended.finish_reason == "stop"


def test_a_dense_model_and_a_drafter_that_is_often_right():
    """And nothing is compiled after warming up."""
    target = small("tiny-dense")
    drafter = Counted(ModelDrafter(repeating_drafter(target), LENGTHS))
    cases, options = prompts(3), greedy(30, 7, 18)
    wanted = expected(target, cases, options)
    engine = Engine(target, drafter=drafter, **SIZES)
    engine.warm_up()
    drafter.rounds.clear()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        same_as_without(engine, cases, options, wanted)
        sampled = engine.submit(cases[0], max_new_tokens=9, temperature=1.0, top_k=20, seed=1)
        other = engine.submit(cases[2], max_new_tokens=9)
        assert sampled.result().tokens and other.result().tokens
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    rows = sum(history is not None for seen, _ in drafter.rounds for history in seen)
    tokens = 30 + 7 + 18 + 9 + 9
    assert rows < 0.7 * tokens, (rows, tokens)


def test_experts_and_a_repetitive_answer_in_few_steps():
    drafter = Counted(Lookup(LENGTHS))
    engine = Engine(small("tiny-moe"), drafter=drafter, **SIZES | dict(max_slots=1))
    same_as_without(engine, [list(range(40, 47)) * 6], greedy(60))
    passes = len(drafter.rounds)  # each is a pass of the target, with drafts or without
    assert passes <= 30, passes


@pytest.mark.parametrize("kind", ["lookup", "model"])
def test_drafts_of_rows_whose_output_is_constrained(model, kind):
    """In company, sampled too: the same tokens, and what a grammar allows is drafted."""
    pytest.importorskip("llguidance")
    inner = Lookup(LENGTHS) if kind == "lookup" else ModelDrafter(fresh_drafter(model), LENGTHS)
    engine = Engine(model, drafter=(drafter := Counted(inner)), **SIZES | dict(max_slots=4))
    encode = model.tokenizer.encode
    pears = constraints.regex("(17 pears, ){5}3 apples")
    cases = [
        (encode("17 pears, 17 pears, "), dict(constraint=pears)),
        (encode("3 apples and 17 pears"), dict(constraint=constraints.regex("[a-z ,0-9]{9,30}"))),
        (encode("3 apples"), dict(constraint=pears, prefix="17 p", temperature=1.0, seed=[5])),
        (encode("3 apples, 3 apples, "), dict(thinking_budget=3, ignore_eos=True)),
    ]
    options = dict(max_new_tokens=70)
    streams = [engine.submit(prompt, **options, **more) for prompt, more in cases]
    for stream, (prompt, more) in zip(streams, cases, strict=True):
        (wanted,) = Sampler(model).generate([prompt], **options, **more)
        found = stream.result()
        assert (found.tokens, found.text) == (wanted.tokens, wanted.text)
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-4)
    assert engine.idle and engine.pages.in_use == 0
    if kind == "lookup":
        drafter.rounds.clear()
        again = engine.submit(*cases[0][:1], **options, **cases[0][1]).result()
        assert len(drafter.rounds) < 0.6 * len(again.tokens)


def test_every_rounds_drafts_are_those_over_fresh_keys():
    """The oracle's drafts first; later ones from pages and rings in which drafts have been taken back."""
    case, v = load_case("dense"), load_case("draft").vectors
    target = load(case.folder)
    model = load_drafter(load_case("draft").folder, target)
    drafter = Counted(ModelDrafter(model, (6,)))
    engine = Engine(target, drafter=drafter, **SIZES | dict(max_slots=1))
    prompt, wanted = v["prompt"][0].tolist(), case.vectors["greedy_tokens"].tolist()
    found = engine.submit(prompt, max_new_tokens=24, ignore_eos=True).result()
    assert found.tokens == wanted

    extend = jax.jit(
        lambda params, *args: target.module.apply({"params": params}, *args, method="extend")
    )
    draft = jax.jit(drafting.draft, static_argnums=(0, 2, 8))
    assert len(drafter.rounds) > 15
    for number, ((seen,), drafts) in enumerate(drafter.rounds):
        cache = init_cache(target.config, 1, 72, slack=64)
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(seen) - 1] = seen[:-1]
        count = len(seen) - 1
        hidden, cache = extend(target.params, tokens, jnp.array([count]), cache)
        last, newest = hidden[:, count - 1], jnp.array(seen[-1:], jnp.int32)
        fresh = draft(
            model.module, model.params, target.module, target.params, cache, newest, last,
            jnp.int32(6), 6,
        )  # fmt: skip
        np.testing.assert_array_equal(np.asarray(drafts.tokens)[0], fresh[0], str(number))
    first = drafter.rounds[0][1]
    assert np.asarray(first.tokens)[0].tolist() == v["step_token"].tolist()
    assert drafter.rounds[1][0][0] == [*prompt, *wanted[:2]]  # none of the first six was right


def test_what_followed_the_last_time():
    history = History([1, 2, 3, 9, 1, 2, 4, 8])
    assert history.repeated(3) == []
    history.tokens += [1, 2]
    assert history.repeated(3) == [4, 8, 1]  # after the later of the two
    history.tokens += [3]
    assert history.repeated(2) == [9, 1]  # three in a row before two
    assert History([7, 7, 7]).repeated(5) == [7] * 5
    assert History([5, 6, 5, 6]).repeated(3) == [5, 6, 5]  # on into the copy


def test_the_number_of_drafts_follows_how_often_they_are_right():
    history, lengths = History([1]), (1, 3, 7)
    assert history.worth(lengths) == 3
    for _ in range(20):
        history.learn(history.worth(lengths), history.worth(lengths))
    assert history.worth(lengths) == 7
    for _ in range(20):
        history.learn(history.worth(lengths), 0)
    assert history.worth(lengths) == 1
    history.learn(0, 0)
    assert history.worth(lengths) == 1


def test_opening_a_drafter(model, tmp_path):
    assert isinstance(open_drafter("ngram", model), Lookup)
    with pytest.raises(UserError, match="no drafter 'ngrma'"):
        open_drafter("ngrma", model)
    target = load(load_case("dense").folder)
    assert isinstance(open_drafter(load_case("draft").folder, target), ModelDrafter)
    with pytest.raises(UserError, match="d_model 48, the model has 32"):
        open_drafter(load_case("draft").folder, model)
