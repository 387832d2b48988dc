"""Requests that one call of a tool answers, and what the tools take.

Here: the tools with their JSON schemas, the requests, and the split: a call decides by its hash whether it is
for training or held out, in whatever words it is asked for. Not here: wrong calls (slips.py), the format of
calls (gemma4_jax/text).
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, Literal

Split = Literal["train", "held-out"]

#: One call in so many is held out.
HELD_OUT_SHARE = 4

#: Largest numbers that the tools take.
_MINUTES, _PERCENT = 120, 100

_LABELS = ("tea", "eggs", "rice", "bread", "soup", "pasta")
_ROOMS = ("kitchen", "bedroom", "hall", "bath", "office", "garage")

_TIMER_WORDS = (
    "Set a timer of {number} minutes for the {word}.",
    "The {word} needs {number} minutes, tell me then.",
    "Remind me of the {word} in {number} minutes.",
)
_LIGHT_WORDS = (
    "Set the light in the {word} to {number} percent.",
    "Make the {word} light {number} percent bright.",
    "I want {number} percent of light in the {word}.",
)


def _tool(
    name: str, about: str, number: str, most: int, word: str, words: tuple[str, ...]
) -> dict[str, Any]:
    properties = {
        number: {"type": "integer", "minimum": 1, "maximum": most},
        word: {"type": "string", "enum": list(words)},
    }
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [number, word],
        "additionalProperties": False,
    }
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


#: A prompt declares the one it is about: each costs more tokens than all the rest of a prompt.
TOOLS: dict[str, dict[str, Any]] = {
    "set_timer": _tool("set_timer", "Start a timer.", "minutes", _MINUTES, "label", _LABELS),
    "set_light": _tool("set_light", "Set a light.", "percent", _PERCENT, "room", _ROOMS),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request and the one call that answers it. number, word: names of the tool's two arguments."""

    text: str
    tool: str
    number: str
    word: str
    arguments: dict[str, Any]

    @property
    def call(self) -> str:
        """What decides the side of the split."""
        return _named(self.tool, self.arguments[self.number], self.arguments[self.word])

    def messages(self) -> list[dict[str, Any]]:
        """The request as messages."""
        return [{"role": "user", "content": self.text}]

    def prompt_row(self, name: str) -> dict[str, Any]:
        """A row for `train.rlaif`."""
        call = {"name": self.tool, "arguments": self.arguments}
        return {
            "id": name,
            "messages": self.messages(),
            "tools": [TOOLS[self.tool]],
            "thinking": False,
            "verifier": {"kind": "tool_calls", "calls": [call]},
        }

    def call_row(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A row of SFT data that answers with these arguments."""
        function = {"name": self.tool, "arguments": arguments}
        answer = {"role": "assistant", "tool_calls": [{"function": function}]}
        options = {"enable_thinking": False}
        return {
            "messages": [*self.messages(), answer],
            "tools": [TOOLS[self.tool]],
            "chat_template_kwargs": options,
        }


def requests(split: Split, seed: int) -> Iterator[Request]:
    """Endless requests of one side of the split, the same for the same seed."""
    rng = random.Random(f"requests {split} {seed}")
    while True:
        if rng.random() < 0.5:
            tool, number, most = "set_timer", "minutes", _MINUTES
            word, words, templates = "label", _LABELS, _TIMER_WORDS
        else:
            tool, number, most = "set_light", "percent", _PERCENT
            word, words, templates = "room", _ROOMS, _LIGHT_WORDS
        n, chosen = rng.randint(1, most), rng.choice(words)
        text = rng.choice(templates).format(number=n, word=chosen)
        if _split_of(_named(tool, n, chosen)) == split:
            arguments = {number: n, word: chosen}
            yield Request(text=text, tool=tool, number=number, word=word, arguments=arguments)


def distinct_calls(split: Split, count: int, seed: int) -> list[Request]:
    """`count` requests of one side, no two for the same call; ValueError for more than that side has."""
    timers = product(("set_timer",), range(1, _MINUTES + 1), _LABELS)
    lights = product(("set_light",), range(1, _PERCENT + 1), _ROOMS)
    there = sum(_split_of(_named(*call)) == split for call in chain(timers, lights))
    if count > there:
        raise ValueError(f"count is {count}; there are {there} {split} calls")
    found: dict[str, Request] = {}
    asked = requests(split, seed)
    while len(found) < count:
        request = next(asked)
        found.setdefault(request.call, request)
    return list(found.values())


def _named(tool: str, number: int, word: str) -> str:
    return f"{tool} {number} {word}"


def _split_of(call: str) -> Split:
    digest = hashlib.blake2b(call.encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest) % HELD_OUT_SHARE else "held-out"
