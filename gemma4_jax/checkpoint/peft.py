"""Adapters into a folder that PEFT loads: adapter_config.json and adapter_model.safetensors.

Read in peft 0.21 and checked against it by tests. A linear map's A is stored as [r, I] and its B as
[O, r]. Experts are one parameter of three axes there and not modules, so they are `target_parameters`: A
is [E r, I], expert by expert, B is [O, r E], rank by rank; and their gate and up projections are one
parameter with one adapter. Ours are two, so together they make one of rank 2 r: A holds both, B has
two blocks, and alpha is raised so that the scale stays what it was.

Not here: merged weights (`writing.py` merges as it writes), what an adapter is (`model/adapters.py`).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.checkpoint.description import write_json
from gemma4_jax.checkpoint.folders import replacing
from gemma4_jax.checkpoint.huggingface import Part, TextTensor, prefix, text_tensors
from gemma4_jax.checkpoint.safetensors import header_bytes, written_by_us
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.adapters import LoRA

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
# PEFT wraps the parameters of a module one around the other, in the order they are declared in.
_EXPERTS = {"experts.gate_up_proj": "experts.base_layer", "experts.down_proj": "experts"}
_FUSED = "experts.gate_up_proj"


def save_adapter(
    path: str | Path,
    config: ModelConfig,
    lora: LoRA,
    adapters: Mapping[str, Any],
    *,
    base: str = "",
    overwrite: bool = False,
) -> None:
    """Write adapters (`model.adapters`) of a model of `config` as a PEFT folder, float32.

    base: name or folder of the model they belong to, noted in the configuration. overwrite: replace any
    folder at `path`; otherwise an earlier export is replaced and anything else refused.

    Raises UserError if `path` is a file, holds something else, or cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    adapted: list[str] = []
    for tensor in text_tensors(config):
        found = [_adapter(adapters, part) for part in tensor.parts]
        if all(adapter is not None for adapter in found):
            adapted.append(tensor.name)
            arrays |= _stored(config, tensor, [adapter for adapter in found if adapter])
    with replacing(Path(path), _is_export, "adapter export", overwrite) as folder:
        with (folder / WEIGHTS_NAME).open("wb") as stream:
            stream.write(header_bytes({name: ("F32", a.shape) for name, a in arrays.items()}))
            for array in arrays.values():
                stream.write(np.ascontiguousarray(array, np.float32).tobytes())
        write_json(folder / CONFIG_NAME, _config(config, lora, adapted, base))


def _is_export(folder: Path) -> bool:
    file = folder / WEIGHTS_NAME
    return file.is_file() and written_by_us(file)


def _adapter(adapters: Mapping[str, Any], part: Part) -> dict[str, np.ndarray] | None:
    """The adapter of one layer's matrix; None if it has none."""
    node: Any = adapters
    for key in part.path:
        if key not in node:
            return None
        node = node[key]
    return {name: np.asarray(leaf[part.index], np.float32) for name, leaf in node.items()}


def _stored(
    config: ModelConfig, tensor: TextTensor, adapters: list[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays by the names that PEFT gives them, for the adapter of one tensor of transformers'."""
    start = f"base_model.model.{prefix(config)}"
    expert = next((name for name in _EXPERTS if tensor.name.endswith(name)), None)
    if expert is not None:
        module = start + tensor.name.removesuffix(expert) + _EXPERTS[expert]
        a, b = _side_by_side(adapters)
        return {
            f"{module}.lora_A.weight": a.swapaxes(1, 2).reshape(-1, a.shape[1]),
            f"{module}.lora_B.weight": b.transpose(2, 1, 0).reshape(b.shape[2], -1),
        }
    (adapter,) = adapters
    module = start + tensor.name.removesuffix(".weight")
    rank = adapter["lora_a"].shape[-1]
    arrays: dict[str, np.ndarray] = {
        f"{module}.lora_A.weight": adapter["lora_a"].reshape(-1, rank).T,
        f"{module}.lora_B.weight": adapter["lora_b"].reshape(rank, -1).T,
    }
    if "magnitude" in adapter:
        arrays[f"{module}.lora_magnitude_vector"] = adapter["magnitude"].reshape(-1)
    return arrays


def _side_by_side(adapters: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Adapters of maps that read the same as one: A [E, I, k r] and B [E, k r, k O], block by block."""
    a = np.concatenate([adapter["lora_a"] for adapter in adapters], axis=2)
    parts = [adapter["lora_b"] for adapter in adapters]
    experts, rank, outputs = parts[0].shape
    b = np.zeros((experts, len(parts) * rank, len(parts) * outputs), np.float32)
    for i, part in enumerate(parts):
        b[:, i * rank : (i + 1) * rank, i * outputs : (i + 1) * outputs] = part
    return a, b


def _config(config: ModelConfig, lora: LoRA, adapted: list[str], base: str) -> dict[str, Any]:
    parameters = [name for name in _EXPERTS if any(t.endswith(name) for t in adapted)]
    modules = {
        re.sub(r"^layers\.\d+\.", "", name).removesuffix(".weight")
        for name in adapted
        if not name.endswith(tuple(_EXPERTS))
    }
    # An expression and not a list of endings: those would reach into the towers of multimodal models.
    names = "|".join(re.escape(name) for name in sorted(modules))
    expression = rf"{re.escape(prefix(config))}(layers\.\d+\.)?({names})"
    fused = _FUSED in parameters
    fused_alpha = lora.alpha * (math.sqrt(2) if lora.rslora else 2)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        # PEFT refuses dropout on experts, even to load them.
        "lora_dropout": 0.0 if parameters else lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        # Empty and not null: that would be PEFT's own choice for the architecture.
        "target_modules": expression if modules else [],
        "target_parameters": parameters or None,
        "rank_pattern": {re.escape(_FUSED): 2 * lora.rank} if fused else {},
        "alpha_pattern": {re.escape(_FUSED): fused_alpha} if fused else {},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
