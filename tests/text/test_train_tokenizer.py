"""A vocabulary of our own: Gemma 4's settings, the same bytes each time, clear limits."""

from pathlib import Path

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.text import Tokenizer, control
from gemma4_jax.text.sentencepiece_backend import parse_model
from gemma4_jax.text.train_tokenizer import SMALLEST, train_tokenizer
from tests.text.conftest import TEXTS


def test_same_texts_same_bytes(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 320, tmp_path / "a.model")
    train_tokenizer(iter(TEXTS), 320, tmp_path / "b.model")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_a_folder_gets_tokenizer_model(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 320, tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == 320


def test_settings_are_gemmas(small: Tokenizer, builtin: Tokenizer) -> None:
    ours, real = (parse_model(t.files["tokenizer.model"], where="test") for t in (small, builtin))
    for name in ("model_type", "byte_fallback", "split_digits", "allow_whitespace_only_pieces"):
        assert getattr(ours.trainer_spec, name) == getattr(real.trainer_spec, name), name
    for name in ("pad_id", "eos_id", "bos_id", "unk_id", "bos_piece", "eos_piece"):
        assert getattr(ours.trainer_spec, name) == getattr(real.trainer_spec, name), name
    for name in ("name", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        assert getattr(ours.normalizer_spec, name) == getattr(real.normalizer_spec, name), name


def test_what_it_learns(small: Tokenizer) -> None:
    assert set(control.ALL) == set(small.control_tokens)
    assert small.token_id("<|turn>") != 105
    ids = small.encode(TEXTS[0])
    assert small.decode(ids) == TEXTS[0]
    assert ids[0] == small.token_id("<|turn>")
    assert len(ids) < len(TEXTS[0].encode()) / 2, "words must have become pieces"
    assert len(small.encode("407")) == 3, "digits stand alone"
    unseen = "\x00 \u65e5\u672c\t\U0001f642  end "
    assert small.decode(small.encode(unseen)) == unseen


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"vocab_size {SMALLEST} leaves nothing.*{SMALLEST + 1}"):
        train_tokenizer(TEXTS, SMALLEST, tmp_path / "x")
    with pytest.raises(UserError, match=r"vocab_size 50000 is more than .* use at most \d+"):
        train_tokenizer(TEXTS, 50000, tmp_path / "x")
    with pytest.raises(UserError, match="no texts"):
        train_tokenizer(["", ""], 350, tmp_path / "x")
    assert not (tmp_path / "x").exists()
