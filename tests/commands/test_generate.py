"""`gemma4 generate` writes what the sampler gives, and every mistake is one line."""

import io
import json
import sys

import pytest

import gemma4_jax as g4
from gemma4_jax import cli
from gemma4_jax.sample.sampler import TextStream
from gemma4_jax.text.parse import parse
from tests.babbler import CONTEXT

SHORT = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def sampler(model):
    return g4.Sampler(model)


def content(text: str) -> str:
    text = parse(text).content or ""
    return text and text + "\n"


def test_a_message_goes_through_the_chat_format(run, sampler, model_folder):
    result = run("generate", str(model_folder), "Hello there", *SHORT)
    (wanted,) = sampler.generate([[{"role": "user", "content": "Hello there"}]], max_new_tokens=6)
    assert result.code == 0
    assert result.out == content(wanted.text) != ""
    assert f"{len(wanted.tokens)} tokens" in result.err and "first token after" in result.err


def test_a_model_over_devices_answers_the_same(run, model_folder):
    alone = run("generate", str(model_folder), "Hello there", *SHORT)
    spread = run("generate", str(model_folder), "Hello there", *SHORT, "--mesh", "data=4,tensor=-1")
    assert spread.out == alone.out != ""


@pytest.mark.parametrize(
    ("mesh", "part"),
    [
        ("tensors=2", "got 'tensors=2'"),
        ("tensor=0", "got 'tensor=0'"),
        ("tensor=2,tensor=2", "at most once"),
        ("tensor=-1,data=-1", "2 axes of -1"),
        ("data=3,tensor=-1", "3 does not divide the 8 devices"),
        ("tensor=16", "needs 16 devices, there are 8"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_line(run, model_folder, mesh, part):
    result = run("generate", str(model_folder), "Hello", "--mesh", mesh)
    assert result.code == 2 and part in result.err and result.err.count("\n") == 1


def test_raw_text_is_continued(run, sampler, model_folder):
    result = run("generate", str(model_folder), "Hello there", "--raw", *SHORT)
    (wanted,) = sampler.generate(["Hello there"], max_new_tokens=6)
    assert wanted.text and result.out.removesuffix("\n") == wanted.text.removesuffix("\n")


def test_a_drafter_changes_nothing(run, complaint, model_folder):
    words = ("generate", str(model_folder), "abcabcabcabc", "--raw", "--max-new-tokens", "12")
    assert run(*words, "--drafter", "ngram").out == run(*words).out != ""
    assert "no drafter 'ngrams'" in complaint(*words, "--drafter", "ngrams")
    assert "is no drafter" in complaint(*words, "--drafter", str(model_folder))


def test_the_kind_of_the_cache(run, complaint, model, model_folder, tmp_path):
    words = ("generate", str(model_folder), "Hello there", "--raw", "--max-new-tokens", "30")
    (wanted,) = g4.Sampler(model, cache_dtype="int8").generate(["Hello there"], 30)
    for more in ((), ("--drafter", "ngram")):
        found = json.loads(run(*words, "--cache-dtype", "int8", *more, "--json").out)
        assert found["tokens"] == wanted.tokens
    assert "did you mean 'int8'" in complaint(*words, "--cache-dtype", "int4")
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "Hello there"}\n')
    job = ["generate", str(model_folder), "--input", str(prompts), "--output", str(answers)]
    job += ["--max-new-tokens", "30", "--max-slots", "1", "--max-tokens", "256"]
    assert run(*job, "--cache-dtype", "int8").code == 0
    assert json.loads(answers.read_text())["text"] == wanted.text
    assert "cache_dtype 'int8', not 'float8'" in run(*job, "--cache-dtype", "float8").err


def test_an_answer_begins_with_what_it_must(run, complaint, sampler, model_folder):
    words = ("generate", str(model_folder), "Hello there", *SHORT)
    result = run(*words, "--prefix", "Sure")
    message = [{"role": "user", "content": "Hello there"}]
    (wanted,) = sampler.generate([message], max_new_tokens=6, prefix="Sure")
    assert result.out == content(wanted.text) and result.out.startswith("Sure")
    assert "max_new_tokens is 6" in complaint(*words, "--prefix", "Sure" * 9)


def test_memory_is_given_out_in_pages(complaint, model_folder, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    job = ("--input", str(prompts), "--output", str(tmp_path / "answers.jsonl"))
    line = complaint("generate", str(model_folder), *job, "--max-tokens", "100")
    assert (
        "max_tokens 100 is less than one page of 128 positions" in line and "at least 128" in line
    )


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_standard_input_that_is_no_text(model_folder, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 au lait\n"), "utf-8"))
    with pytest.raises(SystemExit) as leaving:
        cli.main([command, str(model_folder), *["-"][: command == "generate"]])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: standard input is not UTF-8: ")


def test_the_prompt_from_standard_input(run, model_folder):
    given = run("generate", str(model_folder), "Hello there", *SHORT)
    read = run("generate", str(model_folder), "-", *SHORT, stdin="Hello there")
    assert given.out == read.out


def test_settings_reach_the_sampler(run, sampler, model_folder):
    flags = (
        "--system",
        "Be brief.",
        "--think",
        "--temperature",
        "1",
        "--top-k",
        "40",
        "--top-p",
        "0.9",
    )
    flags += ("--min-p", "0.01", "--seed", "7", "--stop", "zzz", *SHORT)
    result = run("generate", str(model_folder), "Hello", *flags, "--json")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    settings = {
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 7,
        "stop": ["zzz"],
    }
    (wanted,) = sampler.generate([messages], max_new_tokens=6, enable_thinking=True, **settings)
    report = json.loads(result.out)
    assert report["tokens"] == wanted.tokens
    assert report["text"] == wanted.text
    assert report["finish_reason"] == wanted.finish_reason
    other = run("generate", str(model_folder), "Hello", *flags, "--seed", "8", "--json")
    assert json.loads(other.out)["tokens"] != wanted.tokens


def test_json_is_one_object(run, model_folder):
    result = run("generate", str(model_folder), "Hello", *SHORT, "--json")
    report = json.loads(result.out)
    message = parse(report["text"])
    assert (report["reasoning"], report["content"]) == (message.reasoning, message.content)
    assert report["prompt_tokens"] > 5 and report["seconds_to_first_token"] > 0
    assert result.err == ""


def test_a_stop_string_ends_the_text(run, sampler, model_folder):
    text = sampler.generate(["Hello there"], max_new_tokens=6)[0].text
    stop = text[2:4]
    result = run(
        "generate", str(model_folder), "Hello there", "--raw", *SHORT, "--stop", stop, "--json"
    )
    report = json.loads(result.out)
    assert report["text"] == text[: text.index(stop)] and report["finish_reason"] == "stop"


def test_without_a_limit_the_context_is_the_limit(run, model_folder):
    # Forbidding nothing, a random model may still stop early; a prompt that leaves room for 3 tells.
    prompt = "a" * 10_000
    tokens = len(g4.load(model_folder).tokenizer.encode(prompt))
    prompt = prompt[: len(prompt) * (CONTEXT - 4) // tokens]
    result = run("generate", str(model_folder), prompt, "--raw", "--json")
    report = json.loads(result.out)
    assert report["prompt_tokens"] + len(report["tokens"]) <= CONTEXT
    assert (
        report["finish_reason"] == "stop"
        or report["prompt_tokens"] + len(report["tokens"]) == CONTEXT
    )


def test_ctrl_c_keeps_what_was_written(run, model_folder, monkeypatch):
    monkeypatch.setattr(TextStream, "__next__", interrupted_after(3))
    result = run("generate", str(model_folder), "Hello there", "--raw", "--max-new-tokens", "50")
    assert result.code == 130
    assert "interrupted" in result.err and "3 tokens" in result.err
    assert "Traceback" not in result.err


def interrupted_after(count):
    """`TextStream.__next__` that is hit by Ctrl-C once it has given `count` pieces."""
    original, given = TextStream.__next__, []

    def __next__(self):
        if len(given) == count:
            raise KeyboardInterrupt
        given.append(original(self))
        return given[-1]

    return __next__


def test_mistakes_are_one_line(complaint, model_folder, bare_folder, tmp_path):
    folder = str(model_folder)
    for words, parts in (
        (("nowhere", "x"), ["nowhere", "no such folder"]),
        ((str(tmp_path), "x"), ["config.json"]),
        ((folder, ""), ["prompt is empty"]),
        ((folder, "a " * 2000), [f"context of {CONTEXT}", "shorten"]),
        (
            (folder, "a", "--max-new-tokens", "5000"),
            [f"{CONTEXT} positions", "lower max_new_tokens to"],
        ),
        ((folder, "a", "--max-new-tokens", "0"), ["max_new_tokens", "above 0"]),
        ((folder, "a", "--temprature", "1"), ["--temprature", "did you mean --temperature?"]),
        ((folder, "a", "--temperature", "-1"), ["temperature", "-1"]),
        ((folder, "a", "--top-k", "x"), ["--top-k", "'x'"]),
        ((folder, "a", "--top-p", "2", "--temperature", "1"), ["top_p", "2"]),
        ((folder, "a", "--dtype", "flot32"), ["flot32", "did you mean 'float32'?"]),
        ((folder, "a", "--stop", ""), ["stop string", "empty"]),
        ((folder, "a", "--raw", "--system", "b"), ["--system", "--raw"]),
        ((folder, "a", "--raw", "--think"), ["--think", "--raw"]),
        ((folder,), ["PROMPT"]),
        ((str(bare_folder), "a"), ["no tokenizer"]),
    ):
        line = complaint("generate", *words)
        for part in parts:
            assert part in line


def test_an_empty_standard_input(complaint, model_folder):
    assert "empty" in complaint("generate", str(model_folder), "-")


def test_a_reader_that_went_away(model_folder, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

        def isatty(self):
            return False

        def fileno(self):
            raise io.UnsupportedOperation

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(SystemExit) as leaving:
        cli.main(["generate", str(model_folder), "Hello", *SHORT])
    assert leaving.value.code == 141


def test_a_file_of_prompts(run, model_folder, tmp_path):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{i} pears"}]} for i in range(5)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ["generate", str(model_folder), "--input", str(prompts), "--output", str(answers)]
    few = ("--max-new-tokens", "4", "--max-slots", "2", "--max-tokens", "1024")
    done = run(*job, *few)
    assert done.code == 0 and "5 of 5 answers" in done.err
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == [1, 2, 3, 4, 5]
    spread = tmp_path / "spread.jsonl"
    assert not run(*job[:-1], str(spread), *few, "--mesh", "data=2").code
    over_two = [json.loads(line) for line in spread.read_text().splitlines()]
    assert {line["row"]: line["text"] for line in over_two} == {
        line["row"]: line["text"] for line in lines
    }
    again = run(*job, "--max-new-tokens", "5")
    assert again.code == 2 and "max_new_tokens 4, not 5" in again.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no PROMPT"),
        (["hi", "--input", "x.jsonl", "--output", "y"], "drop one"),
        (["--input", "x.jsonl"], "--output"),
        (["hi", "--output", "y"], "--input"),
    ],
)
def test_files_and_prompts_are_not_mixed(run, model_folder, words, part):
    done = run("generate", str(model_folder), *words)
    assert done.code == 2 and part in done.err


def test_flags_may_stand_before_the_prompt(run, model_folder):
    after = run("generate", str(model_folder), "Hello there", "--think", *SHORT)
    before = run("generate", str(model_folder), "--think", *SHORT, "Hello there")
    assert (before.code, before.out) == (0, after.out)
    dashed = run("generate", str(model_folder), *SHORT, "--", "--Hello")
    assert dashed.code == 0
    unknown = run("generate", str(model_folder), "Hello there", "again")
    assert unknown.code == 2 and "again" in unknown.err
