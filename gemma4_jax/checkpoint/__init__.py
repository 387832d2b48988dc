"""Checkpoints: Hugging Face folders in both directions, and folders of our own.

    load, load_params, describe    either kind of folder -> model, parameters, everything else
    load_drafter                   a drafter's folder -> what drafts for a model
    save_huggingface               model -> a folder that transformers loads
    save                           model -> a folder of ours (Orbax)
    save_adapter                   adapters -> a folder that PEFT loads

Not here: what a training run saves to go on from.
"""

from gemma4_jax.checkpoint.description import Description, describe
from gemma4_jax.checkpoint.drafter import load_drafter
from gemma4_jax.checkpoint.load import load, load_params
from gemma4_jax.checkpoint.peft import save_adapter
from gemma4_jax.checkpoint.store import save
from gemma4_jax.checkpoint.writing import save_huggingface

__all__ = [
    "Description",
    "describe",
    "load",
    "load_drafter",
    "load_params",
    "save",
    "save_adapter",
    "save_huggingface",
]
