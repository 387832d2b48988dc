"""How likely texts are: log-probabilities of prompts' own tokens, without generating anything.

Rows of like length run together, padded to a power of two; no logits are kept (`logprobs.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gemma4_jax.build import Model
from gemma4_jax.errors import UserError
from gemma4_jax.logprobs import token_scores
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample.buckets import power_of_two
from gemma4_jax.sample.prompts import Prompt, as_list, encode
from gemma4_jax.sample.requests import Options
from gemma4_jax.sharding import mesh_of, over, rows_over

_SHORTEST = 32
# Tokens that one call may have, padding included.
_TOKENS = 16_384


class TokenScore(NamedTuple):
    """Of one token after those before it: natural log-probability, and whether none is likelier."""

    logprob: float
    likeliest: bool


def prompt_logprobs(
    model: Model, prompts: Prompt | Sequence[Prompt], **options: Any
) -> list[list[float]]:
    """Natural log-probabilities of every prompt's tokens but the first, each after those before it.

    Arguments and errors as of `prompt_scores`.
    """
    return [[token.logprob for token in row] for row in prompt_scores(model, prompts, **options)]


def prompt_scores(
    model: Model, prompts: Prompt | Sequence[Prompt], **options: Any
) -> list[list[TokenScore]]:
    """Of every prompt's tokens but the first how likely each is after those before it.

    prompts, options: as for `Sampler.generate`; of the options those count that say how messages are
    rendered. Raises UserError for prompts that are no prompts, or longer than the model's positions, and for
    a model whose numbers are not finite.
    """
    asked = Options(**options)
    rows = [encode(model, prompt, asked) for prompt in as_list(prompts)]
    for i, row in enumerate(rows):
        if len(row) > model.config.max_position:
            raise UserError(
                f"prompt {i} has {len(row)} tokens; the model has {model.config.max_position} positions"
            )
    found: list[list[TokenScore]] = [[] for _ in rows]
    mesh = mesh_of(model.params)
    parts = rows_over(mesh)
    waiting = sorted((i for i, row in enumerate(rows) if len(row) > 1), key=lambda i: -len(rows[i]))
    while waiting:
        length = min(power_of_two(max(_SHORTEST, len(rows[waiting[0]]))), model.config.max_position)
        most = max(1, _TOKENS // length // parts) * parts
        batch, waiting = waiting[:most], waiting[most:]
        count = parts * power_of_two(-(-len(batch) // parts))
        tokens = np.zeros((count, length), np.int32)
        for at, i in enumerate(batch):
            tokens[at, : len(rows[i])] = rows[i]
        lengths = np.array([len(rows[i]) for i in batch] + [0] * (count - len(batch)), np.int32)
        with over(mesh):
            logprobs, top1 = map(np.asarray, _scores(model.module, model.params, tokens, lengths))
        for at, i in enumerate(batch):
            own = slice(0, len(rows[i]) - 1)
            likeliest = (top1[at, own] > 0).tolist()
            found[i] = list(map(TokenScore, logprobs[at, own].tolist(), likeliest))
            if not np.isfinite(logprobs[at, own]).all():
                raise UserError(
                    f"the model's logits for prompt {i} are not finite (NaN or infinity); look for damaged "
                    "weights, or compute in float32"
                )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _scores(
    module: Transformer, params: Any, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """At position t the log-probability of token t + 1, and 1 where it is the likeliest; 0 where there is
    none.
    """
    position = jnp.arange(tokens.shape[1])[None]
    segment = (position < lengths[:, None]).astype(jnp.int32)
    hidden: Any = module.apply({"params": params}, tokens, segment_ids=segment)
    scores = token_scores(
        hidden,
        params["embed"]["table"],
        jnp.roll(tokens, -1, axis=1),
        softcap=module.config.logit_softcap,
        mask=position + 1 < lengths[:, None],
    )
    return scores.logprobs, scores.top1
