"""What an engine has on its device, and the calls that change it.

Pages of full layers, rings of the rows that are read and of those that decode, snapshots of rings: all are
donated to the calls that change them, so they live here and nowhere else. Arguments are of the host. Where a
mesh cuts rows, those of every call are of all its parts in order, as many of each. Not here: who has which row
and pages (`scheduler.py`), the functions themselves (`slots.py`, `engine_memory.py`, `speculation.py`).

Letters: r rows of a call, R rows that decode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gemma4_jax.build import Model
from gemma4_jax.model.cache import NO_PAGE, Compression
from gemma4_jax.sample import beam_programs
from gemma4_jax.sample import engine_programs as programs
from gemma4_jax.sample.drafters import Drafter, Drafts, Target
from gemma4_jax.sample.penalties import penalties_of
from gemma4_jax.sample.programs import Dispatch
from gemma4_jax.sample.requests import Request
from gemma4_jax.sample.row import blocked_ids
from gemma4_jax.sample.sampling import CANDIDATES, Filters
from gemma4_jax.sample.slots import Rows
from gemma4_jax.sharding import over

# Ids that may end a row; every program has room for so many.
STOP_IDS = 16


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What some rows are to do, in the order of a call's rows: None and nothing for those without a request."""

    requests: Sequence[Request | None]
    pages: Sequence[Sequence[int]]
    outputs: Sequence[Sequence[int]]  # tokens chosen so far
    stop_ids: Sequence[Sequence[int]]

    @property
    def filters(self) -> Filters:
        """What a program must be able to do for them."""
        return programs.filters_of([request for request in self.requests if request is not None])


@dataclass(frozen=True, kw_only=True)
class Read:
    """A chunk that has been read: what first tokens are chosen from."""

    table: np.ndarray  # [r, M]
    places: np.ndarray  # [r]
    stream: Any  # [r, 1, D]
    token: Any  # [r, 1]


class Device:
    """Memory and programs of an engine.

    parts: in how many the mesh cuts rows. pages: how many a part has, and positions of each. context: most
    positions of a row. max_slots: most rows of a part. prefill_tokens: most prompt tokens of a part in a call.
    steps: tokens of a row in a call. snapshots: of a part. layout: dtype and compression of keys and values.
    """

    def __init__(
        self,
        model: Model,
        mesh: Mesh | None,
        *,
        parts: int,
        pages: tuple[int, int],
        context: int,
        max_slots: int,
        prefill_tokens: int,
        steps: int,
        snapshots: int,
        layout: tuple[Any, Compression],
        drafter: Drafter | None,
    ) -> None:
        sizes = programs.prefill_sizes(prefill_tokens, min(max_slots, programs.MOST_ROWS))
        self.parts, self.sizes = parts, [(parts * rows, tokens) for rows, tokens in sizes]
        self.places = max(rows for rows, _ in self.sizes)
        self._module, self._config, self._mesh = model.module, model.config, mesh
        self._params = jax.tree.map(jnp.asarray, model.params)
        self._blocked = jnp.asarray(blocked_ids(model))
        self._width, self._steps, self._drafter = -(-context // pages[1]), steps, drafter
        drafts = 0 if drafter is None else drafter.lengths[-1]
        hidden = None
        if drafter is not None and drafter.reads_hidden:
            hidden = model.config.d_model, model.module.dtype

        def rings(rows: int) -> Any:
            return programs.empty_rings(model.config, rows, context, pages[1], *layout, drafts)

        with over(mesh):
            self._pool = programs.empty_pool(model.config, (parts * pages[0], pages[1]), *layout)
            self._reading, self._saved = rings(self.places), rings(parts * snapshots)
            self._state = programs.empty_rows(rings(parts), parts, hidden)
        if mesh is None:
            self._pin()

    # Prompts

    def recall(self, snapshot: int, place: int) -> None:
        """Rings of a row that is read, from a snapshot."""
        self._reading = programs.load(
            self._reading, self._saved, np.int32(snapshot), np.int32(place)
        )

    def save_read(self, place: int, snapshot: int) -> None:
        """Rings of a row that is read, into a snapshot."""
        self._saved = programs.load(self._saved, self._reading, np.int32(place), np.int32(snapshot))

    def save_decoding(self, slot: int, snapshot: int) -> None:
        """Rings of a row that decodes, into a snapshot."""
        rings = self._state.rings
        self._saved = programs.load(self._saved, rings, np.int32(slot), np.int32(snapshot))

    def read(
        self,
        size: int,
        pages: Sequence[Sequence[int]],
        places: Sequence[int | None],
        held: Sequence[int],
        parts: Sequence[Sequence[int]],
    ) -> Read:
        """Append to each place its part of a prompt, behind the tokens it holds; None: a row of padding.

        There is a program for so many rows of `size` tokens (`sizes`).
        """
        tokens, count = np.zeros((len(places), size), np.int32), np.zeros(len(places), np.int32)
        # A place beyond the last is padding.
        at = np.array([self.places if place is None else place for place in places], np.int32)
        for i, part in enumerate(parts):
            tokens[i, : len(part)], count[i] = part, len(part)
        table, behind = self._table(pages, len(places)), np.array(held, np.int32)
        self._pool, self._reading, stream, token = programs.prefill(
            self._module, self._params, self._pool, self._reading, table, at, behind, tokens, count
        )
        return Read(table=table, places=at, stream=stream, token=token)

    def first(
        self, read: Read, asked: Asked, held: Sequence[int], mask: np.ndarray | None
    ) -> tuple[Dispatch, jax.Array]:
        """The next token of every row of a chunk that has a request; and hidden states [r, D] behind them."""
        rows = len(read.places)
        lengths, (generated, limit) = np.array(held, np.int32), np.zeros((2, rows), np.int32)
        for i, request in enumerate(asked.requests):
            if request is not None:
                generated[i], limit[i] = len(asked.outputs[i]), request.max_new_tokens
        penalties = penalties_of(asked.requests, asked.outputs, self._config.vocab_size)
        chosen, hidden = programs.first(
            self._module, self._params, self._pool, self._reading, read.table, read.places, lengths,
            read.stream, read.token, programs.settings_of(asked.requests, penalties), generated, limit,
            _padded(asked.stop_ids), self._blocked, filters=asked.filters, mask=mask,
        )  # fmt: skip
        return Dispatch.of(chosen), hidden

    def enter(
        self,
        slot: int,
        place: int,
        held: int,
        request: Request,
        output: Sequence[int],
        hidden: jax.Array,
        at: int,
    ) -> None:
        """A row that was read decodes from now on; output: with its first token, chosen by hidden[at]."""
        vocab_size = self._config.vocab_size
        if request.penalised and not self.penalised:
            self._state = programs.with_penalties(self._state, vocab_size)
        penalties = penalties_of([request], [output], vocab_size, always=self.penalised)
        self._state = programs.enter(
            self._state, np.int32(slot), self._reading, np.int32(place), np.int32(held),
            np.int32(output[-1]), np.int32(len(output)), np.int32(request.max_new_tokens),
            programs.settings_of([request], penalties), *self._drafted_from(hidden, at),
        )  # fmt: skip

    # Rows that decode

    @property
    def rows(self) -> int:
        """R."""
        rows: int = self._state.token.shape[0]
        return rows

    @property
    def penalised(self) -> bool:
        """Whether there is room for penalties."""
        return self._state.settings.penalties is not None

    def without_penalties(self) -> None:
        """Nobody asks for them any more."""
        self._state = programs.without_penalties(self._state)

    def go_on(self, asked: Asked) -> Dispatch:
        """Up to `steps` tokens of every row that has a request."""
        self._pool, self._state, chosen = programs.continue_rows(
            *self._all(asked), np.int32(self._steps), _padded(asked.stop_ids), self._blocked,
            filters=asked.filters, room=self._steps,
        )  # fmt: skip
        return Dispatch.of(chosen)

    def go_on_among(self, asked: Asked, masks: Callable[[], np.ndarray | None]) -> Dispatch:
        """One token of every row, among those that masks() allows; it is called while the device computes."""
        self._pool, self._state, hidden = programs.advance_rows(*self._all(asked))
        self._state, chosen = programs.choose_rows(
            self._module, self._params, self._state, hidden, masks(), _padded(asked.stop_ids),
            self._blocked, filters=asked.filters,
        )  # fmt: skip
        return Dispatch.of(chosen)

    def verify(self, asked: Asked, drafts: Drafts, masks: np.ndarray | None = None) -> Dispatch:
        """As many tokens of every row as its drafts were right, and one more; masks: of `masks_along`."""
        self._pool, self._state, chosen = programs.verify_rows(
            *self._all(asked), drafts.tokens, drafts.given, _padded(asked.stop_ids), self._blocked,
            filters=asked.filters, length=drafts.length, mask=masks,
        )  # fmt: skip
        return Dispatch.of(chosen)

    def target(self, pages: Sequence[Sequence[int]]) -> Target:
        """What a drafter reads."""
        table = self._table(pages, self.rows)
        return Target(self._module, self._params, self._pool, self._state, table)

    def resize(self, source: Sequence[int | None]) -> None:
        """As many rows as `source` has, which says what each was before, in the same part; None: new."""
        rows = np.array([0 if row is None else row for row in source], np.int32)
        self._state = programs.resize(
            self._state, rows, np.array([row is not None for row in source])
        )

    # Beams: rows of their own over the same pages, which whoever searches keeps; of every part as many

    def fork(self, place: int, held: int, beams: int) -> Rows:
        """`beams` rows of each part; those of a place's part begin as what was read there: `held` tokens."""
        rows: Rows = beam_programs.fork(
            self._reading, np.int32(place), np.int32(held), beams, self.parts
        )
        return rows

    def follow(
        self, rows: Rows, source: np.ndarray, to: np.ndarray, tokens: np.ndarray, held: int
    ) -> Rows:
        """`beam_slots.follow`."""
        after: Rows = beam_programs.follow(rows, source, to, tokens, np.int32(held))
        return after

    def copy_pages(self, source: np.ndarray, to: np.ndarray) -> None:
        """`engine_memory.copy_pages`."""
        self._pool = beam_programs.copy_pages(self._pool, source, to)

    def go_on_beams(
        self, rows: Rows, pages: Sequence[Sequence[int]], going: np.ndarray
    ) -> tuple[Rows, jax.Array]:
        """Every row that goes on reads its token; and hidden states [k, 1, D] behind what comes next."""
        table = self._table(pages, len(pages))
        self._pool, rows, hidden = programs.advance_rows(
            self._module, self._params, self._pool, rows, table, going
        )
        return rows, hidden

    def likeliest(self, hidden: jax.Array, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest ids after each row, and their log-probabilities: [k, count]."""
        found = beam_programs.likeliest(self._module, self._params, hidden, self._blocked, count)
        ids, logprobs = jax.device_get(found)
        return ids, logprobs

    def _all(self, asked: Asked) -> tuple[Any, ...]:
        keep = np.array([request is not None for request in asked.requests])
        table = self._table(asked.pages, self.rows)
        return self._module, self._params, self._pool, self._state, table, keep

    def _drafted_from(self, hidden: jax.Array, at: int) -> tuple[Any, ...]:
        return () if self._state.hidden is None else (hidden, np.int32(at))

    def _table(self, pages: Sequence[Sequence[int]], rows: int) -> np.ndarray:
        table = np.full((rows, self._width), NO_PAGE, np.int32)
        for i, mine in enumerate(pages):
            table[i, : len(mine)] = mine
        return table

    def _pin(self) -> None:
        """Memory on the device to which parameters are pinned, if they are.

        Calls return it pinned then, and jax would compile everything again for what is.
        """
        pinned = [leaf for leaf in jax.tree.leaves(self._params) if leaf.committed]
        if pinned:
            memory = self._pool, self._reading, self._saved, self._state
            memory = jax.device_put(memory, pinned[0].sharding)
            self._pool, self._reading, self._saved, self._state = memory

    # Compiling everything, by running it on nothing

    def warm_up(self, most_rows: int) -> None:
        """For 1, 2, 4, ... rows of each part, up to `most_rows` in all; ends with one."""
        filters = Filters(), programs.filters_for_top_k(CANDIDATES[0])
        programs.forget_keys()  # those of an engine elsewhere: what makes them is compiled for this mesh too
        hidden: dict[int, jax.Array] = {}  # by rows of a chunk
        with over(self._mesh):
            for rows, size in self.sizes:
                nobody = [()] * rows
                read = self.read(size, nobody, [None] * rows, [0] * rows, nobody)
                for each in filters:
                    nothing = programs.settings_of([None] * rows)
                    zeros = np.zeros(rows, np.int32)
                    _, hidden[rows] = programs.first(
                        self._module, self._params, self._pool, self._reading, read.table, read.places, zeros,
                        read.stream, read.token, nothing, zeros, zeros, _padded([()] * rows), self._blocked,
                        filters=each, mask=None,
                    )  # fmt: skip
            self.recall(0, 0)
            self.save_read(0, 0)
            rows = self.parts
            while rows <= most_rows:
                self.resize([None] * rows)
                for each in filters:
                    self._warm_rows(rows, each, hidden)
                rows *= 2
            while self.rows > self.parts:
                self.resize([None] * (self.rows // 2))

    def _warm_rows(self, rows: int, filters: Filters, hidden: Mapping[int, jax.Array]) -> None:
        asked = Asked(
            requests=[None] * rows, pages=[()] * rows, outputs=[()] * rows, stop_ids=[()] * rows
        )
        ends, zero = _padded(asked.stop_ids), np.int32(0)
        self._pool, self._state, _ = programs.continue_rows(
            *self._all(asked), zero, ends, self._blocked, filters=filters, room=self._steps
        )
        if self._drafter is not None:
            none = np.zeros(rows, np.int32)
            made = self._drafter.propose([None] * rows, none, self.target(asked.pages))
            # A model's stay on the device, where they lie over a mesh as others do not.
            drafts = (
                np.zeros((rows, self._drafter.lengths[-1]), np.int32)
                if made is None
                else made.tokens
            )
            for length in self._drafter.lengths:
                self._pool, self._state, _ = programs.verify_rows(
                    *self._all(asked), drafts, none, ends, self._blocked, filters=filters, length=length,
                    mask=None,
                )  # fmt: skip
        for behind in hidden.values():
            self._state = programs.enter(
                self._state, zero, self._reading, zero, zero, zero, zero, zero,
                programs.settings_of([None]), *self._drafted_from(behind, 0),
            )  # fmt: skip
        self.save_decoding(0, 0)


def _padded(stop_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """[r, STOP_IDS]; -1 matches nothing."""
    ids = np.full((len(stop_ids), STOP_IDS), -1, np.int32)
    for i, mine in enumerate(stop_ids):
        ids[i, : len(mine)] = mine
    return ids
