"""`gemma4 chat` over piped lines: history, commands, errors that do not end it, Ctrl-C."""

import io

import pytest

import gemma4_jax as g4
from gemma4_jax import cli
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


def test_several_lines_are_one_message(run, sampler, model_folder):
    lines = ["First\\", "  line", '"""One', "", 'two"""', '"""/help"""', '""" ', '"""', '"""End']
    result = run("chat", str(model_folder), *GREEDY, stdin="\n".join(lines))
    said, out = [], ""
    for text in ("First\n  line", "One\n\ntwo", "/help", "End"):
        said.append(user(text))
        one = reply(sampler, said)
        said.append(parse(one).as_dict())
        out += content(one)
    assert result.out == out and result.err == ""


def test_an_answer_is_tried_again(run, sampler, model_folder):
    result = run("chat", str(model_folder), *GREEDY, stdin="/retry\nFirst\nSecond\n/retry\nThird\n")
    one = reply(sampler, [user("First")])
    two = reply(sampler, [user("First"), parse(one).as_dict(), user("Second")])
    so_far = [user("First"), parse(one).as_dict(), user("Second"), parse(two).as_dict()]
    three = reply(sampler, [*so_far, user("Third")])
    assert "nothing has been said yet" in result.err and result.err.count("\n") == 1
    assert result.out == "".join(content(text) for text in (one, two, two, three))
    # It draws anew.
    flags = ("--max-new-tokens", "12", "--temperature", "2", "--top-k", "400", "--top-p", "1")
    drawn = run("chat", str(model_folder), *flags, stdin="Same\n/retry\n").out
    first = run("chat", str(model_folder), *flags, stdin="Same\n").out
    assert drawn.startswith(first) and drawn != first * 2


def test_temperature(run, sampler, model_folder):
    lines = "/temperature 0\nFirst\n/temperature\n/temperature -1\n/temperature hot\n"
    flags = ("--temperature", "2", "--max-new-tokens", "5")
    result = run("chat", str(model_folder), *flags, stdin=lines)
    assert result.out == content(reply(sampler, [user("First")]))
    assert result.err.count("(temperature: 0)") == 2
    assert "got '-1'" in result.err and "got 'hot'" in result.err


def test_a_conversation_is_saved_and_gone_on_with(run, sampler, model_folder, tmp_path):
    file = tmp_path / "chat.json"
    lines = ["/system Be brief.", "First", f"/save {file}", "/exit", "never read"]
    saved = run("chat", str(model_folder), *GREEDY, stdin="\n".join(lines))
    assert saved.code == 0 and f"2 messages are in {file}" in saved.err
    other = tmp_path / "other.json"
    other.write_text("[]")
    lines = [
        *(f"/load {tmp_path / 'nowhere'}", f"/load {other}", f"/save {other}", "/save", "/load"),
        *("Hm", f"/load {file}", "Second", f"/save {file}"),
    ]
    result = run("chat", str(model_folder), *GREEDY, stdin="\n".join(lines))
    system = {"role": "system", "content": "Be brief."}
    one = reply(sampler, [system, user("First")])
    two = reply(sampler, [system, user("First"), parse(one).as_dict(), user("Second")])
    assert result.out == content(reply(sampler, [user("Hm")])) + content(two)
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    for error, part in zip(
        errors,
        ("cannot read", "no saved conversation", "give another file", "needs the", "needs the"),
        strict=True,
    ):
        assert part in error
    assert other.read_text() == "[]" and f"4 messages are in {file}" in result.err
    assert sorted(tmp_path.iterdir()) == [file, other]


def test_tokens_and_speed_are_told(run, sampler, model, model_folder):
    result = run(
        "chat",
        str(model_folder),
        *GREEDY,
        stdin="/tokens\n/speed\nFirst\n/tokens\n/speed\n/clear\n/tokens\n",
    )
    one = reply(sampler, [user("First")])
    held = encode_prompt(
        model.tokenizer, [user("First"), parse(one).as_dict()], family=model.config.family
    )
    notes = result.err.splitlines()
    assert notes[0] == "(0 of 256 tokens of context used (0%))" == notes[-1]
    assert notes[1] == "(no answer yet)"
    assert notes[2].startswith(f"({len(held)} of 256 tokens of context used")
    assert notes[3].startswith("(5 tokens, ") and "tokens/s" in notes[3]


class Terminal:
    """What a person types, and what readline keeps of it."""

    def __init__(self, monkeypatch, lines):
        given = iter(lines)
        self.prompts = []

        def typed(prompt=""):
            self.prompts.append(prompt)
            line = next(given, None)
            if line is None:
                raise EOFError
            if line is KeyboardInterrupt:
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr("builtins.input", typed)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)


@pytest.fixture
def talk(model_folder, monkeypatch, capsys, tmp_path):
    """talk(*lines) -> (terminal, out, err) of a conversation on a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        terminal = Terminal(monkeypatch, lines)
        capsys.readouterr()
        cli.main(["chat", str(model_folder), *GREEDY])
        return terminal, *capsys.readouterr()

    return call


def test_on_a_terminal(talk, sampler, tmp_path):
    """Ctrl-C at the prompt discards what was typed, a command too; speed and context are shown."""
    terminal, out, err = talk("Fir\\", KeyboardInterrupt, "First", "/quit")
    assert terminal.prompts == ["> ", ". ", "> ", "> "]
    assert out == content(reply(sampler, [user("First")]))
    assert (
        "(Ctrl-D or /quit leaves)" in err
        and "tokens/s" in err
        and "of 256 tokens of context used" in err
    )
    readline = pytest.importorskip("readline")
    file = tmp_path / "state" / "gemma4_jax" / "chat_history"
    assert file.exists()
    readline.add_history("an old line")
    talk("/quit")
    readline.clear_history()
    talk("/quit")
    kept = [readline.get_history_item(i + 1) for i in range(readline.get_current_history_length())]
    assert "an old line" in kept


def test_no_place_for_history_is_no_matter(talk, sampler, tmp_path):
    (tmp_path / "state").write_text("a file, not a folder")
    _, out, _ = talk("First")
    assert out == content(reply(sampler, [user("First")]))


def test_start_mistakes(complaint, model_folder, bare_folder):
    assert "no such folder" in complaint("chat", "nowhere")
    assert "no chat model" in complaint("chat", str(bare_folder))
    assert "did you mean --think?" in complaint("chat", str(model_folder), "--thnk")
    assert "MODEL" in complaint("chat")
