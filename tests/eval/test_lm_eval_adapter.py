"""Our models under lm-evaluation-harness: its own Hugging Face back end is the reference."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers

from gemma4_jax.build import Model, build
from gemma4_jax.checkpoint import load
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.scoring import prompt_logprobs
from gemma4_jax.text.train_tokenizer import train_tokenizer
from tests.oracle.cases import load_case

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install -e ".[lm-eval]"')
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance

from eval.lm_eval_adapter import Gemma4LM, _answer, _options

TEXTS = [f"{a} apples and {b} pears, naïve café: answer {a + b}" for a in range(40) for b in (3, 9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    tokenizer = train_tokenizer(TEXTS, 330, tmp_path_factory.mktemp("t") / "tokenizer.model")
    config = dataclasses.replace(
        preset("tiny-ple"),
        d_model=32,
        d_ff=48,
        window=16,
        max_position=160,
        layer_types=("sliding", "full", "sliding", "full"),
        num_kv_shared_layers=2,
    )
    return build(config, init_params(config, jax.random.key(1)), tokenizer)


@pytest.fixture(scope="module")
def lm(model: Model) -> Gemma4LM:
    return Gemma4LM(model, max_slots=4, max_tokens=640)


def _requests(kind: str, *args: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(args)]


def test_loglikelihoods_are_those_of_their_hugging_face_back_end(transformers, lm):
    from lm_eval.models.huggingface import HFLM

    case = load_case("dense")
    # Token ids go in, so their tokenizer need not know a word.
    words = tokenizers.models.WordLevel({"<bos>": 0, "<eos>": 1}, unk_token="<eos>")
    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(case.folder),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(words),
            bos_token="<bos>",
            eos_token="<eos>",
            pad_token="<eos>",
        ),
        device="cpu",
        batch_size=2,
    )
    ours = Gemma4LM(dataclasses.replace(load(case.folder), tokenizer=lm._tokens))
    rows = [row.tolist() for row in case.vectors["input_ids"]]
    greedy = case.vectors["greedy_tokens"].tolist()
    pairs = [(rows[0][:9], rows[0][9:20]), (rows[1][:30], rows[1][30:31])]
    pairs.append((case.vectors["greedy_prompt"][0].tolist(), greedy[:8]))
    requests = [(("", ""), *pair) for pair in pairs]
    found = ours._loglikelihood_tokens(requests)
    wanted = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in wanted], atol=2e-3)
    assert [g for _, g in found] == [g for _, g in wanted]
    assert found[2][1] and not found[0][1]


def test_pairs_are_cut_between_tokens_where_the_texts_are(lm, model):
    (pair, alone, empty) = lm.loglikelihood(
        _requests(
            "loglikelihood", ("3 apples", " and 9 pears"), ("", "3 apples"), ("3 apples ", "and")
        ),
        disable_tqdm=True,
    )
    (whole,) = prompt_logprobs(model, "3 apples and 9 pears")
    start = len(lm.tok_encode("3 apples")) - 1
    assert pair[0] == pytest.approx(sum(whole[start:]), abs=1e-3)
    assert alone[0] == pytest.approx(sum(prompt_logprobs(model, "3 apples")[0]), abs=1e-3)
    # The space at the end of a context belongs to the continuation.
    spaced = prompt_logprobs(model, "3 apples and")[0]
    assert empty[0] == pytest.approx(sum(spaced[start:]), abs=1e-3)


def test_a_long_text_is_scored_in_windows_every_token_once(model):
    lm = Gemma4LM(model, max_length=16)
    text = TEXTS[5] + TEXTS[40]
    ids = lm.tok_encode(text, add_special_tokens=False)
    (found,) = lm.loglikelihood_rolling(_requests("loglikelihood_rolling", (text,)))
    wanted, done = 0.0, 0
    # By hand: 15 tokens after <bos>; then each window full of context, up to 16 tokens of it in all.
    while done < len(ids):
        new = ids[done : done + 15]
        before = [lm.prefix_token_id] if done == 0 else ids[max(0, done + len(new) - 16) : done]
        scores = prompt_logprobs(model, [[*before, *new]])[0]
        wanted += sum(scores[len(scores) - len(new) :])
        done += len(new)
    assert len(ids) > 30
    assert found == pytest.approx(wanted, abs=1e-3)


def test_what_does_not_fit(model):
    lm = Gemma4LM(model, max_length=16)
    ids = list(range(3, 43))
    ((score, _),) = lm._loglikelihood_tokens([(None, ids[:35], ids[35:])])
    assert score == pytest.approx(sum(prompt_logprobs(model, [ids[-16:]])[0][-5:]), abs=1e-3)
    with pytest.raises(UserError, match="at most 15"):
        lm._loglikelihood_tokens([(None, [3], ids[:16])])


def test_generation_stops_and_draws_from_seeds_of_its_own(lm, model):
    greedy = Sampler(model).generate("3 apples", max_new_tokens=12)[0].text
    end = greedy[3:5]
    plain = {"until": [], "do_sample": False, "max_gen_toks": 12}
    drawn = {"until": [], "do_sample": True, "temperature": 1.5, "max_gen_toks": 12}
    requests = _requests(
        "generate_until", ("3 apples", plain), ("3 apples", plain | {"until": [end]}),
        *[("3 apples", drawn)] * 4,
    )  # fmt: skip
    found = lm.generate_until(requests)
    assert found[:2] == [greedy, greedy.split(end)[0]]
    assert len(set(found[2:])) == 4
    assert lm.generate_until(requests) == found


def test_settings_of_tasks():
    assert _options({"until": "\n", "temperature": 0.0, "do_sample": False}) == (
        {"temperature": 0.0, "max_new_tokens": 256}, ("\n",),
    )  # fmt: skip
    assert _options({"do_sample": True})[0]["temperature"] == 1.0
    assert _options({"do_sample": True, "temperature": 0.6, "top_p": 0.9})[0]["top_p"] == 0.9
    with pytest.raises(UserError, match="'num_beams'"):
        _options({"num_beams": 4})


def test_only_what_follows_the_thought_is_an_answer():
    assert _answer("<|channel>thought\nhm<channel|>42") == "42"
    assert _answer("<|channel>thought\nhm") == ""
    assert _answer("42") == "42"


def test_conversations(lm):
    history = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}]
    prompt = lm.apply_chat_template(history[:1])
    assert prompt.startswith("<bos><|turn>user\n2 + 2?")
    assert lm.apply_chat_template(history, add_generation_prompt=False) == prompt + "It is"
    assert lm.tok_encode(prompt).count(lm.prefix_token_id) == 1
    assert lm.chat_template(True) == lm.tokenizer_name


def test_a_task_runs_from_a_local_file(lm, tmp_path):
    """Their evaluator, start to end, without a network."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(f'{{"q": "{a} apples and 3", "a": {a % 2}}}\n' for a in range(4)))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["apples", "pears"],
        "doc_to_target": "a",
        "metric_list": [{"metric": "acc"}],
    }
    found = simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)
    pairs = [(f"{a} apples and 3", f" {word}") for a in range(4) for word in ("apples", "pears")]
    scores = [s for s, _ in lm.loglikelihood(_requests("loglikelihood", *pairs), disable_tqdm=True)]
    right = [int(scores[2 * a + 1] > scores[2 * a]) == a % 2 for a in range(4)]
    assert found["results"]["sums"]["acc,none"] == sum(right) / 4
