"""Tiny chat models in folders."""

from pathlib import Path

import pytest

import gemma4_jax as g4
from tests.babbler import babbler, license_tokenizer


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> list[Path]:
    """Two random models with Gemma 4's control tokens, as two checkpoints of one run would be."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = license_tokenizer(folder)
    found = []
    for number in range(2):
        g4.save_huggingface(babbler(tokenizer, seed=number), folder / f"step-{number}")
        found.append(folder / f"step-{number}")
    return found
