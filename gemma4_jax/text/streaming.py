"""Text from tokens, one at a time, never showing half a character.

Here: holding back the bytes of an unfinished UTF-8 sequence. Stop strings are the sampler's
business.
"""

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Joins tokens into text as they come; its pieces add up to what `decode` gives."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Add one id; returns the characters that are now complete, often none."""
        return self._utf8.decode(self._token_bytes(token))

    def flush(self) -> str:
        """End of the stream: what was held back, as U+FFFD where it never became a character."""
        tail = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return tail
