"""Several prepared data sets as one, each with the share of rows that is drawn from it.

Here: their sequences under one numbering, so that packing, pairs and a precomputed reference know nothing
of mixtures. Not here: the order that keeps the shares (order.py).
"""

import hashlib
from collections.abc import Mapping
from collections.abc import Sequence as AbstractSequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from configs.schema import DataConfig
from gemma4_jax.data.encode import Encode, Sequence
from gemma4_jax.errors import UserError
from train.data.order import Part
from train.data.prepared import Prepared, prepare


class Sequences(Protocol):
    """Token sequences by number, of one data set or of a mixture; parts: by number of sequence."""

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def parts(self) -> tuple[Part, ...]: ...

    def sequence(self, index: int) -> Sequence: ...


class Mixture:
    """Data sets one after the other. fingerprint: of all of them and their weights. summary: for people."""

    def __init__(self, members: AbstractSequence[tuple[Fraction, Prepared]]):
        self.members = [member for _, member in members]
        self.lengths = np.concatenate([member.lengths for member in self.members])
        self._stops = np.cumsum([len(member.lengths) for member in self.members])
        total = sum((weight for weight, _ in members), Fraction(0))
        starts = [0, *self._stops[:-1].tolist()]
        self.parts = tuple(
            Part(start, int(stop), weight / total)
            for start, stop, (weight, _) in zip(starts, self._stops, members, strict=True)
        )
        text = " ".join(
            f"{part.weight} {m.fingerprint}"
            for part, m in zip(self.parts, self.members, strict=True)
        )
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.summary = " + ".join(
            f"{float(part.weight):.3g} of ({member.summary})"
            for part, member in zip(self.parts, self.members, strict=True)
        )

    def sequence(self, index: int) -> Sequence:
        """Tokens and loss mask of one sequence."""
        member = int(np.searchsorted(self._stops, index, side="right"))
        return self.members[member].sequence(index - self.parts[member].start)


def prepare_data(
    data: DataConfig, encode: Encode, cache_dir: str | Path, settings: Mapping[str, object]
) -> Prepared | Mixture:
    """Everything that `data` names, tokenised. settings: as for `prepare`."""
    members = [
        (
            weight,
            prepare(
                path,
                encode,
                max_length=data.max_length,
                overlong=data.overlong,
                cache_dir=cache_dir,
                settings={**settings, "thoughts": data.thoughts},
                on_error=data.on_error,
            ),
        )
        for weight, path in data.sources()
    ]
    return Mixture(members) if data.mixture else members[0][1]


def prepare_validation(
    data: DataConfig, encode: Encode, cache_dir: str | Path, settings: Mapping[str, object]
) -> dict[str, Prepared]:
    """The held-out sources that `data` names, tokenised, by their own names.

    Rows that are too long are cut or left out even where training data may have none: a measurement goes on.
    """
    names: dict[str, str] = {}
    for path in data.validation:
        name = Path(path).stem
        if name in names:
            raise UserError(
                f"data.validation has two sources named {name!r} ({names[name]}, {path}): rename one"
            )
        names[name] = path
    return {
        name: prepare(
            path,
            encode,
            max_length=data.max_length,
            overlong="drop" if data.overlong == "error" else data.overlong,
            cache_dir=cache_dir,
            settings={**settings, "thoughts": data.thoughts},
            on_error=data.on_error,
        )
        for name, path in names.items()
    }
