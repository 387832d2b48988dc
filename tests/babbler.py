"""A tiny chat model of random weights that says something, for tests of whole commands."""

from pathlib import Path

import jax

from gemma4_jax.build import Model, build
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.transformer import init_params
from gemma4_jax.text.tokenizer import Tokenizer
from gemma4_jax.text.train_tokenizer import train_tokenizer

CONTEXT = 256
_SIZE = 512


def license_tokenizer(folder: Path) -> Tokenizer:
    """512 pieces with Gemma 4's control tokens. Of a text that stays as it is: what a random model says depends
    on every piece of its vocabulary."""
    text = (Path(__file__).parents[1] / "LICENSE").read_text()
    return train_tokenizer([text], _SIZE, folder / "tokenizer")


def babbler(tokenizer: Tokenizer, seed: int) -> Model:
    """Two layers, 256 positions."""
    config = ModelConfig(
        vocab_size=_SIZE,
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
        init_params(config, jax.random.key(seed)),
    )
    return build(config, params, tokenizer)
