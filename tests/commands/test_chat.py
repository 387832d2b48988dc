"""`gemma4 chat` over piped lines: history, commands, errors that do not end it, Ctrl-C."""

import pytest

import gemma4_jax as g4
from gemma4_jax.sample.sampler import TextStream
from gemma4_jax.text.chat import encode_prompt
from gemma4_jax.text.parse import parse
from tests.commands.test_generate import content, interrupted_after

GREEDY = ("--temperature", "0", "--max-new-tokens", "5")


@pytest.fixture(scope="module")
def sampler(model):
    return g4.Sampler(model)


def reply(sampler, messages, **settings):
    (done,) = sampler.generate([messages], max_new_tokens=5, **settings)
    return done.text


def user(text):
    return {"role": "user", "content": text}


def test_answers_know_what_was_said(run, sampler, model_folder):
    result = run("chat", str(model_folder), *GREEDY, stdin="First\n\nSecond one\n")
    one = reply(sampler, [user("First")])
    two = reply(sampler, [user("First"), parse(one).as_dict(), user("Second one")])
    assert result.code == 0
    assert result.out == content(one) + content(two)
    assert reply(sampler, [user("Second one")]) != two


def test_commands(run, sampler, model_folder):
    lines = [
        "First",
        "/reset",
        "/system Be brief.",
        "/think on",
        "Second one",
        "/quit",
        "never read",
    ]
    result = run("chat", str(model_folder), *GREEDY, stdin="\n".join(lines))
    one = reply(sampler, [user("First")])
    system = {"role": "system", "content": "Be brief."}
    two = reply(sampler, [system, user("Second one")], enable_thinking=True)
    assert result.out == content(one) + content(two)
    for note in ("starts over", "system message: Be brief.", "thinking is on"):
        assert note in result.err


def test_flags_set_the_start(run, sampler, model_folder):
    flags = ("--system", "Be brief.", "--think")
    result = run(
        "chat", str(model_folder), *GREEDY, *flags, stdin="/system\n/system -\n/think\nHi\n"
    )
    assert "system message: Be brief." in result.err and "system message: none" in result.err
    assert "thinking is off" in result.err
    assert result.out == content(reply(sampler, [user("Hi")]))


def test_a_slash_can_be_said(run, sampler, model_folder):
    result = run("chat", str(model_folder), *GREEDY, stdin="//etc\n")
    assert result.out == content(reply(sampler, [user("/etc")]))


def test_mistakes_do_not_end_the_conversation(run, sampler, model_folder):
    lines = ["/rest", "/think maybe", "long " * 400, "First", "long " * 400, "/help", "Second one"]
    result = run("chat", str(model_folder), *GREEDY, stdin="\n".join(lines))
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == 0
    assert "did you mean '/reset'?" in errors[0]
    assert "on or off" in errors[1]
    assert "shorten the prompt" in errors[2] and "/reset" not in errors[2]
    assert "/reset" in errors[3] and len(errors) == 4
    assert "/system TEXT" in result.err
    one = reply(sampler, [user("First")])
    two = reply(sampler, [user("First"), parse(one).as_dict(), user("Second one")])
    assert result.out == content(one) + content(two)


def test_a_long_conversation_gets_shorter_answers(run, model, model_folder):
    # The flag is a bound: a conversation that has grown must not fail for it.
    result = run(
        "chat",
        str(model_folder),
        "--temperature",
        "0",
        "--max-new-tokens",
        "250",
        stdin="Hi\n",
    )
    (wanted,) = g4.Sampler(model).generate(
        [[user("Hi")]], max_new_tokens=256 - prompt_tokens(model, "Hi")
    )
    assert result.err == "" and result.out == content(wanted.text)


def prompt_tokens(model, text):
    return len(encode_prompt(model.tokenizer, [user(text)], family=model.config.family))


def test_ctrl_c_stops_the_answer_only(run, sampler, model_folder, monkeypatch):
    whole = reply(sampler, [user("First")])
    pieces = list(sampler.stream([user("First")], max_new_tokens=5))
    said = "".join(pieces[:2])
    assert len(pieces) > 2 and said != whole
    two = reply(sampler, [user("First"), parse(said).as_dict(), user("Second one")])
    real, patched = TextStream.__next__, interrupted_after(2)

    def first_answer_only(self):
        try:
            return patched(self)
        except KeyboardInterrupt:
            monkeypatch.setattr(TextStream, "__next__", real)
            raise

    monkeypatch.setattr(TextStream, "__next__", first_answer_only)
    result = run("chat", str(model_folder), *GREEDY, stdin="First\nSecond one\n")
    assert result.code == 0
    assert result.out == content(said) + content(two)


def test_sampled_answers_repeat_with_the_seed_and_differ_in_a_row(run, model_folder):
    lines = "Same\n/reset\nSame\n"
    flags = ("--max-new-tokens", "12", "--temperature", "2", "--top-k", "400", "--top-p", "1")
    one, two = (run("chat", str(model_folder), *flags, stdin=lines) for _ in range(2))
    assert one.out == two.out
    first = run("chat", str(model_folder), *flags, stdin="Same\n").out
    assert one.out.startswith(first) and one.out != first * 2


def test_start_mistakes(complaint, model_folder, bare_folder):
    assert "no such folder" in complaint("chat", "nowhere")
    assert "no chat model" in complaint("chat", str(bare_folder))
    assert "did you mean --think?" in complaint("chat", str(model_folder), "--thnk")
    assert "MODEL" in complaint("chat")
