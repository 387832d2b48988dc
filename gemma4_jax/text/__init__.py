"""Text: tokens, the chat format, and what a model wrote.

`Tokenizer` turns text into ids; `chat` turns messages into prompts and training examples; `parse`
takes outputs apart; `template` runs a checkpoint's own jinja template.
"""

from gemma4_jax.text import chat, parse
from gemma4_jax.text.tokenizer import Tokenizer

__all__ = ["Tokenizer", "chat", "parse"]
