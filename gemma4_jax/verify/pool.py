"""Checks beside the work that makes what they check: a few threads, and a short queue.

    with Pool(workers=2) as pool:
        futures = [pool.submit(sandbox.run, program) for program in programs]
        outcomes = [future.result() for future in futures]

Threads are enough: the work is in the sandboxes' own processes. Not here: what is run, and in which order
results are wanted (`concurrent.futures.as_completed` has them as they come).
"""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from gemma4_jax.errors import UserError
from gemma4_jax.verify.process import STOP

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """Runs up to `workers` checks at once and holds as many that wait.

    Used as a context: its end waits for all. An exception in the block, Ctrl-C among them, drops what
    waits and kills the sandboxes that run; futures that had no result raise CancelledError.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UserError(f"a pool needs at least 1 worker, got {workers}")
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="verify")
        self._room = threading.Semaphore(2 * workers)
        self._stop = threading.Event()

    def submit(
        self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs
    ) -> Future[T]:
        """Have `function(*arguments, **keywords)` run in a worker.

        Blocks while all workers are busy and as many checks wait: whoever makes work faster than it is
        done is slowed down, instead of filling memory.
        """
        self._room.acquire()
        try:
            context = contextvars.copy_context()
            context.run(STOP.set, self._stop)
            future = self._executor.submit(lambda: context.run(function, *arguments, **keywords))
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._executor.shutdown()
        except BaseException:  # Ctrl-C while waiting
            self._abort()
            raise
        if kind is not None:
            self._abort()

    def _abort(self) -> None:
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)
