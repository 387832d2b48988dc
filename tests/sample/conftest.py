"""A tiny model with a tokenizer of its own, and samplers over it that compile once."""

import dataclasses

import jax
import pytest

from gemma4_jax.build import Model, build
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler
from gemma4_jax.text import Tokenizer
from gemma4_jax.text.train_tokenizer import train_tokenizer

TEXTS = [
    f"{a} apples and {b} pears, señor: naïve café €{a}{b}!" for a in range(40) for b in (3, 17, 99)
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, 330, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Model:
    """Shared K/V, per-layer inputs, 512 ids of which 330 have a text, 160 positions, random weights."""
    config = dataclasses.replace(
        preset("tiny-ple"),
        d_model=32,
        d_ff=48,
        window=16,
        max_position=160,
        layer_types=("sliding", "full", "sliding", "full"),
        num_kv_shared_layers=2,
    )
    params = init_params(config, jax.random.key(1))

    def louder(path: tuple, leaf: jax.Array) -> jax.Array:
        # A fresh tied model repeats its input; with strong branches it wanders.
        names = [key.key for key in path]
        return leaf * 8 if any(name.startswith("post_") for name in names) else leaf

    params = jax.tree_util.tree_map_with_path(louder, params)
    return build(config, params, tokenizer)


@pytest.fixture(scope="session")
def sampler(model: Model) -> Sampler:
    return Sampler(model, prefill_chunk=16, max_batch=8)


@pytest.fixture(scope="session")
def wide(model: Model, tokenizer: Tokenizer) -> Sampler:
    """The same with room for declarations of tools in its prompts."""
    config = dataclasses.replace(model.config, max_position=640)
    return Sampler(build(config, model.params, tokenizer), prefill_chunk=256, max_batch=16)
