"""What a model wrote, taken apart by token ids: what merely spells a control token is text.

A model may write `<turn|>` letter by letter, in an answer about this very format or in a string under a
grammar. As text that cannot be told from the token; as ids it can. Here: the scanner of `parse.py` fed with
ids, and where an output starts by its prompt's ids.
"""

from collections.abc import Sequence

from gemma4_jax.text import control
from gemma4_jax.text.arguments import Signatures
from gemma4_jax.text.parse import (
    PROMPT_MARKS,
    Message,
    Piece,
    Scanner,
    Start,
    assemble,
)
from gemma4_jax.text.tokenizer import Tokenizer

# Put after every "<" of ordinary text, so that no name of a control token stands in it. A lone surrogate:
# decoding never gives one.
_SHIELD = "\udfff"


class TokenScanner:
    """The pieces of an output whose ids come one at a time; `parse.Scanner` says what a piece is.

    start: where the output begins (`start_of` its prompt's ids). signatures: as for `parse.parse`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        start: Start = Start.CONTENT,
        signatures: Signatures | None = None,
    ) -> None:
        self._scanner = Scanner(start, signatures, _SHIELD)
        self._decoder = tokenizer.stream()
        self._names = {i: name for name, i in tokenizer.control_tokens.items()}

    def push(self, token: int) -> list[Piece]:
        """Add an id; returns the pieces that are now certain."""
        if token in self._names:
            return self._scanner.push(_shielded(self._decoder.flush()) + self._names[token])
        text = self._decoder.push(token)
        return self._scanner.push(_shielded(text)) if text else []

    def close(self) -> list[Piece]:
        """The output is over: what was held back."""
        rest = self._scanner.push(_shielded(self._decoder.flush()))
        return rest + self._scanner.close()


def parse_tokens(
    tokenizer: Tokenizer,
    output: Sequence[int],
    prompt: Sequence[int] = (),
    signatures: Signatures | None = None,
) -> Message:
    """A whole output as a message. prompt: the ids it continues. Never raises for ids of the tokenizer."""
    scanner = TokenScanner(tokenizer, start_of(tokenizer, prompt), signatures)
    pieces = [piece for token in output for piece in scanner.push(token)]
    return assemble(pieces + scanner.close())


def start_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> Start:
    """Where the output of a prompt begins, by the last control tokens of its ids.

    Unlike `parse.start_of` it does not mistake what a user or a tool wrote for the format.
    """
    names = {i: name for name, i in tokenizer.control_tokens.items()}
    last = next((names[i] for i in reversed(prompt) if names.get(i) in PROMPT_MARKS), None)
    if last == control.CHANNEL:
        return Start.THOUGHT
    if last != control.TURN or control.THINK not in tokenizer.control_tokens:
        return Start.CONTENT
    asked = tokenizer.control_tokens[control.THINK] in prompt
    return Start.EITHER if asked and _opens_model_turn(tokenizer, prompt) else Start.CONTENT


def _opens_model_turn(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    turn = len(prompt) - 1 - list(reversed(prompt)).index(tokenizer.control_tokens[control.TURN])
    return tokenizer.decode(prompt[turn + 1 :]) == "model\n"


def _shielded(text: str) -> str:
    return text.replace("<", f"<{_SHIELD}")
