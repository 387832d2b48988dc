"""What transformers computes from a folder that we wrote."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def eager(transformers: ModuleType, folder: Path) -> Any:
    """Their model in float32; fails if a tensor is missing, unexpected or of another shape."""
    import torch

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for module in model.modules():  # its grouped kernel wants row lengths in multiples of 16 bytes
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"
    return model.eval()


def their_logits(transformers: ModuleType, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 logits of token ids [B, T]."""
    import torch

    with torch.no_grad():
        ids = torch.from_numpy(tokens).long()
        return eager(transformers, folder)(input_ids=ids).logits.float().numpy()
