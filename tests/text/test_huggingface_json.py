"""tokenizer.json made from a SentencePiece vocabulary: it encodes alike, and other readers agree."""

import hashlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import tokenizers
from hypothesis import given, settings

from gemma4_jax.errors import UserError
from gemma4_jax.text import Tokenizer
from gemma4_jax.text.huggingface_json import huggingface_json, save_huggingface_tokenizer
from tests.text.conftest import TEXTS, cases
from tests.text.test_tokenizer import PROSE


@pytest.fixture(scope="module")
def exported(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_huggingface_tokenizer(small, folder)
    return folder


def test_what_is_written(small: Tokenizer, exported: Path) -> None:
    names = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in exported.iterdir()} == names
    again = Tokenizer.load(exported)
    assert "tokenizer.json" in again.files
    assert dict(again.control_tokens) == dict(small.control_tokens)
    assert (again.vocab_size, again.stop_ids) == (small.vocab_size, small.stop_ids)


def test_transformers_knows_every_control_token(
    small: Tokenizer, exported: Path, transformers: ModuleType
) -> None:
    """Where converters to other formats look."""
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    assert set(small.control_tokens.values()) <= set(theirs.all_special_ids)
    assert (theirs.eos_token_id, theirs.bos_token_id) == (1, 2)


@settings(max_examples=200, deadline=None)
@given(PROSE)
def test_it_encodes_alike(small: Tokenizer, exported: Path, text: str) -> None:
    again = _load(exported)
    theirs = _library(exported)
    for sample in (text, TEXTS[3] + text):
        assert again.encode(sample) == small.encode(sample)
        assert theirs.encode(sample, add_special_tokens=False).ids == small.encode(sample)
        assert again.encode(sample, control=False) == small.encode(sample, control=False)


@pytest.mark.slow
def test_the_real_vocabulary(builtin: Tokenizer) -> None:
    text = huggingface_json(builtin)
    merges = json.loads(text)["model"]["merges"]
    joined = "\n".join(f"{left} {right}" for left, right in merges)
    # The list of merges in the GGUF file of Gemma 4 26B-A4B, as Google's tokenizer.json has them.
    assert len(merges) == 514906
    assert hashlib.sha256(joined.encode()).hexdigest() == MERGES_SHA256
    theirs = tokenizers.Tokenizer.from_str(text)
    for case in cases("huggingface_ids.json"):
        assert theirs.encode(case["text"], add_special_tokens=False).ids == case["ids"]


MERGES_SHA256 = "ea437aa17955e79c2e3820a1c137eb52daaf703a5ed6190f680614a218176ca4"


def test_a_tokenizer_json_is_written_as_it_was(spelling: Tokenizer, tmp_path: Path) -> None:
    save_huggingface_tokenizer(spelling, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == spelling.files["tokenizer.json"]
    with pytest.raises(UserError, match="use save"):
        huggingface_json(spelling)


_cache: dict[Path, tuple[Tokenizer, tokenizers.Tokenizer]] = {}


def _load(folder: Path) -> Tokenizer:
    return _both(folder)[0]


def _library(folder: Path) -> tokenizers.Tokenizer:
    return _both(folder)[1]


def _both(folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    if folder not in _cache:
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        _cache[folder] = Tokenizer.load(folder), theirs
    return _cache[folder]
