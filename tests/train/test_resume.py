"""Kill -9 at any moment, then the same command: the result is that of an undisturbed run, bit for bit.

Real processes. They share a compilation cache, so that most of their time is training.
"""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from .conftest import sum_pairs, sum_rows, write_rows
from .helpers import start_run

pytestmark = pytest.mark.slow

STEPS = 60
TIMEOUT = 600


class Drill:
    """One command line, run into different work folders."""

    def __init__(self, repository: Path, folder: Path, *words: str):
        self.repository, self.folder, self.words = repository, folder, words

    def start(self, name: str) -> subprocess.Popen[str]:
        return start_run(self.repository, self.folder / name, self.words)

    def finish(self, name: str) -> str:
        process = self.start(name)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, output
        return output

    def interrupt(self, name: str, number: int, when: Callable[[Path], bool]) -> tuple[int, str]:
        """Send a signal as soon as `when(work folder)`; exit code (0: it was done before) and output."""
        process = self.start(name)
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None and not when(self.folder / name):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output

    def final_state(self, name: str) -> dict[str, np.ndarray]:
        """Every array and the data position of the last checkpoint, by path."""
        last = self.folder / name / "checkpoints" / str(STEPS)
        state = ocp.StandardCheckpointer().restore(last / "state")
        leaves = jax.tree_util.tree_leaves_with_path(state)
        found = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
        position = (last / "data" / "metadata").read_text()
        assert json.loads(position) == {"batches": STEPS}
        return {**found, "data": np.asarray(position)}


def at_step(step: int, delay: float = 0.0) -> Callable[[Path], bool]:
    """Condition: `step` is in the metrics file (and a little more time has gone)."""

    def reached(work: Path) -> bool:
        log = work / "metrics.jsonl"
        if not log.exists() or f'"step": {step},' not in log.read_text():
            return False
        time.sleep(delay)
        return True

    return reached


def inside_a_save(earliest: int) -> Callable[[Path], bool]:
    """Condition: a checkpoint at or after a step is being written."""

    def saving(work: Path) -> bool:
        names = [path.name for path in (work / "checkpoints").glob("*.orbax-checkpoint-tmp*")]
        return any(int(name.split(".")[0]) >= earliest for name in names)

    return saving


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert found[name].dtype == value.dtype


def command(task: str, model: Path, data: Path) -> list[str]:
    words = [f"train.{task}", "tiny", "--model.architecture", "", "--model.path", str(model)]
    words += ["--data.path", str(data), "--run.steps", str(STEPS), "--run.save-every", "4"]
    words += ["--run.log-every", "1", "--batch.accumulation", "2", "--run.samples", "0"]
    return words


def corrupt_newest(work: Path, chance: random.Random) -> None:
    """Change bytes in the middle of the largest file of the newest checkpoint, as a bad disk does."""
    steps = [int(path.name) for path in (work / "checkpoints").iterdir() if path.name.isdigit()]
    files = (work / "checkpoints" / str(max(steps)) / "state").rglob("*")
    largest = max((file for file in files if file.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    at = len(content) // 2 + chance.randrange(len(content) // 4)
    content[at : at + 16] = bytes(255 - byte for byte in content[at : at + 16])
    largest.write_bytes(content)


@pytest.fixture(scope="module")
def undisturbed(repository, model_folder, tmp_path_factory):
    """The words of a run of packed SFT, and the state that it ends in if nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_rows(folder / "rows.jsonl", sum_rows(40))
    words = *command("sft", model_folder, data), "--data.packing", "--data.max-length", "96"
    drill = Drill(repository, folder, *words)
    drill.finish("run")
    expected = drill.final_state("run")
    assert len(expected) > 30
    return words, expected


def test_twenty_interruptions_and_a_corrupt_checkpoint(repository, undisturbed, tmp_path):
    words, expected = undisturbed
    drill, work = Drill(repository, tmp_path, *words), tmp_path / "killed"
    chance = random.Random(time.time_ns())
    seed = chance.randrange(10**6)
    print(f"seed {seed}")
    chance.seed(seed)

    def interrupt(number: int, moment: Callable[[Path], bool]) -> bool:
        code, output = drill.interrupt("killed", number, moment)
        # -SIGTERM: it came before the run listened.
        ends = {signal.SIGKILL: (-9,), signal.SIGTERM: (128 + signal.SIGTERM, -signal.SIGTERM)}
        assert code in (0, *ends[number]), output
        return code != 0

    done = interrupt(signal.SIGKILL, lambda work: (time.sleep(chance.uniform(0, 4)), True)[1])
    # Twenty in all; every fourth inside a save, every fifth a SIGTERM, the rest at a random moment of a step.
    for number in range(1, 20):
        step = 1 + 2 * number + chance.randrange(2)
        if number % 4 == 0:
            done += interrupt(signal.SIGKILL, inside_a_save(step))
        elif number % 5 == 0:
            done += interrupt(signal.SIGTERM, at_step(step, chance.uniform(0, 0.05)))
        else:
            done += interrupt(signal.SIGKILL, at_step(step, chance.uniform(0, 0.05)))
        if number == 12:
            corrupt_newest(work, chance)
    assert done >= 18
    assert list((work / "checkpoints").glob("damaged-*"))

    drill.finish("killed")
    assert_same(drill.final_state("killed"), expected)
    steps = [line.split(",")[0] for line in (work / "metrics.jsonl").open()]
    assert steps == [f'{{"step": {step}' for step in range(1, STEPS + 1)]


def test_a_full_disk_ends_a_run_and_the_same_command_goes_on(repository, undisturbed, small_disk):
    words, expected = undisturbed
    disk = small_disk(64)
    drill = Drill(repository, disk, *words)
    drill.interrupt("filled", signal.SIGKILL, at_step(20))
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 2 * 2**20)))
    process = drill.start("filled")
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2, output
    # Not always the last line: tensorstore's and Python's own complaints may follow at the very end.
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "the last checkpoint could not be written" in error and "make room there" in error
    assert "exception was never retrieved" not in output
    filler.unlink()
    drill.finish("filled")
    assert_same(drill.final_state("filled"), expected)


def test_dpo_survives_a_kill_in_the_reference_pass_and_one_later(
    repository, model_folder, tmp_path
):
    data = write_rows(tmp_path / "pairs.jsonl", sum_pairs(24))
    drill = Drill(repository, tmp_path, *command("dpo", model_folder, data))
    drill.finish("undisturbed")
    expected = drill.final_state("undisturbed")

    def in_reference_pass(work: Path) -> bool:
        return any(file.stat().st_size for file in (work / "reference").glob("*.f32"))

    drill.interrupt("killed", signal.SIGKILL, in_reference_pass)
    drill.interrupt("killed", signal.SIGKILL, at_step(30, 0.01))
    code, output = drill.interrupt("killed", signal.SIGINT, at_step(45))
    assert code in (0, 128 + signal.SIGINT), output
    drill.finish("killed")
    assert_same(drill.final_state("killed"), expected)
