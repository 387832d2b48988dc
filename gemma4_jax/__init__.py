"""Gemma 4 in JAX: exact models, real checkpoints, sampling, and what training is built from.

    import gemma4_jax as g4
    model = g4.load("path/to/gemma-4-folder")
    g4.Sampler(model).generate(["The capital of France is"])

Names are imported when first used, so that `import gemma4_jax` and the command line's --help stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma4_jax import text
    from gemma4_jax.build import Model, build
    from gemma4_jax.checkpoint import load, save_huggingface
    from gemma4_jax.config import ModelConfig
    from gemma4_jax.errors import UserError
    from gemma4_jax.presets import preset
    from gemma4_jax.sample.sampler import Completion, Sampler

__version__ = "0.1.0"

_HOME = {
    "Completion": "gemma4_jax.sample.sampler",
    "Model": "gemma4_jax.build",
    "ModelConfig": "gemma4_jax.config",
    "Sampler": "gemma4_jax.sample.sampler",
    "UserError": "gemma4_jax.errors",
    "build": "gemma4_jax.build",
    "load": "gemma4_jax.checkpoint",
    "preset": "gemma4_jax.presets",
    "save_huggingface": "gemma4_jax.checkpoint",
}
__all__ = [
    "Completion",
    "Model",
    "ModelConfig",
    "Sampler",
    "UserError",
    "build",
    "load",
    "preset",
    "save_huggingface",
    "text",
]


def __getattr__(name: str) -> Any:
    if name == "text":
        return importlib.import_module("gemma4_jax.text")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gemma4_jax' has no attribute {name!r}")
