"""Loss on held-out data, source by source, whenever a checkpoint is saved.

Every row counts once, each by what the loss averages over: batches of equal size, and one smaller for what is
left. Not here: which rows those are (sft.py, dpo.py), what a loss is (losses.py).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.checkpointer import BEST
from train.data.pipeline import Source
from train.losses import Loss, LossFn, Params, Totals, batch_totals
from train.placement import all_rows

# Of a loss's own metrics these are shown for validation data too.
_SHOWN = ("mean_token_accuracy", "rewards/accuracies", "rewards/margins")


class Validation:
    """Held-out sources and the compiled loss over them."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        loss_fn: LossFn,
        rows: int,
        perplexity: bool,
        mesh: Mesh,
    ):
        """sources: by name. rows: examples taken at a time. perplexity: exp(loss) is one.
        mesh: of the parameters."""
        self._sources, self._rows, self._perplexity = sources, rows, perplexity
        self._key = jax.random.key(0)

        def evaluate(params: Params, batch: Any, totals: Totals, frozen: Any) -> Loss:
            return loss_fn(params, batch, totals, self._key, frozen)

        self._evaluate, self._mesh = jax.jit(evaluate), mesh
        # What the loss divides by is known from the data: shares then add up to the mean over all rows.
        self._totals = {name: self._count(source) for name, source in sources.items()}

    def __call__(self, params: Params, frozen: Any) -> dict[str, float]:
        """validation_loss, a mean over sources; and of each its loss and what else is worth knowing."""
        found: dict[str, float] = {}
        losses = []
        for name, source in self._sources.items():
            value = 0.0
            sums: dict[str, list[float]] = {}
            for batch in self._batches(source):
                placed = all_rows(batch, self._mesh)
                loss = self._evaluate(params, placed, self._totals[name], frozen)
                value += float(loss.value)
                for metric in _SHOWN:
                    if metric in loss.metrics:
                        pair = sums.setdefault(metric, [0.0, 0.0])
                        pair[0] += float(loss.metrics[metric][0])
                        pair[1] += float(loss.metrics[metric][1])
            losses.append(value)
            found[f"validation/{name}/loss"] = value
            if self._perplexity:
                found[f"validation/{name}/perplexity"] = math.exp(min(value, 700.0))
            for metric, (total, weight) in sums.items():
                found[f"validation/{name}/{metric}"] = total / max(weight, 1.0)
        return {BEST: sum(losses) / len(losses), **found}

    def _batches(self, source: Source) -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, len(source), self._rows):
            examples = [source[i] for i in range(first, min(first + self._rows, len(source)))]
            yield {name: np.stack([e[name] for e in examples]) for name in examples[0]}

    def _count(self, source: Source) -> dict[str, jax.Array]:
        counts = [
            jax.device_get(batch_totals(jax.tree.map(jnp.asarray, b)))
            for b in self._batches(source)
        ]
        return {name: jnp.float32(sum(float(c[name]) for c in counts)) for name in counts[0]}
