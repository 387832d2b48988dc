"""Strings in, strings out: the sampler that everything else uses.

Here: prompts of any kind to completions in order, batching, stop strings, streaming. Not here: requests
that come and go while others run, and sharing of memory between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemma4_jax.build import DTYPES, Model
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.cache import COMPRESSIONS, Compression
from gemma4_jax.model.cache_precision import held_dtype
from gemma4_jax.sample import programs
from gemma4_jax.sample.prompts import Prompt, as_list
from gemma4_jax.sample.requests import Options, Whole
from gemma4_jax.sample.row import Completion, Row, blocked_ids, rows_for
from gemma4_jax.sharding import mesh_of

# Where the host has a say in when a row ends, it has to look in more often: rows run on until it does.
_STEPS_BETWEEN_LOOKS = 8


class TextStream(Iterator[str]):
    """One prompt's text as it comes. `completion` is None until the stream has ended."""

    def __init__(self, row: Row, pieces: Iterator[tuple[Row, str]]) -> None:
        self._row, self._pieces = row, pieces
        self.completion: Completion | None = None

    def __next__(self) -> str:
        for _, piece in self._pieces:
            if piece:
                return piece
        self.completion = self._row.completion()
        raise StopIteration


class Sampler:
    """Continues prompts with a model.

    cache_compression: how k_eq_v layers are remembered (`model/cache.py`). The default is the smallest, and on
    CPU the fastest up to some 8 Ki positions (24 CPU-ms a token against 28 and 26 for the others at 768;
    59 against 53 and 48 at 16 Ki: there a larger cache buys time). cache_dtype: of keys and values, by
    default the model's compute dtype. prefill_chunk: most prompt tokens one program call takes.
    max_batch: most prompts that run together.

    Where the model's parameters lie over a mesh, so does all of decoding: rows over `data`, `fsdp` and
    `expert`, heads over `tensor`, the positions of full layers over `seq`. On several processes each calls
    with the same prompts and gets the same completions.
    """

    def __init__(
        self,
        model: Model,
        *,
        cache_compression: Compression = "value",
        cache_dtype: Any = None,
        prefill_chunk: int = 512,
        max_batch: int = 32,
    ) -> None:
        if cache_compression not in COMPRESSIONS:
            raise unknown("cache compression", cache_compression, COMPRESSIONS)
        for name, value in (("prefill_chunk", prefill_chunk), ("max_batch", max_batch)):
            if not isinstance(value, int) or value <= 0:
                raise UserError(f"{name} must be a whole number above 0, got {value!r}")
        self.model = model
        self._params = jax.tree.map(jnp.asarray, model.params)
        self._mesh = mesh_of(self._params)
        self.cache_compression = cache_compression
        self._cache_dtype = held_dtype(cache_dtype or model.module.dtype, DTYPES)
        self._prefill_chunk = prefill_chunk
        self._max_batch = max_batch
        self._blocked = self._placed(blocked_ids(model))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: Whole = 64,
        *,
        on_text: Callable[[int, str], object] | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Continue every prompt; completions in the prompts' order.

        Args:
          prompts: raw text (control tokens count, `<bos>` is put first if missing), message lists (go
            through the chat format) or token ids (go in as they are): one of these, or a list of them.
          on_text: called with a prompt's index and each new piece of its text.
          max_new_tokens, options: fields of `requests.Options`.

        Raises:
          UserError: bad input, or a model whose numbers are not finite.
        """
        asked = Options(max_new_tokens=max_new_tokens, **options)
        rows, plan = self._prepare(as_list(prompts), asked)
        host_decides = bool(asked.stop_strings) or on_text is not None
        steps = _STEPS_BETWEEN_LOOKS if host_decides else programs.DISPATCH_STEPS
        # Prompts of like length run together: chunks and caches are as long as the longest needs.
        # Constrained rows go step by step; the others need not.
        order = sorted(
            rows,
            key=lambda row: (
                row.matcher is not None,
                len(row.request.prompt),
                row.request.max_new_tokens,
            ),
        )
        for start in range(0, len(order), self._max_batch):
            for row, piece in self._run(order[start : start + self._max_batch], plan, steps):
                if on_text is not None and piece:
                    on_text(row.request.index, piece)
        return [row.completion() for row in rows]

    def stream(self, prompt: Prompt, **options: Any) -> TextStream:
        """One prompt's text as it comes; options as for `generate` (`requests.Options`)."""
        rows, plan = self._prepare([prompt], Options(**options))
        return TextStream(rows[0], self._run(rows, plan, steps=1))

    def _prepare(
        self, prompts: Sequence[Prompt], options: Options
    ) -> tuple[list[Row], programs.Plan]:
        rows = rows_for(self.model, prompts, options)
        stop_ids = rows[0].stop_ids if rows else ()
        blocked = self._blocked
        if rows and rows[0].forbidden:
            blocked = self._placed(blocked_ids(self.model, rows[0].forbidden))
        # A multiple of 8 entries: the number of stop ids must not decide which program runs.
        padded = [*stop_ids, *(-1,) * (-len(stop_ids) % 8 or 8 * (not stop_ids))]
        plan = programs.Plan(
            compression=self.cache_compression,
            cache_dtype=self._cache_dtype,
            prefill_chunk=self._prefill_chunk,
            stop_ids=self._placed(np.array(padded, np.int32)),
            blocked=blocked,
            mesh=self._mesh,
        )
        return rows, plan

    def _placed(self, values: np.ndarray) -> jax.Array:
        """Where the parameters are, whole on every device."""
        if self._mesh is None:
            return jnp.asarray(values)
        return jax.device_put(values, NamedSharding(self._mesh, PartitionSpec()))

    def dispatches(self, prompts: Sequence[Prompt], **options: Any) -> Iterator[programs.Dispatch]:
        """The bare token arrays of one batch, a program call at a time; options as for `generate`.

        No text and no stop strings: for measuring, and for callers that do their own bookkeeping.
        """
        rows, plan = self._prepare(prompts, Options(**options))
        asked = [row.request for row in rows]
        matchers = [row.matcher for row in rows]
        return programs.run(
            self.model.module, self._params, plan, asked, programs.DISPATCH_STEPS, matchers
        )

    def _run(
        self, rows: Sequence[Row], plan: programs.Plan, steps: int
    ) -> Iterator[tuple[Row, str]]:
        """Run a batch to its end; yields each row with its new text after every program call."""
        asked = [row.request for row in rows]
        matchers = [row.matcher for row in rows]
        dispatches = programs.run(self.model.module, self._params, plan, asked, steps, matchers)
        keep = None
        while True:
            try:
                chosen = dispatches.send(keep)
            except StopIteration:
                return
            for column, row in enumerate(rows):
                yield row, row.push(chosen.of_row(column))
            keep = np.array([not row.finish_reason for row in rows])
