"""A thought ends when its budget does, as the format ends one; without need nothing changes."""

import jax
import pytest

from gemma4_jax.build import build
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.thinking import ThinkingBudget
from gemma4_jax.text import control
from gemma4_jax.text.parse import Start, parse

SIZES = dict(max_slots=4, max_tokens=1024, page_size=16, prefill_tokens=32, steps=4, snapshots=2)


def allowed(mask):
    return [32 * i + b for i, word in enumerate(mask.tolist()) for b in range(32) if word >> b & 1]


def test_the_mask_closes_a_thought(tokenizer):
    names = tokenizer.control_tokens
    opened, closed = names[control.CHANNEL], names[control.CHANNEL_END]
    (newline,), (word, *_) = tokenizer.encode("\n")[-1:], tokenizer.encode("apples")
    budget = ThinkingBudget(tokenizer, 3, vocab_size=512, start=Start.EITHER)
    assert budget.free(3) and not budget.free(4)
    budget.push(opened)
    for left in (2, 1, 0):
        assert len(allowed(budget.mask())) == 512
        budget.push(word)
        assert budget.free(left) and not budget.free(left + 1)
    assert allowed(budget.mask()) == [newline]
    budget.push(newline)
    assert allowed(budget.mask()) == [closed]
    budget.push(closed)
    assert len(allowed(budget.mask())) == 512
    budget.push(opened)  # another thought has nothing left
    assert allowed(budget.mask()) == [closed]


def test_no_second_break(tokenizer):
    budget = ThinkingBudget(tokenizer, 1, vocab_size=512, start=Start.THOUGHT)
    budget.push(tokenizer.encode("\n")[-1])
    assert allowed(budget.mask()) == [tokenizer.control_tokens[control.CHANNEL_END]]


@pytest.mark.parametrize("kind", ["sampler", "engine"])
def test_models_stop_thinking(model, tokenizer, kind):
    opened = tokenizer.control_tokens[control.CHANNEL]
    prompt = [tokenizer.bos_id, *tokenizer.encode("3 apples"), opened]

    def ask(**options):
        options = dict(max_new_tokens=24, ignore_eos=True, temperature=1.0, seed=[3]) | options
        if kind == "sampler":
            return Sampler(model).generate([prompt], **options)[0]
        engine = Engine(model, **SIZES)
        others = engine.submit([5, 6, 7], max_new_tokens=30, ignore_eos=True)
        found = engine.submit(prompt, **options).result()
        others.result()
        return found

    closed = tokenizer.control_tokens[control.CHANNEL_END]
    free, bound = ask(), ask(thinking_budget=9)
    assert closed not in free.tokens[:9]
    assert closed in bound.tokens[9:11] and bound.tokens[:9] == free.tokens[:9]
    assert ask(thinking_budget=24).tokens == free.tokens


def test_bad_budgets(model):
    with pytest.raises(UserError, match="thinking_budget"):
        Sampler(model).generate(["a"], thinking_budget=-1)
    config = preset("tiny-dense")
    bare = build(config, init_params(config, jax.random.key(0)))
    with pytest.raises(UserError, match="no tokenizer"):
        Sampler(bare).generate([[3]], thinking_budget=3)


def test_the_thought_is_apart_from_the_answer():
    text = f"{control.CHANNEL}thought\nso\n{control.CHANNEL_END}yes"
    assert (parse(text).reasoning, parse(text).content) == ("so", "yes")
