"""What changes scores before anything is filtered: penalties for what has been said, biases of single ids.

They cost two arrays of the vocabulary's size for each row, so they exist only where a row asks for them.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.collectives import over_rows
from gemma4_jax.sample.requests import Request


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Penalties:
    """Of each row; neutral values change nothing.

    First the repetition penalty of transformers: the score of every id of the prompt or the output so far is
    divided by it if positive and multiplied if negative. Then those of the OpenAI API: frequency times how
    often the output has the id, and presence if it has it, are subtracted. Then the id's bias is added.
    """

    repetition: Any  # float32 [B]; 1: off
    presence: Any  # float32 [B]
    frequency: Any  # float32 [B]
    bias: Any  # float32 [B, V]; -inf: never
    counts: Any  # int32 [B, V]: in the output
    prompted: Any  # bool [B, V]: in the prompt


def penalised(logits: Float[Array, "B V"], by: Penalties) -> Float[Array, "B V"]:
    """The scores that tokens are chosen by."""
    repetition = by.repetition[:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    said = by.counts > 0
    scores = jnp.where(said | by.prompted, repeated, logits)
    scores -= by.frequency[:, None] * by.counts + by.presence[:, None] * said
    return scores + by.bias


def counted(by: Penalties, token: Int[Array, " B"], chosen: Bool[Array, " B"]) -> Penalties:
    """With one more token in the rows where `chosen`."""

    def add(counts: Array, token: Array, chosen: Array) -> Array:
        return counts.at[jnp.arange(token.shape[0]), token].add(chosen.astype(jnp.int32))

    return dataclasses.replace(by, counts=over_rows(add, by.counts, token, chosen))


def no_penalties(rows: int, vocab_size: int) -> Penalties:
    """Of rows without any."""
    zeros = jnp.zeros((rows,), jnp.float32)
    table = jnp.zeros((rows, vocab_size), jnp.int32)
    return Penalties(zeros + 1, zeros, zeros, table.astype(jnp.float32), table, table.astype(bool))


def penalties_of(
    requests: Sequence[Request | None],
    outputs: Sequence[Sequence[int]],
    vocab_size: int,
    *,
    always: bool = False,
) -> Penalties | None:
    """Those of a call's rows as arrays of the host, after these outputs; None if no row has any.

    always: even then.
    """
    if not always and not any(request is not None and request.penalised for request in requests):
        return None

    def column(name: str, neutral: float) -> np.ndarray:
        return np.array([getattr(r, name) if r else neutral for r in requests], np.float32)

    shape = len(requests), vocab_size
    bias, counts, prompted = (
        np.zeros(shape, np.float32),
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
    )
    for row, (request, output) in enumerate(zip(requests, outputs, strict=True)):
        if request is None or not request.penalised:
            continue
        for i, value in request.bias:
            bias[row, i] = value
        counts[row] = np.bincount(np.asarray(output, np.int64), minlength=vocab_size)
        prompted[row, request.prompt] = True
    return Penalties(
        column("repetition_penalty", 1.0), column("presence_penalty", 0.0),
        column("frequency_penalty", 0.0), bias, counts, prompted,
    )  # fmt: skip
