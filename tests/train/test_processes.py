"""Real processes train one model, and any number of them goes on where another number stopped.

Slow: each process imports jax and compiles.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.checkpoint.folders import read_tensors, write_tensors
from train import samples

from .conftest import sum_pairs, sum_rows, write_rows
from .helpers import assert_trees_close, start_run

pytestmark = pytest.mark.slow

STEPS, SAVE_EVERY = 36, 3
TIMEOUT = 600


class Team:
    """One command line, run by several processes on this machine, into one work folder."""

    def __init__(self, repository: Path, folder: Path, *words: str):
        self.repository, self.folder, self.words = repository, folder, words

    def start(self, name: str, count: int, *more: str) -> list[subprocess.Popen[str]]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        together: dict[str, str] = {}
        if count > 1:
            together["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
            together["JAX_NUM_PROCESSES"] = str(count)
        return [
            start_run(
                self.repository,
                self.folder / name,
                [*self.words, *more],
                **together,
                **({"JAX_PROCESS_ID": str(index)} if count > 1 else {}),
            )
            for index in range(count)
        ]

    def finish(self, processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
        """Exit codes and outputs."""
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
        return [process.returncode for process in processes], outputs

    def reach(self, name: str, step: int, processes: list[subprocess.Popen[str]]) -> None:
        """Wait until a step is in the log."""
        log = self.folder / name / "metrics.jsonl"
        deadline = time.monotonic() + TIMEOUT
        while not (log.exists() and f'"step": {step},' in log.read_text()):
            assert time.monotonic() < deadline
            ended = [
                process.communicate()[0] for process in processes if process.poll() is not None
            ]
            assert not ended, ended[0]
            time.sleep(0.01)

    def final_state(self, name: str):
        last = self.folder / name / "checkpoints" / str(STEPS)
        assert json.loads((last / "data" / "metadata").read_text()) == {"batches": STEPS}
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        checkpointer = ocp.StandardCheckpointer()
        about = checkpointer.metadata(last / "state").item_metadata.tree
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), about
        )
        return checkpointer.restore(last / "state", like)

    def losses(self, name: str) -> dict[int, float]:
        rows = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").open()]
        return {row["step"]: row["loss"] for row in rows}


def command(task: str, model: Path, data: Path) -> list[str]:
    words = [f"train.{task}", "tiny", "--model.architecture", "", "--model.path", str(model)]
    words += [
        "--data.path",
        str(data),
        "--run.steps",
        str(STEPS),
        "--run.save-every",
        str(SAVE_EVERY),
    ]
    words += ["--run.log-every", "1", "--run.samples", "0", "--mesh.fsdp", "-1"]
    # Adam divides by the root of squared gradients: a tiny eps makes large differences of rounding.
    words += ["--optim.peak-lr", "1e-3", "--optim.eps", "1e-4"]
    return [*words, "--batch.rows", "8", "--batch.accumulation", "2"]


def assert_same_run(team: Team, name: str, other: str) -> None:
    """The same rows at every step, each once, and the same parameters but for rounding."""
    found, expected = team.losses(name), team.losses(other)
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    states = team.final_state(name), team.final_state(other)
    assert_trees_close(states[0]["params"], states[1]["params"], 1e-5)


def kill_one(team: Team, name: str, processes: list[subprocess.Popen[str]], which: int) -> int:
    """SIGKILL to one: all others end within a minute and say why. Returns the newest whole checkpoint.

    The list of who is who has its name. Of the first one jax says no number, only that connections to it were
    closed: every process says at the start at whom all meet.
    """
    died = time.monotonic()
    processes[which].kill()
    codes, outputs = team.finish(processes)
    assert time.monotonic() - died < 60
    assert codes.pop(which) == -signal.SIGKILL and all(codes), codes
    named = rf"task {which}: .*, pid {processes[which].pid}\b"
    others = [output for number, output in enumerate(outputs) if number != which]
    assert any(re.search(named, output) for output in outputs), outputs
    said = rf"Task {which} heartbeat timeout|task:{which}\b|Connection|Socket closed|task {which} "
    for output in others:
        assert re.search(said, output), output[-3000:]
        assert which or re.search(rf"all meet at {named}", output), output[:3000]
    last = max(team.losses(name))
    # A save that was under way has left a folder with a longer name.
    folders = (team.folder / name / "checkpoints").iterdir()
    saved = [int(folder.name) for folder in folders if folder.name.isdecimal()]
    newest = max(saved)
    assert last - newest <= 2 * SAVE_EVERY, (last, saved)  # the last save may have been under way
    return newest


def test_any_number_goes_on_where_another_was_stopped_or_killed(repository, model_folder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", sum_rows(40))
    team = Team(repository, tmp_path, *command("sft", model_folder, data))
    asked = "--run.samples", "1"
    codes, outputs = team.finish(team.start("alone", 1, *asked))
    assert codes == [0], outputs

    two = team.start("together", 2)
    team.reach("together", 4, two)
    two[1].send_signal(signal.SIGTERM)  # one of them is told, all stop after the same step
    codes, outputs = team.finish(two)
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert "stopped by SIGTERM after step" in outputs[0], outputs[0]
    assert "fsdp 2" in outputs[0]

    one = team.start("together", 1)
    team.reach("together", 11, one)
    one[0].kill()
    team.finish(one)

    # Two of the four share each row.
    four = team.start("together", 4, "--mesh.seq", "2")
    team.reach("together", 18, four)
    newest = kill_one(team, "together", four, 3)

    two = team.start("together", 2)
    team.reach("together", 25, two)
    again = kill_one(team, "together", two, 0)  # the one at which the others meet

    codes, outputs = team.finish(team.start("together", 2, "--mesh.seq", "2", *asked))
    assert codes == [0] * 2, outputs
    assert f"step {again} of {STEPS}" in outputs[0] and newest <= again, outputs[0]
    assert_same_run(team, "together", "alone")
    together, alone = (
        samples.read(tmp_path / name / "samples.jsonl")[-1] for name in ("together", "alone")
    )
    assert together == alone and together.step == STEPS and together.texts[0]


def test_a_slice_that_one_process_cannot_read_ends_both_in_a_line(
    repository, model_folder, tmp_path
):
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    tensors = read_tensors(folder)
    table = tensors["model.embed_tokens.weight"].copy()
    table[:, -1] = np.nan  # a column of the second process's
    write_tensors(
        folder / "model.safetensors",
        tensors | {"model.embed_tokens.weight": table},
    )
    data = write_rows(tmp_path / "rows.jsonl", sum_rows(40))
    team = Team(repository, tmp_path, *command("sft", folder, data))
    codes, outputs = team.finish(team.start("run", 2))
    assert codes == [2, 2], outputs
    said = [re.findall("^error: .*", output, re.MULTILINE) for output in outputs]
    assert [len(lines) for lines in said] == [1, 1], outputs
    assert f"task 1 could not read its slices of {folder}; its own last line" in said[0][0]
    assert "embed_tokens.weight holds NaN or Inf; the checkpoint is broken" in said[1][0]


def test_pairs_with_a_precomputed_reference_adapters_and_an_export(
    repository, model_folder, tmp_path
):
    data = write_rows(tmp_path / "pairs.jsonl", sum_pairs(24))
    extra = "--lora.rank", "2", "--loss.reference", "precomputed", "--run.export-huggingface"
    extra += "--lora.base-quantization", "int8"  # each process quantises its slices
    team = Team(repository, tmp_path, *command("dpo", model_folder, data), *extra)
    for name, count in (("alone", 1), ("together", 2)):
        codes, outputs = team.finish(team.start(name, count))
        assert codes == [0] * count, outputs
    assert_same_run(team, "together", "alone")
    for file in ("huggingface/config.json", "adapter/adapter_config.json", "report.html"):
        assert (tmp_path / "together" / file).exists()
