"""Where a model's thought ends and its answer begins, for what is scored.

Only what follows `<channel|>` is an answer. A thought that was never closed has none, however much of one it
holds.
"""

from gemma4_jax.text import control
from gemma4_jax.text.parse import Message, Start

_LABEL = "thought\n"


def thought_is_open(text: str, message: Message, start: Start) -> bool:
    """Whether an output ended inside its thought. message: the output, parsed; start: where its prompt let it
    begin."""
    opened, closed = text.rfind(control.CHANNEL), text.rfind(control.CHANNEL_END)
    if opened > closed:
        return True
    if closed >= 0:
        return False
    if start is Start.THOUGHT:
        return message.content is None
    # The opening token may be missing, as where a server leaves control tokens out; the label tells.
    return start is Start.EITHER and text.startswith(_LABEL)
