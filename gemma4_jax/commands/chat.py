"""Talk to a model.

A line is a message; a backslash at its end, or three quotes around several lines, makes it longer. Answers
come as they are written, thoughts dimmed. Ctrl-C stops an answer, Ctrl-D or /quit ends the conversation,
/help lists the other commands. Without a terminal messages come from standard input. With --tools the public
functions of a Python file are offered to the model; you are asked before one is run.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_jax.commands.answering import (
    Answer,
    Prepared,
    add_flags,
    answer,
    is_chat_model,
    message_of,
    open_model,
    options,
    prepare,
    sampler_of,
)
from gemma4_jax.commands.saved_chat import SavedChat, load_chat, save_chat
from gemma4_jax.commands.tools import MOST_ROUNDS, Toolbox, load_functions
from gemma4_jax.commands.typed import next_typed, remembered
from gemma4_jax.errors import UserError, unknown

if TYPE_CHECKING:
    from gemma4_jax.sample.drafted import DraftedSampler
    from gemma4_jax.sample.sampler import Sampler
    from gemma4_jax.text.parse import Message

HELP = """\
/system TEXT   set the system message; without TEXT, show it ("/system -" removes it)
/think         let the model think first, or not; /think on, /think off
/temperature T how much chance there is in answers, 0 for none; without T, show it
/retry         answer the last message once more
/clear         forget the conversation (so does /reset)
/save FILE     write the conversation to a file
/load FILE     go on with one that was saved
/tokens        how much of the model's context the conversation takes
/speed         how fast the last answer came
/help          this list
/quit          leave (so do /exit and Ctrl-D)
//TEXT         say TEXT with a slash in front
TEXT\\          go on in the next line; or put \"\"\" before and after several lines"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gemma4 chat` takes. Sampling defaults are those the released models come with."""
    parser.add_argument("model", metavar="MODEL", help="folder of a model")
    add_flags(parser, temperature=1.0, top_k=64, top_p=0.95)
    parser.add_argument(
        "--tools", metavar="FILE.py", help="offer the typed public functions of a Python file"
    )


def run(arguments: argparse.Namespace) -> None:
    """Load, then answer line by line."""
    from gemma4_jax.compiled_programs import keep_compiled_programs

    interactive = sys.stdin.isatty()
    toolbox = None
    if arguments.tools is not None:
        toolbox = Toolbox(
            load_functions(arguments.tools), lambda question: _ask(question, interactive)
        )
        toolbox.declarations()  # complains before a model is loaded
    keep_compiled_programs()
    model = open_model(arguments)
    if not is_chat_model(model):
        raise UserError(
            f"{arguments.model} is no chat model (no tokenizer with turn tokens); "
            "try: gemma4 generate --raw"
        )
    chat = Conversation(
        sampler_of(arguments, model),
        options(arguments),
        arguments.max_new_tokens,
        arguments.system,
        arguments.think,
        toolbox,
    )
    if interactive:
        print(f"{model.config.name}: /help for commands, Ctrl-D to leave", file=sys.stderr)
    with remembered() if interactive else contextlib.nullcontext():
        _talk(chat, interactive)


def _talk(chat: Conversation, interactive: bool) -> None:
    while (typed := next_typed(interactive)) is not None:
        try:
            if typed.quoted:
                if typed.text.strip():
                    chat.say(typed.text)
            elif chat.take(typed.text):
                return
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _ask(question: str, interactive: bool) -> str | None:
    """A person's answer; None for Ctrl-C, Ctrl-D or the end of input."""
    print(question, end="" if interactive else "\n", file=sys.stderr, flush=True)
    try:
        return input() if interactive else sys.stdin.readline() or None
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None


@dataclass
class Conversation:
    """A model, what was said so far, and how it is to answer."""

    sampler: Sampler | DraftedSampler
    settings: dict[str, Any]
    max_new_tokens: int | None
    system: str | None = None
    think: bool = False
    toolbox: Toolbox | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    answers: int = 0
    last: Answer | None = None  # the newest answer, for its speed

    def take(self, line: str) -> bool:
        """A line of input: a command or a message. True if it ends the conversation."""
        if line.startswith("/") and not line.startswith("//"):
            return self._command(line[1:])
        if line:
            self.say(line.removeprefix("/") if line.startswith("//") else line)
        return False

    def say(self, text: str) -> None:
        """Answer a message, calling tools in between. What was said before an interruption stays."""
        asked = [*self.messages, {"role": "user", "content": text}]
        if self.toolbox is not None:
            self.toolbox.begin()
        for rounds in range(MOST_ROUNDS + 1):
            message, interrupted = self._answer(asked)
            said = message.as_dict()
            if interrupted or self.toolbox is None:
                said.pop("tool_calls", None)  # nobody is going to answer them
            self.messages = asked = [*asked, said]
            if "tool_calls" not in said:
                return
            results, goes_on = self._call(message, allowed=rounds < MOST_ROUNDS)
            self.messages = asked = [*asked, *results]
            if not goes_on:
                print("(the model went on calling tools and was stopped)", file=sys.stderr)
                return

    def _call(self, message: Message, allowed: bool) -> tuple[list[dict[str, Any]], bool]:
        """The results of a message's calls as messages, and whether the model is to go on."""
        assert self.toolbox is not None
        results, goes_on = [], allowed
        for i, call in enumerate(message.tool_calls):
            result: Any = "not run: too many calls in a row"
            if goes_on:
                result, goes_on = self.toolbox.answer(call)
            results.append(
                {"role": "tool", "tool_call_id": f"call_{i}", "name": call.name, "content": result}
            )
        return results, goes_on

    def _answer(self, asked: list[dict[str, Any]]) -> tuple[Message, bool]:
        """One answer, shown as it comes; whether Ctrl-C ended it."""
        from gemma4_jax.commands.display import Display

        model = self.sampler.model
        tools = None if self.toolbox is None else self.toolbox.declarations()
        try:
            prompt = self._prompt(asked)
        except UserError as error:
            if len(asked) > 1:
                raise UserError(f"{error} (/reset forgets the conversation)") from None
            raise
        display = Display(in_thought=prompt.in_thought)
        # Each answer draws anew; the whole conversation repeats with the same seed.
        settings = self.settings | {"seed": self.settings["seed"] + self.answers}
        room = model.config.max_position - len(prompt.tokens)
        most = None if self.max_new_tokens is None else min(self.max_new_tokens, room)
        try:
            result = answer(self.sampler, prompt, most, settings, display.push)
        finally:
            display.close()
        self.last = result
        if sys.stdin.isatty():
            used = len(prompt.tokens) + result.new_tokens
            print(f"{result.summary()}; {self._share(used)}", file=sys.stderr)
        self.answers += 1
        return message_of(model, prompt, result, tools), result.finish_reason == "interrupted"

    def _prompt(self, asked: list[dict[str, Any]]) -> Prepared:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        tools = None if self.toolbox is None else self.toolbox.declarations()
        return prepare(self.sampler.model, [*system, *asked], self.think, tools)

    def _share(self, tokens: int) -> str:
        context = self.sampler.model.config.max_position
        return f"{tokens} of {context} tokens of context used ({tokens / context:.0%})"

    def _command(self, line: str) -> bool:
        """A command, without its slash. True if it ends the conversation."""
        name, _, rest = line.partition(" ")
        name = {"reset": "clear", "exit": "quit"}.get(name, name)
        commands: dict[str, Callable[[str], None]] = {
            "system": self._set_system,
            "think": self._set_think,
            "temperature": self._set_temperature,
            "retry": self._retry,
            "clear": self._clear,
            "save": self._save,
            "load": self._load,
            "tokens": self._tell_tokens,
            "speed": self._tell_speed,
            "help": lambda _: _note(HELP),
        }
        if name in commands:
            commands[name](rest.strip())
        elif name != "quit":
            known = [*commands, "reset", "quit", "exit"]
            raise unknown("command", f"/{name}", [f"/{each}" for each in known])
        return name == "quit"

    def _set_system(self, text: str) -> None:
        if text:
            self.system = None if text == "-" else text
        _note(f"(system message: {self.system or 'none'})")

    def _set_think(self, word: str) -> None:
        if word not in ("", "on", "off"):
            raise UserError(f"/think takes on or off, got {word!r}")
        self.think = not self.think if not word else word == "on"
        _note(f"(thinking is {'on' if self.think else 'off'})")

    def _set_temperature(self, text: str) -> None:
        if text:
            try:
                value = float(text)
            except ValueError:
                value = -1.0
            if not 0 <= value < float("inf"):
                raise UserError(f"/temperature takes 0 (no chance) or a number above, got {text!r}")
            self.settings = self.settings | {"temperature": value}
        _note(f"(temperature: {self.settings['temperature']:g})")

    def _retry(self, _: str) -> None:
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise UserError("/retry has no message to answer: nothing has been said yet")
        before, text = self.messages[: asked[-1]], self.messages[asked[-1]]["content"]
        after, self.messages = self.messages, before
        try:
            self.say(text)
        except UserError:
            self.messages = after
            raise

    def _clear(self, _: str) -> None:
        self.messages = []
        _note("(the conversation starts over)")

    def _save(self, name: str) -> None:
        if not name:
            raise UserError("/save needs the name of a file")
        chat = SavedChat(system=self.system, think=self.think, messages=self.messages)
        save_chat(Path(name).expanduser(), chat)
        _note(f"({len(self.messages)} messages are in {name})")

    def _load(self, name: str) -> None:
        if not name:
            raise UserError("/load needs the name of a file")
        found = load_chat(Path(name).expanduser())
        self.system, self.think, self.messages = found.system, found.think, list(found.messages)
        _note(f"({len(self.messages)} messages from {name}; what was said before is forgotten)")

    def _tell_tokens(self, _: str) -> None:
        tokens = len(self._prompt(self.messages).tokens) if self.messages else 0
        _note(f"({self._share(tokens)})")

    def _tell_speed(self, _: str) -> None:
        _note(f"({self.last.summary() if self.last else 'no answer yet'})")


def _note(text: str) -> None:
    print(text, file=sys.stderr)
