"""The `config.json` of a drafter's Hugging Face folder to `DrafterConfig`.

Its `text_config` speaks the dialects of `hf_config.py`. Missing keys mean what transformers' class says.
"""

from collections.abc import Mapping
from typing import Any

from gemma4_jax.config import CentroidConfig, DrafterConfig
from gemma4_jax.errors import UserError
from gemma4_jax.hf_config import text_model
from gemma4_jax.hf_fields import Fields

# model_type -> that of the target it drafts for.
DRAFTERS = {"gemma4_assistant": "gemma4", "gemma4_unified_assistant": "gemma4_unified"}


def drafter_from_hf(config: Mapping[str, Any]) -> DrafterConfig:
    """The drafter that a parsed `config.json` describes; UserError if it describes something else."""
    model_type = config.get("model_type")
    if model_type not in DRAFTERS:
        raise UserError(
            f"config.json: model_type {model_type!r} is no drafter (drafters: {', '.join(DRAFTERS)})"
        )
    top = Fields(config)
    top.must_be("tie_word_embeddings", True, "a drafter's output is its own table")
    if config.get("quantization_config") is not None:
        raise UserError(
            "config.json: quantization_config is set; quantised drafters are not supported, load the "
            "bfloat16 release"
        )
    text = top.object("text_config")
    # All layers share K/V, which of a model that runs alone could not be. The text config's own class would
    # have per-layer inputs where the file says nothing of them.
    data = {"hidden_size_per_layer_input": 0, **text.data, "num_kv_shared_layers": 0}
    stack = text_model(
        Fields(data, text.where), top, DRAFTERS[model_type], nested=True, generation=Fields({})
    )
    if stack.logit_softcap is not None:
        raise UserError(
            f"config.json: {text.where}final_logit_softcapping must be null, a drafter has no soft cap"
        )
    centroids = None
    if top.boolean("use_ordered_embeddings", False):
        centroids = CentroidConfig(
            count=top.integer("num_centroids", 2048),
            active=top.integer("centroid_intermediate_top_k", 32),
        )
    return DrafterConfig(
        stack=stack,
        target_width=top.integer("backbone_hidden_size", 1536),
        centroids=centroids,
    )
