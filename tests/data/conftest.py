"""The small vocabulary and the row files of the training tests."""

from tests.train.conftest import rows_file, tokenizer, tokenizer_file

__all__ = ["rows_file", "tokenizer", "tokenizer_file"]
