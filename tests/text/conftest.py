"""What the text tests share: tokenizers of three kinds, and the shared vectors if present."""

import json
import os
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from gemma4_jax.text import Tokenizer
from gemma4_jax.text.train_tokenizer import train_tokenizer

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "text"

TEXTS = [
    f"<|turn>user\nTom has {a} apples and buys {b}.\n\nHow many now?<turn|>\n<|turn>model\n"
    f"<|channel>thought\n{a} + {b} = {a + b}\n<channel|>Tom has {a + b} apples.<turn|>\n"
    for a in range(3, 40, 4)
    for b in range(2, 30, 3)
]


def cases(name: str) -> list[dict]:
    """The cases of a fixture file."""
    return json.loads((FIXTURES / name).read_text("utf-8"))["cases"]


@pytest.fixture(scope="session")
def builtin() -> Tokenizer:
    return Tokenizer.builtin()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A little vocabulary of our own; its control tokens have other ids than Gemma's."""
    path = tmp_path_factory.mktemp("small") / "tokenizer.model"
    return train_tokenizer(TEXTS, 350, path)


@pytest.fixture(scope="session")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer.json with few control tokens, whose merges can spell one of them, `<turn|>`."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>", "<|turn>"]
    pieces = [*names, *(f"<0x{b:02X}>" for b in range(256)), *"<turn|>abc\u2581"]
    merges = []
    for i in range(1, len("<turn|>")):
        merges.append(("<turn|>"[:i], "<turn|>"[i]))
        pieces.append("<turn|>"[: i + 1])
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(names)
    folder = tmp_path_factory.mktemp("spelling")
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared vectors: beside the repository, or where GEMMA4_SHARED says."""
    root = Path(__file__).resolve().parents[2]
    path = Path(os.environ.get("GEMMA4_SHARED", root.parent / "shared"))
    if not (path / "vectors").is_dir():
        pytest.skip(f"no shared vectors at {path}; set GEMMA4_SHARED to where they are")
    return path
