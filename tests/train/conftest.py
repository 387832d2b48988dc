"""Things every training test starts from: a small vocabulary, rows to learn, tiny models."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma4_jax import checkpoint
from gemma4_jax.build import Model
from gemma4_jax.text.tokenizer import Tokenizer
from gemma4_jax.text.train_tokenizer import train_tokenizer

from .helpers import tiny

WORDS = "one two three four five six seven eight nine ten plus minus makes what is the sum of and"


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of 384 pieces made like Gemma 4's, with its control tokens."""
    words = WORDS.split()
    count = len(words)
    text = [" ".join(words[i * k % count] for k in (1, 7, 11)) for i in range(400)]
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(text, 384, file)
    return file


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def sum_rows(count: int) -> list[dict[str, Any]]:
    """SFT rows of unequal lengths."""
    names = WORDS.split()[:10]
    rows = []
    for i in range(count):
        a, b = i % 5, i // 5 % 5
        question = f"what is {names[a]} plus {names[b]}" + " and" * (i % 7)
        answer = f"{names[a]} plus {names[b]} makes {names[a + b + 1]}"
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
    return rows


def sum_pairs(count: int) -> list[dict[str, Any]]:
    """DPO rows: the right sum against a wrong one."""
    names = WORDS.split()[:10]
    rows = []
    for i, row in enumerate(sum_rows(count)):
        prompt, answer = row["messages"]
        wrong = {"role": "assistant", "content": f"the sum is {names[i % 3]}"}
        rows.append({"prompt": [prompt], "chosen": [answer], "rejected": [wrong]})
    return rows


@pytest.fixture
def sft_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", sum_rows(40))


@pytest.fixture
def dpo_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", sum_pairs(24))


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes given rows (objects, or strings as they are) into a file and returns its path."""

    def write(*rows: Any, name: str = "data.jsonl") -> Path:
        file = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("".join(f"{line}\n" for line in lines))
        return file

    return write


@pytest.fixture(scope="session")
def model_folder(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a model of two layers for the small vocabulary."""
    config, module, params = tiny("tiny-dense", vocab_size=384)
    folder = tmp_path_factory.mktemp("model") / "start"
    checkpoint.save_huggingface(
        Model(config, params, module, Tokenizer.load(tokenizer_file)), folder
    )
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many MiB; skips the test where that is not allowed."""
    folder = tmp_path / "disk"

    def make(size: int) -> Path:
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)],
            capture_output=True,
        )
        if mounted.returncode:
            pytest.skip(f"may not mount a file system here: {mounted.stderr.decode().strip()}")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
