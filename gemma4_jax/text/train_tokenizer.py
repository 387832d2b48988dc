"""Training a small vocabulary with Gemma 4's settings, for tiny models that learn from scratch.

Here: the settings. The result is an ordinary SentencePiece file that `Tokenizer.load` reads: all of
Gemma 4's control tokens as user-defined pieces, byte fallback, single digits, no change to the
text.
"""

import io
import re
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from gemma4_jax.errors import UserError
from gemma4_jax.text import control
from gemma4_jax.text.tokenizer import Tokenizer

#: Whitespace that Gemma 4 keeps whole; longer runs are pairs of these.
_WHITESPACE = ("\n", "\n\n")

#: 256 bytes, the four reserved tokens, the control tokens and the whitespace pieces.
SMALLEST = 256 + len(control.ALL) + len(_WHITESPACE)


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path) -> Tokenizer:
    """Train a BPE vocabulary and write it.

    The same texts give the same bytes: one thread, no sampling, no shuffling.

    Args:
      texts: what to learn from; control tokens in it are matched first and never merged.
      vocab_size: number of pieces, more than `SMALLEST`.
      path: the file to write, or an existing folder to put `tokenizer.model` in.

    Returns:
      The tokenizer, read back from the file.

    Raises:
      UserError: a size too small for the fixed pieces or too large for the texts.
    """
    if vocab_size <= SMALLEST:
        raise UserError(
            f"vocab_size {vocab_size} leaves nothing to learn: bytes and control tokens take "
            f"{SMALLEST}; use at least {SMALLEST + 1}"
        )
    texts = [text for text in texts if text]
    if not texts:
        raise UserError("no texts to train a vocabulary from; give at least one that is not empty")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            max_sentence_length=1 << 24,
            user_defined_symbols=[*control.SYMBOLS, *_WHITESPACE],
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece=control.PAD,
            eos_piece=control.EOS,
            bos_piece=control.BOS,
            unk_piece=control.UNK,
            num_threads=1,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if limit := re.search(r"value <= (\d+)", str(error)):
            raise UserError(
                f"vocab_size {vocab_size} is more than these texts have pieces for; "
                f"use at most {limit[1]}, or more varied texts"
            ) from None
        raise UserError(f"cannot train a vocabulary from these texts: {error}") from None
    path = Path(path)
    path = path / "tokenizer.model" if path.is_dir() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return Tokenizer.load(path)
