"""A tiny chat model in a folder, and a way to run the command line in this process."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import gemma4_jax as g4
from gemma4_jax import cli
from gemma4_jax.build import Model, build
from tests.babbler import babbler, license_tokenizer


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    """run(*words, stdin="") -> Result of `gemma4 *words`."""

    def call(*words: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = 0
        try:
            cli.main(words)
        except SystemExit as leaving:
            code = leaving.code
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def complaint(run):
    """complaint(*words) -> the one line that a mistake is answered with."""

    def call(*words: str, stdin: str = "") -> str:
        result = run(*words, stdin=stdin)
        assert result.code == 2
        assert result.out == ""
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
        return result.err

    return call


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A random model of two layers whose vocabulary has Gemma 4's control tokens."""
    folder = tmp_path_factory.mktemp("model")
    model = babbler(license_tokenizer(folder), seed=0)
    g4.save_huggingface(model, folder / "hf")
    return folder / "hf"


@pytest.fixture(scope="session")
def model(model_folder) -> Model:
    return g4.load(model_folder)


@pytest.fixture(scope="session")
def bare_folder(model, tmp_path_factory) -> Path:
    """The same model without its tokenizer."""
    folder = tmp_path_factory.mktemp("bare") / "hf"
    g4.save_huggingface(build(model.config, model.params), folder)
    return folder
