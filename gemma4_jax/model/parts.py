"""What the model is handed, and never chooses: how a part of it is computed on these devices.

The defaults are the references: one device, XLA's own products. `build.py` puts others in their place, which
equal them by test.

Letters: B batch, T tokens, D d_model, A active experts per token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from gemma4_jax.config import LayerConfig, ModelConfig
from gemma4_jax.model import attention, cache
from gemma4_jax.model.attention import KeyValues
from gemma4_jax.model.held import Held, attend_held
from gemma4_jax.model.layers import unembed
from gemma4_jax.model.moe import GroupedMatmul, RoutedExperts, experts_of_tokens
from gemma4_jax.model.visibility import TokenFacts

# Arguments and result of `model.attention.attend`.
Attend = Callable[[ModelConfig, Array, KeyValues, TokenFacts, int | None], Array]
# Arguments and result of `model.layers.unembed`.
Unembed = Callable[[Array, Array], Array]
# Arguments and result of `model.held.attend_held`.
AttendHeld = Callable[[ModelConfig, Array, KeyValues | Held, TokenFacts, int | None], Array]
# Arguments and result of `model.cache.remember`.
Remember = Callable[
    [
        dict[str, Array],
        dict[str, Array],
        cache.Index,
        Array,
        Array,
        LayerConfig,
        Array | None,
    ],
    dict[str, Array],
]


def _as_it_is(tree: Any) -> Any:
    return tree


@dataclasses.dataclass(frozen=True)
class Parts:
    """Interchangeable parts of a Transformer."""

    grouped_matmul: GroupedMatmul = jax.lax.ragged_dot
    routed_experts: RoutedExperts = experts_of_tokens
    unembed: Unembed = unembed
    # In training, where a row attends to itself.
    attend: Attend = attention.attend
    # In decoding, where new tokens attend to what a cache holds; and how they get into it.
    attend_held: AttendHeld = attend_held
    remember: Remember = cache.remember
    # A pytree of arrays [B, T, ...] in the order in which `attend` wants the tokens of a row, and back.
    arrange: Callable[[Any], Any] = _as_it_is
    restore: Callable[[Any], Any] = _as_it_is
