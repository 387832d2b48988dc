"""The committed oracle fixtures: tiny Gemma 4 models with the numbers transformers got from them.

The arrays of `vectors.npz` are described in `make_text_oracle.py`, which made them. Nothing here
needs torch or transformers.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
TEXT_CASES = ("dense", "ple", "moe")
DPO_CASES = ("dense", "moe")
DIALECTS = ("transformers", "release")


@dataclass(frozen=True, kw_only=True)
class OracleCase:
    """One model folder and what it computes; treat the arrays as read-only."""

    name: str
    folder: Path  # a Hugging Face folder: config.json, generation_config.json, model.safetensors
    config: dict[str, Any]  # as transformers writes it (per_layer_config)
    config_release: dict[str, Any]  # as the released checkpoints spell it (global_head_dim, ...)
    vectors: dict[str, np.ndarray]
    meta: dict[str, Any]

    def config_in(self, dialect: str) -> dict[str, Any]:
        """The same settings in one of `DIALECTS`."""
        return {"transformers": self.config, "release": self.config_release}[dialect]


@dataclass(frozen=True, kw_only=True)
class DpoCase:
    """A policy, its reference, one batch, and the losses and gradient norms TRL got from them."""

    name: str
    policy: Path  # Hugging Face folders
    reference: Path
    batch: dict[str, np.ndarray]  # input_ids, attention_mask, completion_mask, each int64 [2B,T]:
    # the chosen rows first, then the rejected ones in the same order
    expected: dict[str, Any]


@cache
def load_case(name: str) -> OracleCase:
    """Text case `dense`, `ple` or `moe`; `draft`, the drafter of `dense`."""
    folder = FIXTURES / "oracle" / name
    return OracleCase(
        name=name,
        folder=folder,
        config=read_json(folder / "config.json"),
        config_release=read_json(folder / "config_release.json"),
        vectors=read_arrays(folder / "vectors.npz"),
        meta=read_json(folder / "meta.json"),
    )


@cache
def load_dpo(name: str) -> DpoCase:
    """Preference case `dense` or `moe`."""
    folder = FIXTURES / "dpo" / name
    return DpoCase(
        name=name,
        policy=folder / "policy",
        reference=folder / "ref",
        batch=read_arrays(folder / "batch.npz"),
        expected=read_json(folder / "oracle.json"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object."""
    return json.loads(path.read_text())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz archive, read-only."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for array in arrays.values():
        array.flags.writeable = False  # shared between tests by the cache
    return arrays
