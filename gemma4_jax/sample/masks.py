"""The masks of a batch: what every row's constraint allows next, computed by threads.

Letters: B batch, W words of 32 ids.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Int, Int32

from gemma4_jax.errors import UserError
from gemma4_jax.sample.matcher import has_bit
from gemma4_jax.sample.row import Watcher

_MOST_THREADS = 16


class BatchMasks:
    """The matchers of a batch's rows, None for rows without a constraint, and their next masks.

    rows: B, padding included. vocab_size: of the model.
    """

    def __init__(self, matchers: Sequence[Watcher | None], rows: int, vocab_size: int) -> None:
        self._matchers = [*matchers, *[None] * (rows - len(matchers))]
        self._words = -(-vocab_size // 32)

    def next(
        self, tokens: Int[np.ndarray, " B"] | None, going: Bool[np.ndarray, " B"]
    ) -> Int32[np.ndarray, "B W"]:
        """Take what was chosen in rows that go on, and say what may follow: bits as in `Matcher.mask`.

        tokens: None before the first ones. Rows that are over, or have no constraint, may have anything.
        """
        result = np.full((len(self._matchers), self._words), -1, np.int32)

        def fill(row: int) -> None:
            matcher = self._matchers[row]
            assert matcher is not None
            if tokens is not None:
                matcher.push(int(tokens[row]))
            result[row] = matcher.mask()

        rows = [
            row
            for row, matcher in enumerate(self._matchers)
            if matcher is not None and going[row] and not matcher.finished
        ]
        if len(rows) > 1:
            list(_threads().map(fill, rows))
        else:
            for row in rows:
                fill(row)
        return result


def masks_of(
    matchers: Sequence[Watcher | None], vocab_size: int
) -> tuple[Int32[np.ndarray, "B W"], dict[int, UserError]]:
    """What each row may choose next, and what is wrong with those that may choose nothing.

    Rows without a matcher, and those with something wrong, may have anything.
    """
    result = np.full((len(matchers), -(-vocab_size // 32)), -1, np.int32)
    wrong: dict[int, UserError] = {}

    def fill(row: int) -> None:
        matcher = matchers[row]
        assert matcher is not None
        try:
            result[row] = matcher.mask()
        except UserError as error:
            wrong[row] = error

    list(_threads().map(fill, [row for row, matcher in enumerate(matchers) if matcher is not None]))
    return result, wrong


def masks_along(
    matchers: Sequence[Watcher | None],
    drafts: Int[np.ndarray, "R m"],
    given: Int[np.ndarray, " R"],
    length: int,
    vocab_size: int,
) -> tuple[Int32[np.ndarray, "R k W"], Int[np.ndarray, " R"], dict[int, UserError]]:
    """What each row may choose before each of its drafts and behind the last, k = length + 1.

    drafts: a row's are its first given[r]. Returns also how many of them its constraint allows (the others need
    not be read), and what is wrong with rows that may choose nothing at all.
    """
    result = np.full((len(matchers), length + 1, -(-vocab_size // 32)), -1, np.int32)
    allowed = np.array(given)
    wrong: dict[int, UserError] = {}

    def fill(row: int) -> None:
        matcher = matchers[row]
        assert matcher is not None
        allowed[row] = count = 0
        try:
            trial = matcher.copy()
            result[row, 0] = trial.mask()
        except UserError as error:
            wrong[row] = error
            return
        try:
            for draft in drafts[row, : given[row]].tolist():
                if not has_bit(result[row, count], draft):
                    break
                trial.push(draft)
                if not trial.finished:
                    result[row, count + 1] = trial.mask()
                count += 1
                if trial.finished:
                    break
        except (
            UserError
        ):  # nothing may follow this draft: if it comes all the same, the next round says so
            pass
        allowed[row] = count

    list(_threads().map(fill, [row for row, matcher in enumerate(matchers) if matcher is not None]))
    return result, allowed, wrong


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads of the process: the library's work holds no lock of the interpreter."""
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "masks")
