"""How strongly a model prefers the chosen answers of pairs it was not trained on.

Here: log-probabilities of both sides under one model, and what follows for one model or two. The
pass over the pairs is the one that DPO makes for its reference (train/reference.py). Not here:
intervals (eval/stats.py).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.data.encode import dpo_encoder
from gemma4_jax.errors import UserError
from train.data.pipeline import PairRows
from train.data.prepared import prepare
from train.losses import reference_pass
from train.reference import precompute
from train.start import tokenizer_fingerprint

_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Pairs under one model; columns are chosen, rejected.

    logprobs: float32 [pairs, 2], summed over the answer. tokens: int [pairs, 2], its length.
    """

    logprobs: np.ndarray
    tokens: np.ndarray

    @property
    def likelier(self) -> np.ndarray:
        """Whether the chosen answer as a whole is the more probable one; bool [pairs]."""
        return self.logprobs[:, 0] > self.logprobs[:, 1]

    @property
    def likelier_per_token(self) -> np.ndarray:
        """The same for the mean over tokens, so that length does not decide; bool [pairs]."""
        mean = self.logprobs / self.tokens
        return mean[:, 0] > mean[:, 1]

    def margins(self, reference: "Scores") -> np.ndarray:
        """Log-ratio to the reference, chosen minus rejected; float32 [pairs].

        DPO's reward margin divided by beta; the reward is right where it is above 0.
        """
        ratio = self.logprobs - reference.logprobs
        return ratio[:, 0] - ratio[:, 1]


def score(model: Model, pairs: Path, max_length: int, folder: Path) -> Scores:
    """Both sides of every pair in a JSONL file that fits into `max_length` tokens.

    folder: where tokens and log-probabilities are kept, so that a second call is quick.
    """
    if model.tokenizer is None:
        raise UserError("this model has no tokenizer; pairs of text cannot be scored")
    family = model.config.family
    prepared = prepare(
        pairs,
        dpo_encoder(model.tokenizer, family),
        max_length=max_length,
        overlong="drop",
        cache_dir=folder / "cache",
        settings={
            "task": "dpo",
            "tokenizer": tokenizer_fingerprint(model.tokenizer),
            "family": family,
        },
    )
    source = PairRows(prepared, max_length)
    logprobs = precompute(
        reference_pass(model.module, model.config),
        model.params,
        source,
        _ROWS,
        folder,
        prepared.fingerprint,
    )
    masks = [prepared.sequence(i).loss_mask[1:].sum() for i in range(2 * len(source))]
    return Scores(logprobs=logprobs, tokens=np.array(masks).reshape(-1, 2))
