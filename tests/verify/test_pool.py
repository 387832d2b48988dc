"""The pool: never more at once than it has workers, never more waiting than it has room for."""

import threading
import time
from concurrent.futures import CancelledError, Future

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.verify.pool import Pool
from gemma4_jax.verify.sandbox import Limits, Outcome, Sandbox


def test_programs_from_several_threads_do_not_mix() -> None:
    box = Sandbox(isolation="weak")
    with Pool(workers=3) as pool:
        futures = [pool.submit(box.run, f"print({n} + int(input()))", str(n)) for n in range(12)]
        assert [f.result().stdout for f in futures] == [f"{2 * n}\n" for n in range(12)]


def test_submitting_waits_for_room() -> None:
    gate, running, submitted = threading.Semaphore(0), [], []

    def work(n: int) -> int:
        running.append(n)
        gate.acquire()
        return n

    with Pool(workers=2) as pool:

        def submit_all() -> None:
            for n in range(6):
                submitted.append(pool.submit(work, n))

        thread = threading.Thread(target=submit_all)
        thread.start()
        _until(lambda: len(submitted) == 4 and len(running) == 2)
        time.sleep(0.05)  # the fifth would have come by now
        assert (len(submitted), sorted(running)) == (4, [0, 1])
        gate.release()
        _until(lambda: len(submitted) == 5)
        gate.release(5)
        thread.join()
        assert [f.result() for f in submitted] == list(range(6))


def test_an_error_is_its_own_futures() -> None:
    with Pool(workers=1) as pool:
        bad, good = pool.submit(int, "x"), pool.submit(int, "5")
    assert good.result() == 5
    with pytest.raises(ValueError):
        bad.result()


def test_an_interrupt_kills_what_runs_and_drops_what_waits() -> None:
    box = Sandbox(isolation="weak", limits=Limits(seconds=300.0))
    futures: list[Future[Outcome]] = []
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Pool(workers=1) as pool:
        futures += [pool.submit(box.run, "while True: pass") for _ in range(2)]
        _until(futures[0].running)
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 60
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=0)


def test_a_pool_of_none() -> None:
    with pytest.raises(UserError, match="at least 1 worker, got 0"):
        Pool(workers=0)


def _until(holds: object) -> None:
    deadline = time.monotonic() + 60
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)
