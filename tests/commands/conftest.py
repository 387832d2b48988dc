"""A tiny chat model in a folder, and a way to run the command line in this process."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

import gemma4_jax as g4
from gemma4_jax import cli
from gemma4_jax.build import Model, build
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.transformer import init_params
from gemma4_jax.text.train_tokenizer import train_tokenizer

CONTEXT = 256


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
    # A text that stays as it is: what a random model says depends on every piece of its vocabulary.
    license_text = (Path(__file__).parents[2] / "LICENSE").read_text()
    tokenizer = train_tokenizer([license_text], 512, folder / "tokenizer")
    config = ModelConfig(
        vocab_size=512,
        d_model=32,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        d_ff=64,
        layer_types=("sliding", "full"),
        window=16,
        num_global_kv_heads=1,
        global_head_dim=32,
        max_position=CONTEXT,
    )
    # At its start a model with tied embeddings repeats its last token. Louder branches make it babble.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 8 * leaf if "'post_" in jax.tree_util.keystr(path) else leaf,
        init_params(config, jax.random.key(0)),
    )
    model = build(config, params, tokenizer)
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
