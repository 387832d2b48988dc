"""Prompts in, completions out: equal to a plain loop over the full forward, in any company."""

import dataclasses
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from gemma4_jax.sample import Sampler, programs

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 330, n).tolist() for n in (5, 41, 1, 33, 17, 64)]


def plain_greedy(model, prompt, new):
    """Tokens and log-probabilities of greedy decoding by whole passes over one fixed length."""
    ids, logprobs = list(prompt), []
    for _ in range(new):
        padded = np.zeros((1, 80), np.int32)
        padded[0, : len(ids)] = ids
        segment = (np.arange(80) < len(ids))[None].astype(np.int32)
        logits = np.asarray(model.logits(padded, segment_ids=segment)[0, len(ids) - 1], np.float64)
        shifted = logits - logits.max()
        logits[model.tokenizer.vocab_size :] = -np.inf
        ids.append(int(logits.argmax()))
        logprobs.append(shifted[ids[-1]] - np.log(np.exp(shifted).sum()))
    return ids[len(prompt) :], logprobs


@pytest.fixture(scope="module")
def greedy(sampler):
    return sampler.generate(PROMPTS, max_new_tokens=12, ignore_eos=True)


def test_greedy_equals_whole_passes(model, greedy):
    for prompt, completion in zip(PROMPTS, greedy, strict=True):
        tokens, logprobs = plain_greedy(model, prompt, 12)
        assert completion.tokens == tokens
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
        assert completion.finish_reason == "length"
        assert completion.text == model.tokenizer.decode(tokens)


def test_order_batching_and_chunks_change_nothing(model, greedy):
    other = Sampler(model, prefill_chunk=32, max_batch=1)
    order = [3, 0, 5, 2, 4, 1]
    again = other.generate([PROMPTS[i] for i in order], max_new_tokens=12, ignore_eos=True)
    assert [c.tokens for c in again] == [greedy[i].tokens for i in order]


def test_draws_depend_on_seed_and_row_alone(sampler):
    options = dict(max_new_tokens=10, temperature=1.5, top_k=50, ignore_eos=True)
    together = sampler.generate(PROMPTS, seed=[7] * 6, **options)
    alone = sampler.generate(PROMPTS[4], seed=[7], **options)
    assert alone[0].tokens == together[4].tokens
    folded = sampler.generate([PROMPTS[0]] * 6, seed=7, **options)
    assert len({tuple(c.tokens) for c in folded}) == 6
    assert folded[0].tokens == together[0].tokens
    again = sampler.generate([PROMPTS[0]] * 6, seed=7, **options)
    assert [c.tokens for c in again] == [c.tokens for c in folded]


def test_settings_are_per_row(sampler, greedy):
    mixed = sampler.generate(
        PROMPTS,
        max_new_tokens=[12, 12, 3, 12, 1, 1],
        temperature=[0.0, 9.0, 0.0, 9.0, 1.0, 1.0],
        top_k=[50, 1, 50, 50, 50, 50],
        ignore_eos=True,
    )
    assert mixed[0].tokens == greedy[0].tokens
    assert mixed[1].tokens == greedy[1].tokens  # only one candidate is left
    assert mixed[2].tokens == greedy[2].tokens[:3]
    assert mixed[3].tokens != greedy[3].tokens


def test_stop_ids_end_a_row_and_are_reported(sampler, model, greedy):
    row = next(i for i, c in enumerate(greedy) if len(set(c.tokens)) > 3)
    tokens = greedy[row].tokens
    stop = tokens[6]
    end = tokens.index(stop)
    (done,) = sampler.generate(PROMPTS[row], max_new_tokens=12, stop_ids=[stop, 500])
    assert done.tokens == tokens[: end + 1] and len(done.logprobs) == end + 1
    assert done.finish_reason == "stop"
    assert done.text == model.tokenizer.decode(tokens[:end])


def test_stop_strings_cut_the_text_and_the_stream(sampler, model, greedy):
    # Some continuation whose text changes after at least two whole characters: stop at the change.
    row, at = next(
        (row, at)
        for row, completion in enumerate(greedy)
        for at in range(2, len(completion.text) - 2)
        if completion.text[at : at + 2].isascii()
        and completion.text.index(completion.text[at : at + 2]) == at
    )
    text = greedy[row].text
    stop = text[at : at + 2]
    wanted = text[: text.index(stop)]
    options = dict(max_new_tokens=12, ignore_eos=True, stop=[stop, "never there"])
    (done,) = sampler.generate(PROMPTS[row], **options)
    assert done.text == wanted and done.finish_reason == "stop"
    assert done.tokens == greedy[row].tokens[: len(done.tokens)]
    assert stop in model.tokenizer.decode(done.tokens)
    assert stop not in model.tokenizer.decode(done.tokens[:-1])
    stream = sampler.stream(PROMPTS[row], **options)
    assert stream.completion is None
    assert "".join(stream) == wanted
    assert stream.completion == done


def test_streaming_says_what_generating_says(sampler, greedy):
    stream = sampler.stream(PROMPTS[1], max_new_tokens=12, ignore_eos=True)
    pieces = list(stream)
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == greedy[1].text
    assert stream.completion.tokens == greedy[1].tokens
    heard = {}
    sampler.generate(
        PROMPTS,
        max_new_tokens=12,
        ignore_eos=True,
        on_text=lambda i, piece: heard.setdefault(i, []).append(piece),
    )
    assert {i: "".join(p) for i, p in heard.items()} == {
        i: c.text for i, c in enumerate(greedy) if c.text
    }


def test_prompts_of_every_kind(sampler, model):
    tokenizer = model.tokenizer
    options = dict(max_new_tokens=4, ignore_eos=True)
    text = "3 apples"
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    messages = [{"role": "user", "content": "3 apples"}]
    written = "<bos><|turn>user\n3 apples<turn|>\n<|turn>model\n"  # the small family's format
    mixed = [text, "<bos>" + text, ids, messages, written]
    raw, marked, listed, chat, spelt = sampler.generate(mixed, **options)
    assert raw.tokens == marked.tokens == listed.tokens != chat.tokens
    assert chat.tokens == spelt.tokens
    assert sampler.generate(messages, **options)[0].tokens == chat.tokens
    assert sampler.generate(np.array(ids), **options)[0].tokens == listed.tokens
    assert sampler.generate([], **options) == []


def test_the_checkpoints_own_template_is_used_when_asked(model, sampler):
    own = dataclasses.replace(
        model, chat_template="{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    )
    messages = [{"role": "user", "content": "17 pears"}]
    options = dict(max_new_tokens=4, ignore_eos=True)
    (done,) = Sampler(own, prefill_chunk=16, max_batch=8).generate(
        messages, use_checkpoint_template=True, **options
    )
    assert done.tokens == sampler.generate("[17 pears]", **options)[0].tokens
    with pytest.raises(ValueError, match="ships no chat template"):
        sampler.generate(messages, use_checkpoint_template=True)


def test_ids_without_text_are_never_generated(sampler, model):
    hot = sampler.generate([[2]] * 8, max_new_tokens=60, temperature=50.0, ignore_eos=True)
    tokens = [t for c in hot for t in c.tokens]
    assert max(tokens) < model.tokenizer.vocab_size < model.config.vocab_size
    assert len(set(tokens)) > 150


def test_no_program_is_compiled_for_a_prompt(sampler):
    def count():
        compiled = (programs.prefill_chunk, programs.finish_prefill, programs.decode_steps)
        return sum(program._cache_size() for program in compiled)

    def prompt(n):
        return [3 + n % 50] * n

    lengths = [1, 15, 16, 17, 64, 100]
    for n in (16, 100):  # both capacities, one filter set of each kind
        sampler.generate(prompt(n), max_new_tokens=4)
        sampler.generate(prompt(n), max_new_tokens=4, temperature=1.0, top_k=5)
    before = count()
    for i, n in enumerate(lengths):
        sampler.generate(prompt(n), max_new_tokens=1 + i, stop_ids=range(i), stop=["x"])
        sampler.generate(prompt(n), max_new_tokens=9, temperature=0.1 + i, top_k=1 + 9 * i, seed=i)
        list(sampler.stream(prompt(n), max_new_tokens=2))
    assert count() == before
    sampler.generate(prompt(5), max_new_tokens=4, temperature=1.0)  # counting does notice one
    assert count() > before


def test_a_cache_of_lower_precision(model, greedy):
    low = Sampler(model, prefill_chunk=16, max_batch=8, cache_dtype="bfloat16")
    (done,) = low.generate(PROMPTS[1], max_new_tokens=4, ignore_eos=True)
    assert done.tokens == greedy[1].tokens[:4]
    gap = np.abs(np.subtract(done.logprobs, greedy[1].logprobs[:4])).max()
    assert 0 < gap < 0.05


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (
            [[2] * 150],
            {"max_new_tokens": 11},
            r"150 tokens.*161.*160 positions.*max_new_tokens to 10",
        ),
        ([[2], [2] * 200], {}, r"prompt 1 has 200 tokens.*fewer than 160"),
        ([[]], {}, "not empty"),
        ("", {}, "empty"),
        ([[2, 512]], {}, r"512.*0 to 511"),
        ([[2, -1]], {}, "-1"),
        ([[{"role": "wizard", "content": "x"}]], {}, "wizard"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens must be a whole number above 0, got 0"),
        ("a", {"temperature": -1}, "temperature.*-1"),
        ("a", {"temperature": float("nan")}, "temperature.*nan"),
        ("a", {"top_k": 0}, "top_k.*got 0"),
        ("a", {"top_p": 0.0}, "top_p.*got 0.0"),
        ("a", {"top_p": 1.5}, "top_p.*got 1.5"),
        ("a", {"min_p": -1}, "min_p.*got -1"),
        (["a", "b"], {"temperature": [1.0]}, "1 values for 2 prompts"),
        ("a", {"stop": ""}, "stop string"),
        ("a", {"stop": ["x", ""]}, "stop string"),
        ("a", {"stop_ids": [600]}, "600.*511"),
    ],
)
def test_bad_input_is_one_clear_line(sampler, prompts, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        sampler.generate(prompts, **options)
    assert type(caught.value).__name__ == "UserError"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunk": 0}, "prefill_chunk.*0"),
        ({"max_batch": -1}, "max_batch.*-1"),
        ({"cache_dtype": "float31"}, "float31"),
    ],
)
def test_bad_sampler_settings(model, options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model, **options)


WRONG_TYPES = """
import jax
from gemma4_jax.build import build
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler

config = preset("tiny-dense")
model = build(config, abstract_params(config))
try:
    Sampler(model, cache_compression="values")
except ValueError as error:
    print(error)
sampler = Sampler.__new__(Sampler)
sampler.model = model
cases = [([[2, "a"]], {}), ([[2, 1.5]], {}), ([5, "a"], {}), (7, {}), ([True], {})]
cases += [([2], {"max_new_tokens": 2.5}), ([2], {"seed": 1.5}), ([2], {"top_k": "5"})]
cases += [([2], {"temperature": True}), ([2], {"stop": [5]}), ([2], {"stop_ids": ["x"]})]
for prompts, options in cases:
    try:
        sampler.generate(prompts, **options)
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_wrong_types_are_clear_too(repository):
    """Without the tests' own checking of annotations, as a user would meet them."""
    done = subprocess.run(
        [sys.executable, "-c", WRONG_TYPES],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    wanted = ["did you mean 'value'", "int, str", "float, int", "got 5", "got int", "bool"]
    wanted += ["max_new_tokens.*2.5", "seed.*1.5", "top_k.*'5'", "temperature.*True", "5", "'x'"]
    assert len(lines) == len(wanted), done.stdout
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.search(pattern, line), line
    assert all(line.startswith("UserError ") for line in lines[1:])


def test_a_model_without_tokenizer(model):
    bare = Sampler(dataclasses.replace(model, tokenizer=None), prefill_chunk=16, max_batch=8)
    (done,) = bare.generate([[2, 9]], max_new_tokens=3, ignore_eos=True)
    assert done.text == "" and len(done.tokens) == 3
    with pytest.raises(ValueError, match=r"no tokenizer.*token ids"):
        bare.generate("text")
    with pytest.raises(ValueError, match=r"no tokenizer.*stop_ids"):
        bare.generate([[2]], stop="x")


def test_weights_that_are_not_numbers_are_an_error_not_a_text(model):
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["final_norm"] = {"scale": params["final_norm"]["scale"].at[3].set(np.nan)}
    broken = Sampler(dataclasses.replace(model, params=params), prefill_chunk=16, max_batch=8)
    with pytest.raises(ValueError, match="prompt 0 are not finite"):
        broken.generate([[2, 9]], max_new_tokens=3)
