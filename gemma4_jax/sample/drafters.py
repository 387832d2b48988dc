"""Who drafts: a small model that reads the target's memory, or the text itself, searched for repetitions.

What a drafter says changes how fast tokens come, never which (`speculation.py`). How much it may say follows
from how often it was right: a draft behind others counts only if all of them are accepted.
Here: the host's side. Not here: the model (`model/drafter.py`), verification.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma4_jax.build import Model
from gemma4_jax.checkpoint import load_drafter
from gemma4_jax.errors import UserError
from gemma4_jax.model.drafter import DraftModel
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import engine_programs as programs
from gemma4_jax.sample.slots import Pool, Rows

# Numbers of drafts that there are programs for: the target then reads 2, 4 or 8 tokens of a row.
LENGTHS = (1, 3, 7)
# A draft is worth making if it is accepted at least so often.
_WORTH = 0.25
# Of what was known before a round; and where nothing is: as if 2 drafts had been tried, and 1.5 right.
_MEMORY, _TRIED, _RIGHT = 0.9, 2.0, 1.5
# Tokens that must be repeated before what followed them is a draft; more are tried first.
_LONGEST, _SHORTEST = 3, 2


@dataclass
class History:
    """One request: all its tokens (the engine's own list, which grows), and how drafts for it have fared."""

    tokens: list[int]
    _tried: float = _TRIED
    _right: float = _RIGHT
    # By the hash of some tokens in a row: where what followed them the last time is. Two that share a hash
    # make a wrong draft, no more; so 128 Ki tokens take 35 MB.
    _after: dict[int, int] = field(default_factory=dict)
    _known: int = 1  # tokens whose predecessors are in `_after`

    def worth(self, lengths: Sequence[int]) -> int:
        """The largest of these numbers of drafts whose last is still worth making; at least the first."""
        share = self._right / self._tried
        return max((n for n in lengths if share**n >= _WORTH), default=lengths[0])

    def learn(self, given: int, accepted: int) -> None:
        """What became of a round's drafts. Those behind the first wrong one have not been tried."""
        if given:
            self._tried = _MEMORY * self._tried + min(accepted + 1, given)
            self._right = _MEMORY * self._right + accepted

    def repeated(self, most: int) -> list[int]:
        """What followed the last time that the latest tokens stood somewhere; [] if they are new."""
        tokens = self.tokens
        for end in range(self._known, len(tokens)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[hash(tuple(tokens[end - size : end]))] = end
        self._known = max(self._known, len(tokens))
        for size in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
            start = self._after.get(hash(tuple(tokens[len(tokens) - size :])))
            if start is not None:
                # What is copied may run into the copy: a short pattern goes on and on.
                period = len(tokens) - start
                return [tokens[start + i % period] for i in range(most)]
        return []


@dataclass(frozen=True)
class Target:
    """Rows that are to go on, and the model that continues them."""

    module: Transformer
    params: dict[str, Any]
    pool: Pool
    state: Rows
    table: np.ndarray


@dataclass(frozen=True)
class Drafts:
    """tokens: int32 [R, m], of which a row's are its first given[r]; none has more than `length`."""

    tokens: Any
    given: np.ndarray
    length: int


@runtime_checkable
class Drafter(Protocol):
    """Makes drafts for the rows of an engine.

    lengths: numbers of drafts a round may have, rising. reads_hidden: needs `Rows.hidden`.
    """

    @property
    def lengths(self) -> tuple[int, ...]: ...

    @property
    def reads_hidden(self) -> bool: ...

    def placed(self, mesh: Mesh | None) -> Drafter:
        """The same, for a target that lies over a mesh; None: on one device."""

    def propose(
        self, histories: Sequence[History | None], most: np.ndarray, target: Target
    ) -> Drafts | None:
        """At most most[r] drafts of each row; None if there are none at all."""


@dataclass(frozen=True)
class Lookup:
    """Prompt lookup: what followed the last time. Needs no weights; good where answers repeat their prompts."""

    lengths: tuple[int, ...] = LENGTHS
    reads_hidden: bool = False

    def placed(self, mesh: Mesh | None) -> Lookup:
        """Itself: it is on the host."""
        return self

    def propose(
        self, histories: Sequence[History | None], most: np.ndarray, target: Target
    ) -> Drafts | None:
        """Of rows whose last tokens have been there before."""
        tokens = np.zeros((len(histories), self.lengths[-1]), np.int32)
        given = np.zeros(len(histories), np.int32)
        for row, history in enumerate(histories):
            if history is not None and most[row] > 0:
                found = history.repeated(min(history.worth(self.lengths), int(most[row])))
                tokens[row, : len(found)], given[row] = found, len(found)
        if not given.any():
            return None
        return Drafts(tokens, given, _enough(self.lengths, given))


@dataclass(frozen=True)
class ModelDrafter:
    """A drafter's model; it always has something to say."""

    model: DraftModel
    lengths: tuple[int, ...] = LENGTHS
    reads_hidden: bool = True

    def placed(self, mesh: Mesh | None) -> ModelDrafter:
        """Its parameters whole on every device of the mesh: they are few beside the target's."""
        if mesh is None:
            return self
        params = jax.device_put(self.model.params, NamedSharding(mesh, PartitionSpec()))
        return dataclasses.replace(self, model=dataclasses.replace(self.model, params=params))

    def propose(
        self, histories: Sequence[History | None], most: np.ndarray, target: Target
    ) -> Drafts:
        """Of all rows; they stay on the device."""
        worth = [0 if history is None else history.worth(self.lengths) for history in histories]
        given = np.minimum(worth, most).astype(np.int32)
        length = _enough(self.lengths, given)
        tokens = programs.draft_rows(
            target.module, self.model.module, target.params, self.model.params, target.pool, target.state,
            target.table, np.int32(length), room=self.lengths[-1],
        )  # fmt: skip
        return Drafts(tokens, given, length)


def _enough(lengths: Sequence[int], given: np.ndarray) -> int:
    return next(n for n in lengths if n >= given.max(initial=0))


def open_drafter(name: str | Path, model: Model) -> Drafter:
    """ "ngram": prompt lookup; anything else: the folder of a drafter for `model`. Raises UserError."""
    if str(name) == "ngram":
        return Lookup()
    if not Path(name).is_dir():
        raise UserError(f"no drafter {str(name)!r}: give the folder of one, or ngram")
    return ModelDrafter(load_drafter(name, model))
