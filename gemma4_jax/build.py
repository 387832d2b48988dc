"""The one place that joins a configuration, parameters and the parts that run them.

Model code is handed its parts (grouped matmul; later, kernels and collectives) and never asks where it
runs. Here that choice is made, by platform: that of this process, or of a machine it compiles for.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.apart import take_apart
from gemma4_jax.model.block import REMAT_POLICIES, Remat
from gemma4_jax.model.parts import Parts
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.parallel.cut_cache import attend_held, remember
from gemma4_jax.parallel.expert_dispatch import dispatch
from gemma4_jax.parallel.kernels import attend_for, grouped_matmul_for, unembed_for
from gemma4_jax.parallel.zigzag import arrange, restore
from gemma4_jax.sharding import mesh_of, over
from gemma4_jax.text.tokenizer import Tokenizer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def dtype_named(name: Any) -> Any:
    """The floating dtype of that name (or the dtype itself); UserError listing the known ones."""
    known = {str(jnp.dtype(d)) for d in DTYPES.values()}
    try:
        resolved = str(jnp.dtype(name))
    except TypeError:
        resolved = str(name)
    if resolved not in known:
        raise unknown("dtype", resolved, known)
    return DTYPES[resolved]


def transformer(
    config: ModelConfig,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    platform: str | None = None,
    gpu_kernels: bool = False,
) -> Transformer:
    """The module for a configuration.

    dtype: of the residual stream and matrix products. remat: see `model.transformer.Remat`. platform: of the
    devices that will run it, by default those of this process. gpu_kernels: see `parallel.kernels`.
    """
    if remat not in REMAT_POLICIES:
        raise unknown("remat policy", remat, REMAT_POLICIES)
    platform = platform or jax.default_backend()
    parts = Parts(
        grouped_matmul=grouped_matmul_for(platform, gpu_kernels),
        routed_experts=dispatch,
        unembed=unembed_for(platform),
        attend=attend_for(platform, gpu_kernels),
        arrange=arrange,
        restore=restore,
        attend_held=attend_held,
        remember=remember,
    )
    return Transformer(config, dtype_named(dtype), remat, parts)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model ready to use: what it is, its parameters, its tokenizer, and the module that runs them.

    params: nested dict of arrays (tree: `model/layout.py`). tokenizer: None if the checkpoint has none.
    chat_template: the checkpoint's own jinja template, if it ships one.
    """

    config: ModelConfig
    params: dict[str, Any]
    module: Transformer
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    def for_decoding(self) -> Model:
        """This model laid out for decoding where it is (`model/apart.py`), which gives the same tokens.

        On one CPU device in float32 the large matrices move, stack by stack: this model must not be used
        afterwards. Elsewhere it is this one. Not for training, nor for saving.
        """
        platforms = {
            device.platform
            for leaf in jax.tree.leaves(self.params)
            if isinstance(leaf, jax.Array)
            for device in leaf.devices()
        }
        if platforms != {"cpu"} or mesh_of(self.params) or self.module.dtype != jnp.float32:
            return self
        return dataclasses.replace(self, params=take_apart(self.params))

    def logits(
        self, tokens: Any, positions: Any = None, segment_ids: Any = None
    ) -> Float[Array, "B T V"]:
        """float32 logits [B, T, V] after the soft cap, for int tokens [B, T].

        positions: for the rotary embedding; by default they restart in every segment. segment_ids: 0 is
        padding, packed documents count from 1. Raises UserError for ids outside the vocabulary or ill shapes.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.size == 0:
            raise UserError(
                f"tokens must be whole numbers of shape [B, T], got {tokens.dtype} {list(tokens.shape)}"
            )
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise UserError(
                f"token ids must be in [0, {self.config.vocab_size}), got {tokens.min()} to {tokens.max()}"
            )
        extra = {"positions": positions, "segment_ids": segment_ids}
        for name, value in extra.items():
            if value is not None:
                extra[name] = np.asarray(value, np.int32)
                if extra[name].shape != tokens.shape:
                    raise UserError(
                        f"{name} must have the tokens' shape {list(tokens.shape)}, "
                        f"got {list(extra[name].shape)}"
                    )
        with over(mesh_of(self.params)):
            return _logits(self.module, self.params, tokens.astype(np.int32), **extra)


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    module: Transformer,
    params: Any,
    tokens: Array,
    positions: Array | None,
    segment_ids: Array | None,
) -> Array:
    variables = {"params": params}
    hidden = module.apply(variables, tokens, positions, segment_ids)
    logits: Any = module.apply(variables, hidden, method="logits")
    return logits


def build(
    config: ModelConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    chat_template: str | None = None,
) -> Model:
    """A `Model` of a configuration and its parameters, computing in `dtype`."""
    return Model(config, params, transformer(config, dtype, remat), tokenizer, chat_template)
