"""Tiny chat models in folders."""

from pathlib import Path

import jax
import pytest

import gemma4_jax as g4
from gemma4_jax.build import build
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.transformer import init_params
from gemma4_jax.text.train_tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> list[Path]:
    """Two random models of two layers with Gemma 4's control tokens, as two checkpoints of one run would be."""
    folder = tmp_path_factory.mktemp("models")
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
        max_position=256,
    )
    found = []
    for number in range(2):
        # At its start a model with tied embeddings repeats its last token. Louder branches make it babble.
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: 8 * leaf if "'post_" in jax.tree_util.keystr(path) else leaf,
            init_params(config, jax.random.key(number)),
        )
        g4.save_huggingface(build(config, params, tokenizer), folder / f"step-{number}")
        found.append(folder / f"step-{number}")
    return found
