"""Talk to a model.

A line is a message. Answers come as they are written, thoughts dimmed. Ctrl-C stops an answer, Ctrl-D or
/quit ends the conversation, /help lists the other commands. Without a terminal every line of standard
input is a message. With --tools the public functions of a Python file are offered to the model; you are
asked before one is run.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gemma4_jax.commands.answering import (
    add_flags,
    answer,
    is_chat_model,
    message_of,
    open_model,
    options,
    prepare,
    sampler_of,
)
from gemma4_jax.commands.tools import MOST_ROUNDS, Toolbox, load_functions
from gemma4_jax.errors import UserError, unknown

if TYPE_CHECKING:
    from gemma4_jax.sample.drafted import DraftedSampler
    from gemma4_jax.sample.sampler import Sampler
    from gemma4_jax.text.parse import Message

HELP = """\
/system TEXT   set the system message; without TEXT, show it ("/system -" removes it)
/think         let the model think first, or not; /think on, /think off
/reset         forget the conversation
/help          this list
/quit          leave (so does Ctrl-D)
//TEXT         say TEXT with a slash in front"""
_COMMANDS = ("system", "think", "reset", "help", "quit")


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
        with contextlib.suppress(ImportError):  # line editing and history; Windows has none
            import readline  # noqa: F401
        print(f"{model.config.name}: /help for commands, Ctrl-D to leave", file=sys.stderr)
    while (line := _next_line(interactive)) is not None:
        try:
            if chat.take(line.strip()):
                return
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _next_line(interactive: bool) -> str | None:
    """The next line, None at the end of input. Ctrl-C at the prompt discards the line."""
    while True:
        try:
            if interactive:
                return input("> ")
            return sys.stdin.readline() or None
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(Ctrl-D or /quit leaves)", file=sys.stderr)


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
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        tools = None if self.toolbox is None else self.toolbox.declarations()
        try:
            prompt = prepare(model, [*system, *asked], self.think, tools)
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
        if sys.stdin.isatty():
            print(result.summary(), file=sys.stderr)
        self.answers += 1
        return message_of(model, prompt, result, tools), result.finish_reason == "interrupted"

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "quit":
            return True
        if name == "help":
            print(HELP, file=sys.stderr)
        elif name == "reset":
            self.messages = []
            print("(the conversation starts over)", file=sys.stderr)
        elif name == "think":
            if rest not in ("", "on", "off"):
                raise UserError(f"/think takes on or off, got {rest!r}")
            self.think = not self.think if not rest else rest == "on"
            print(f"(thinking is {'on' if self.think else 'off'})", file=sys.stderr)
        elif name == "system":
            if rest:
                self.system = None if rest == "-" else rest
            print(f"(system message: {self.system or 'none'})", file=sys.stderr)
        else:
            raise unknown("command", f"/{name}", [f"/{known}" for known in _COMMANDS])
        return False
