"""Reading a tool call's arguments as models write them, mistakes included.

Here: one call, from after its `<|tool_call>` on. Values keep their types: `42`, `true` and `null`
are not strings, `<|"|>42<|"|>` is. What a model gets wrong is mended where the meaning is plain: no
`call:` before the name, parentheses for braces, quoted keys, JSON or single quotes for strings,
bare strings, a missing closing delimiter, brace or `<tool_call|>`. Where the tool's declaration is
known, a bare value of a string argument is that string, whatever it looks like. Reading never raises,
and always moves forward.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma4_jax.text import control

#: Nesting beyond this is read as a bare string: hostile output must not exhaust the stack.
MAX_DEPTH = 64

_NAME = re.compile(r"\s*(?:call:|:)?\s*([^\s{}()\[\]<>\"',]+)\s*")
_OTHER_MARKS = (
    *(control.CALL, control.TURN, control.TURN_END, control.EOS, control.RESPONSE),
    *(control.CHANNEL, control.CHANNEL_END),
)
_MARK = re.compile("|".join(map(re.escape, (control.CALL_END, *_OTHER_MARKS))))
#: What may follow a `<tool_call|>` inside a string that is not closed yet, and tells what it was.
_TELLING = re.compile("|".join(map(re.escape, (control.QUOTE, *_OTHER_MARKS))))
_BARE_KEY = re.compile(r"[^:={}\[\](),]*")
_NEXT_FIELD = re.compile(r",\s*(?:$|[}\])]|(?:<\|\"\|>[^<]*<\|\"\|>|[\"']?[\w.$-]+[\"']?)\s*[:=])")
_ENDS_TURN = re.compile("|".join(map(re.escape, (control.TURN_END, control.EOS))))
_SINGLE_QUOTED_KEY = re.compile(r"'([^']*)'(?=\s*[:=])")
_SINGLE_QUOTED = re.compile(r"'([^']*)'(?=\s*(?:[,}\])]|<tool_call\|>|$))")
_ENDS_VALUE = re.compile(r"\s*(?:[,}\]):=]|<tool_call\|>|$)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None}


#: Of every tool: its arguments' names, and whether each is declared to be a string and nothing else.
Signatures = Mapping[str, Mapping[str, bool]]


@dataclass(frozen=True)
class ToolCall:
    """A tool a model asked for.

    `complete` is False if the output ended or went on before the call did: its arguments may then
    lack something, and running it is at the caller's risk.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    complete: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Reading:
    """What `read_call` found: the call or None, the position after it, and whether text that may yet
    come could change that."""

    call: ToolCall | None
    end: int
    settled: bool = True


def read_call(text: str, begin: int, signatures: Signatures | None = None) -> Reading:
    """Read the call whose text starts at `begin`.

    The call is None where there is no name or nothing after it that makes it a call. The position is
    after its `<tool_call|>` if it has one.
    """
    match = _NAME.match(text, begin)
    if not match:
        return Reading(None, begin)
    name, at = match[1], match.end()
    if text.startswith(control.CALL_END, at):
        return Reading(ToolCall(name), at + len(control.CALL_END))
    if text[at : at + 1] not in ("{", "("):
        return Reading(None, begin)
    reader = _Reader(text, at, (signatures or {}).get(name, {}))
    arguments = reader.read_outer()
    end = _MARK.search(text, reader.at)
    if end and end[0] == control.CALL_END:
        reader.at = end.end()
    return Reading(ToolCall(name, arguments, reader.complete), reader.at, reader.settled)


class _Reader:
    """A position in a text, whether everything opened so far was closed, and whether that is sure.

    known: the tool's arguments, as in `Signatures`; empty if it was not declared.
    """

    def __init__(self, text: str, at: int, known: Mapping[str, bool]) -> None:
        self.text = text
        self.at = at
        self.complete = True
        self.settled = True
        self._known = known

    def read_outer(self) -> dict[str, Any]:
        """The arguments: an object in braces or parentheses, or in both."""
        paren = self.text[self.at] == "("
        if paren and self.text[self.at + 1 :].lstrip()[:1] == "{":
            self.at = self.text.index("{", self.at)
            paren = False
        return self._object(0, ")" if paren else "}")

    def _object(self, depth: int, close: str) -> dict[str, Any]:
        self.at += 1
        fields: dict[str, Any] = {}
        while self._more(close):
            key = self._key()
            self._skip_space()
            if self.text[self.at : self.at + 1] in (":", "="):
                self.at += 1
                string = depth == 0 and self._known.get(key, False)
                fields[key] = self._value(depth, close, string)
            elif not key:
                self.at += 1  # a character that can start nothing
        return fields

    def _array(self, depth: int) -> list[Any]:
        self.at += 1
        items = []
        while self._more("]"):
            before = self.at
            items.append(self._value(depth, "]"))
            if self.at == before:
                self.at += 1
                items.pop()
        return items

    def _more(self, close: str) -> bool:
        """Whether another item follows; eats the separators before it, and the closing bracket."""
        while self.text[self.at : self.at + 1] in (",", " ", "\n", "\t", "\r"):
            self.at += 1
        if self.at >= len(self.text) or _MARK.match(self.text, self.at):
            self.complete = False
            return False
        if self.text[self.at] in (close, "}", "]"):
            # A bracket of the other kind closes what was left open, and is kept for its owner.
            if self.text[self.at] == close:
                self.at += 1
            else:
                self.complete = False
            return False
        return True

    def _key(self) -> str:
        if self._at_quote():
            return self._delimited()
        if (string := self._json_string()) is not None:
            return string
        if (string := self._single_quoted(_SINGLE_QUOTED_KEY)) is not None:
            return string
        match = _BARE_KEY.match(self.text, self.at)
        end = match.end() if match else self.at
        mark = _MARK.search(self.text, self.at, end)
        key = self.text[self.at : mark.start() if mark else end]
        self.at += len(key)
        return key.strip()

    def _value(self, depth: int, close: str, is_string: bool = False) -> Any:
        self._skip_space()
        if self._at_quote():
            return self._delimited()
        char = self.text[self.at : self.at + 1]
        if char == "{" and depth < MAX_DEPTH and not is_string:
            return self._object(depth + 1, "}")
        if char == "[" and depth < MAX_DEPTH and not is_string:
            return self._array(depth + 1)
        if (string := self._json_string()) is not None:
            return string
        if (string := self._single_quoted(_SINGLE_QUOTED)) is not None:
            return string
        return self._raw_string() if is_string else self._bare(close)

    def _at_quote(self) -> bool:
        return self.text.startswith(control.QUOTE, self.at)

    def _delimited(self) -> str:
        """A string between delimiters; anything may be inside, even `<tool_call|>`."""
        begin = self.at + len(control.QUOTE)
        end = self.text.find(control.QUOTE, begin)
        cut = self.text.find(control.CALL_END, begin, end if end >= 0 else len(self.text))
        if cut >= 0:
            # Inside the string if its delimiter is the next token of the format; otherwise it was forgotten.
            telling = _TELLING.search(self.text, cut)
            self.settled = self.settled and telling is not None
            cut = -1 if telling and telling[0] == control.QUOTE else cut
        if end >= 0 and cut < 0:
            self.at = end + len(control.QUOTE)
            return self.text[begin:end]
        stop = cut if cut >= 0 else len(self.text)
        if mark := _ENDS_TURN.search(self.text, begin, stop):
            stop = mark.start()
        self.complete = False
        string = self.text[begin:stop]
        if string.endswith(("}", ")")):  # the delimiter was forgotten, the bracket was not
            string = string[:-1]
            self.complete = cut >= 0
            self.at = stop - 1
        else:
            self.at = stop
        return string

    def _json_string(self) -> str | None:
        if self.text[self.at : self.at + 1] != '"':
            return None
        try:
            string, end = json.JSONDecoder(strict=False).raw_decode(self.text, self.at)
        except ValueError:
            return None
        if not _ENDS_VALUE.match(self.text, end) or _MARK.search(self.text, self.at, end):
            return None
        self.at = end
        return str(string)

    def _single_quoted(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self.text, self.at)
        # As above: a string of these kinds ends before the call does, whatever comes after it.
        if not match or _MARK.search(self.text, self.at, match.end()):
            return None
        self.at = match.end()
        return match[1]

    def _bare(self, close: str) -> Any:
        """A number, true, false, null, or an undelimited string up to the next field."""
        begin = self.at
        mark = _MARK.search(self.text, begin)
        limit = mark.start() if mark else len(self.text)
        while self.at < limit:
            char = self.text[self.at]
            if char in ("}", "]", close):
                break
            if char == "," and (close == "]" or _NEXT_FIELD.match(self.text, self.at)):
                break
            self.at += 1
        word = self.text[begin : self.at].strip()
        if word.endswith(control.QUOTE):  # the closing delimiter without the opening one
            return word.removesuffix(control.QUOTE)
        return _typed(word)

    def _raw_string(self) -> str:
        """An undelimited string argument: up to the tool's next argument, or to the end of the call."""
        begin = self.at
        mark = _MARK.search(self.text, begin)
        limit = mark.start() if mark else len(self.text)
        names = "|".join(re.escape(name) for name in self._known)
        following = re.compile(rf",\s*(?:{names})\s*[:=]").search(self.text, begin, limit)
        if following:
            self.at = following.start()
        else:
            body = self.text[begin:limit].rstrip()
            self.at = begin + len(body) - body.endswith(("}", ")"))
        return self.text[begin : self.at].strip().removesuffix(control.QUOTE)

    def _skip_space(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1


def _typed(word: str) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    match = _NUMBER.fullmatch(word)
    # Past 4300 digits Python refuses to make an int, and JSON has no infinity: such a "number" stays text.
    if not match or len(word) > 4300:
        return word
    if not (match[1] or match[2]):
        return int(word)
    number = float(word)
    return number if math.isfinite(number) else word
