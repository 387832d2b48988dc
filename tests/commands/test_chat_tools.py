"""`gemma4 chat --tools`: asked first, run once, told to the model, and not for ever."""

import pytest

import gemma4_jax as g4
from gemma4_jax.commands import chat
from gemma4_jax.commands.tools import MOST_ROUNDS, Toolbox, load_functions
from gemma4_jax.text.arguments import ToolCall
from gemma4_jax.text.parse import Message

TOOLS = '''
import json
from pathlib import Path

RAN = []

def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
      a: the first.
    """
    RAN.append((a, b))
    print("inside")
    return a + b

def fail(why: str) -> str:
    """Fail."""
    raise OSError(why)

def _hidden(a): ...
'''


@pytest.fixture
def tools(tmp_path):
    path = tmp_path / "my tools.py"
    path.write_text(TOOLS)
    return path


@pytest.fixture
def box(tools):
    """box(*answers) -> a toolbox whose person gives these answers, in turn, and no further ones."""

    def make(*answers):
        given = iter(answers)
        return Toolbox(load_functions(str(tools)), lambda question: next(given, None))

    return make


def ran(toolbox):
    return toolbox.functions["add"].__globals__["RAN"]


def test_public_functions_of_the_file_are_the_tools(box):
    names = [tool["function"]["name"] for tool in box().declarations()]
    assert names == ["add", "fail"]


def test_nothing_runs_without_a_yes(box, capsys):
    toolbox = box("n", "", "y", "a")
    assert toolbox.answer(ToolCall("add", {"a": 1})) == ("the user does not allow this call", True)
    assert toolbox.answer(ToolCall("add", {"a": 2}))[0] == "the user does not allow this call"
    assert ran(toolbox) == []
    assert toolbox.answer(ToolCall("add", {"a": 3})) == (4, True)
    assert toolbox.answer(ToolCall("add", {"a": 4, "b": 4})) == (8, True)
    # "always" holds from then on, for that tool; no one is asked any more, and no one answers.
    assert toolbox.answer(ToolCall("add", {"a": 5})) == (6, True)
    assert toolbox.answer(ToolCall("fail", {"why": "x"}))[0] == "the user does not allow this call"
    assert ran(toolbox) == [(3, 1), (4, 4), (5, 1)]
    assert "-> 8" in capsys.readouterr().err


def test_a_model_that_errs_is_told(box):
    toolbox = box(*"yyyy")
    for call, part in (
        (ToolCall("ad", {}), "did you mean 'add'"),
        (ToolCall("add", {}), "needs the argument 'a'"),
        (ToolCall("add", {"a": "x"}), "a must be int"),
        (ToolCall("add", {"a": 1}, complete=False), "cut off"),
        (ToolCall("fail", {"why": "no disk"}), "OSError: no disk"),
    ):
        result, goes_on = toolbox.answer(call)
        assert goes_on and result.startswith("error: ") and part in result
    assert ran(toolbox) == []


def test_the_same_call_runs_once_until_something_is_said(box):
    toolbox = box("a")
    call = ToolCall("add", {"a": 1, "b": 2})
    again = ToolCall("add", {"b": 2, "a": 1})
    assert toolbox.answer(call) == (3, True)
    result, goes_on = toolbox.answer(again)
    assert "before; its result was: 3" in result and goes_on
    assert toolbox.answer(call)[1] is False
    toolbox.begin()
    assert toolbox.answer(call) == (3, True)
    assert ran(toolbox) == [(1, 2), (1, 2)]


@pytest.fixture
def talk(model, box, monkeypatch):
    """talk(toolbox, *messages) -> a conversation in which the model says these."""

    def make(toolbox, *messages):
        conversation = chat.Conversation(g4.Sampler(model), {"seed": 0}, 5, toolbox=toolbox)
        said = iter(messages)
        monkeypatch.setattr(conversation, "_answer", lambda asked: (next(said), False))
        return conversation

    return make


def test_results_go_back_to_the_model(talk, box):
    toolbox = box("a")
    calls = (ToolCall("add", {"a": 1}), ToolCall("add", {"a": 5}))
    conversation = talk(toolbox, Message(tool_calls=calls), Message(content="Two and six."))
    conversation.say("Count")
    roles = [(m["role"], m["content"]) for m in conversation.messages]
    assert roles == [
        ("user", "Count"),
        ("assistant", ""),
        ("tool", 2),
        ("tool", 6),
        ("assistant", "Two and six."),
    ]
    # What came of it is a prompt that the format takes.
    prompt = g4.text.chat.render(conversation.messages, toolbox.declarations())
    assert "<|tool_response>response:add{value:2}<tool_response|>" in prompt


def test_a_model_that_only_calls_is_stopped(talk, box, capsys):
    toolbox = box("a")
    endless = [Message(tool_calls=(ToolCall("add", {"a": i}),)) for i in range(99)]
    conversation = talk(toolbox, *endless)
    conversation.say("Count")
    assert len(ran(toolbox)) == MOST_ROUNDS
    assert conversation.messages[-1]["content"] == "not run: too many calls in a row"
    assert "was stopped" in capsys.readouterr().err
    same = talk(box("a"), *[Message(tool_calls=(ToolCall("add", {"a": 1}),))] * 99)
    same.say("Count")
    assert ran(same.toolbox) == [(1, 1)] and len(same.messages) == 7


def test_the_command_offers_the_tools(run, model_folder, tools, monkeypatch):
    """Over a pipe: the model's answers are replaced, the question takes the next line."""
    seen = []

    def answer(self, asked):
        seen.append(self.toolbox.declarations())
        if asked[-1]["role"] == "user":
            return Message(tool_calls=(ToolCall("add", {"a": 41}),)), False
        return Message(content=str(asked[-1]["content"])), False

    monkeypatch.setattr(chat.Conversation, "_answer", answer)
    result = run("chat", str(model_folder), "--tools", str(tools), stdin="Add\ny\n/quit\n")
    assert result.code == 0 and len(seen) == 2
    assert "run it?" in result.err and "-> 42" in result.err and "inside" in result.out


def test_a_prompt_with_tools_reaches_the_model(run, model_folder, tmp_path):
    short = tmp_path / "t.py"
    short.write_text('def f(a: int) -> int:\n    "F."\n    return a\n')
    flags = ("--temperature", "0", "--max-new-tokens", "3")
    plain = run("chat", str(model_folder), *flags, stdin="Hi\n")
    offered = run("chat", str(model_folder), *flags, "--tools", str(short), stdin="Hi\n")
    assert offered.code == 0 and offered.err == "" and offered.out != plain.out


def test_mistakes_are_one_line(complaint, model_folder, tmp_path):
    words = ("chat", str(model_folder), "--tools")
    assert "no such file" in complaint(*words, str(tmp_path / "nowhere.py"))
    for name, text, part in (
        ("t.txt", "x", "ends in .py"),
        ("t.py", "1 +", "SyntaxError"),
        ("t.py", "raise SystemExit('two\\nlines')", "SystemExit: two lines"),
        ("t.py", "x = 1", "no public function"),
        ("t.py", "def f(a): ...", "f: a has no type"),
    ):
        (tmp_path / name).write_text(text)
        assert part in complaint(*words, str(tmp_path / name))
