"""Text of one row as its tokens come, cut at stop strings, whatever token border they lie across."""

from collections.abc import Sequence

from gemma4_jax.text.tokenizer import Tokenizer


class RowText:
    """Grows with every token; never gives out text that a stop string might yet take back.

    tokenizer: None for a model without one; the text then stays empty.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self._decoder = None if tokenizer is None else tokenizer.stream()
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain. Nothing more comes once `stopped`."""
        if self._decoder is None or self.stopped:
            return ""
        return self._release(self._decoder.push(token), final=False)

    def finish(self) -> str:
        """No more tokens: the rest of the text."""
        if self._decoder is None or self.stopped:
            return ""
        return self._release(self._decoder.flush(), final=True)

    def _release(self, new: str, final: bool) -> str:
        text = self._held + new
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = text[: min(found)], ""
        else:
            cut = len(text) if final else len(text) - _possible_start(text, self._stop)
            out, self._held = text[:cut], text[cut:]
        self.text += out
        return out


def _possible_start(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which some stop string begins."""
    longest = max((len(s) - 1 for s in stop), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(s.startswith(tail) for s in stop):
            return size
    return 0
