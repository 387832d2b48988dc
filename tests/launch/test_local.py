"""Several processes on this machine: who they are told to be, signals, failures."""

import signal
import subprocess
import sys
import time

from launch import local

START = """
import sys
from launch.local import together
sys.exit(together([sys.executable, "-u", "-c", {code!r}], {who}))
"""


def start(repository, code, count=3):
    who = [local.environment(index, count, 1234, one_gpu_each=True) for index in range(count)]
    return subprocess.Popen(
        [sys.executable, "-c", START.format(code=code, who=who)],
        cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_every_process_is_told_who_it_is_and_the_first_one_speaks(repository):
    names = "JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS", "CUDA_VISIBLE_DEVICES"
    code = f"import os; print(*(os.environ[name] for name in {names}))"
    process = start(repository, code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "0 3 localhost:1234 0\n"
    assert sorted(err.splitlines()) == [f"[{n}] {n} 3 localhost:1234 {n}" for n in (1, 2)]


def test_one_that_fails_ends_the_others(repository):
    code = (
        "import os, sys, time; os.environ['JAX_PROCESS_ID'] == '2' and sys.exit(5); time.sleep(600)"
    )
    began = time.monotonic()
    process = start(repository, code)
    process.communicate(timeout=60)
    assert process.returncode == 5 and time.monotonic() - began < 50


def test_a_signal_reaches_all(repository):
    code = (
        "import signal, sys, time\n"
        "def end(*_): print('saved', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(600)"
    )
    process = start(repository, code)
    assert process.stdout.readline() == "ready\n"
    ready = [process.stderr.readline() for _ in range(2)]
    assert sorted(ready) == ["[1] ready\n", "[2] ready\n"]
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (out, err.count("saved"), process.returncode) == ("saved\n", 2, 143)


def test_a_dry_run_shows_every_command(capsys):
    words = ["--processes", "2", "--port", "99", "--dry-run"]
    run = ["--", "train.sft", "tiny", "--run.workdir", "w", "--data.path", "a.jsonl"]
    assert local.main([*words, *run]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "JAX_PROCESS_ID=0" in first and "JAX_PROCESS_ID=1" in second
    assert second.endswith("python -u -m train.sft tiny --run.workdir w --data.path a.jsonl")
