"""Small models and batches for tests of the step; command lines for tests of runs."""

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Sequence as Words
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_jax.build import transformer
from gemma4_jax.config import ModelConfig
from gemma4_jax.data.encode import Sequence
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import preset
from train.data.sequences import fill
from train.losses import Batch, Params

TINY = ("tiny-dense", "tiny-ple", "tiny-moe")


@functools.cache
def tiny(name: str, vocab_size: int = 512) -> tuple[ModelConfig, Any, Params]:
    """Configuration, module and parameters (norm scales and layer scalars away from 1).

    As few layers as have all the kinds there are, for compile time.
    """
    layers = ("sliding", "full", "sliding", "full") if name == "tiny-ple" else ("sliding", "full")
    shared = 2 if name == "tiny-ple" else 0
    config = dataclasses.replace(
        preset(name),
        layer_types=layers,
        num_kv_shared_layers=shared,
        vocab_size=vocab_size,
        per_layer_vocab_size=vocab_size if shared else 0,
    )
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        values = rng.normal(size=leaf.shape)
        if path[-1].key.endswith("scale") or path[-1].key == "layer_scalar":
            values = 1 + 0.2 * values
            # Attention is not scaled by 1/sqrt(H): queries of norm sqrt(H) would saturate it, and
            # rounding would grow a hundredfold on its way back.
            values = values * (0.2 if path[-2].key == "q_norm" else 1.0)
        else:
            values = values / np.sqrt(config.d_model)
        return jnp.asarray(values, jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, abstract_params(config))
    return config, transformer(config), params


def random_sequence(
    rng: np.random.Generator, length: int, vocab: int, share: float = 0.6
) -> Sequence:
    """Random tokens, of which about `share` count; the last one always does."""
    mask = rng.random(length) < share
    mask[-1] = True
    return Sequence(rng.integers(0, vocab, length).astype(np.int32), mask)


def random_batch(rows: int, length: int, vocab: int, seed: int = 0, share: float = 0.6) -> Batch:
    """Right-padded rows of unequal lengths."""
    rng = np.random.default_rng(seed)
    examples = [
        fill([random_sequence(rng, int(rng.integers(length // 2, length)), vocab, share)], length)
        for _ in range(rows)
    ]
    return stack(examples)


def random_pairs(pairs: int, length: int, vocab: int, seed: int = 0) -> Batch:
    """Pairs with made-up reference log-probabilities."""
    flat = random_batch(2 * pairs, length, vocab, seed)
    batch = {name: x.reshape(pairs, 2, length) for name, x in flat.items()}
    reference = np.random.default_rng(seed).normal(-60, 2, (pairs, 2))
    return {**batch, "reference_logprobs": jnp.asarray(reference, jnp.float32)}


def stack(examples: list[dict[str, np.ndarray]]) -> Batch:
    return {name: jnp.asarray(np.stack([e[name] for e in examples])) for name in examples[0]}


def assert_trees_close(actual: Any, expected: Any, relative: float) -> None:
    """Largest difference of every leaf, relative to that leaf's largest value."""
    flat, _ = jax.tree_util.tree_flatten_with_path(expected)
    for (path, want), got in zip(flat, jax.tree.leaves(actual), strict=True):
        want, got = np.asarray(want), np.asarray(got)
        scale = np.abs(want).max()
        where = jax.tree_util.keystr(path)
        far = np.abs(got - want).max()
        assert far <= relative * scale + 1e-9, f"{where}: {far:.3g} of {scale:.3g}"


def start_run(
    repository: Path, work: Path, words: Words[str], **variables: str
) -> subprocess.Popen[str]:
    """`python -m WORDS` into a work folder. Work folders that are side by side share compiled programs."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(work.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-m", *words, "--run.workdir", str(work)],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
