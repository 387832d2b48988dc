"""Loading holds the result and little else, whatever the file's type; several processes, each its share."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma4_jax.config import ModelConfig
from gemma4_jax.hf_config import config_to_hf
from gemma4_jax.presets import preset
from tests.checkpoint.folders import random_tensors, write_tensors

PROGRAM = "tests.checkpoint.measure_load"
# 100 million parameters; the biggest tensor is a third of the model.
BIG = replace(
    preset("tiny-ple"),
    vocab_size=32_768,
    per_layer_vocab_size=32_768,
    d_model=512,
    d_ff=2048,
    head_dim=128,
    global_head_dim=256,
    per_layer_input_width=64,
)


def write_random(folder: Path, config: ModelConfig, dtype: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    write_tensors(folder / "model.safetensors", random_tensors(config, dtype))
    return folder


pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float32])
def test_peak_is_at_most_a_fifth_above_the_result(
    tmp_path: Path, repository: Path, stored: Any
) -> None:
    tiny = write_random(tmp_path / "tiny", preset("tiny-ple"), np.float32)
    big = write_random(tmp_path / "big", BIG, stored)
    for dtype in ("float32", "bfloat16"):
        arguments = [sys.executable, "-m", PROGRAM, str(tiny), str(big), dtype]
        run = subprocess.run(
            arguments, cwd=repository, capture_output=True, text=True, check=True, timeout=300
        )
        cost = json.loads(run.stdout.splitlines()[-1])
        assert cost["result"] > 150e6
        assert cost["grown"] <= 1.2 * cost["result"], cost


def test_each_of_two_processes_reads_and_holds_half(tmp_path: Path, repository: Path) -> None:
    tiny = write_random(tmp_path / "tiny", preset("tiny-ple"), np.float32)
    big = write_random(tmp_path / "big", BIG, ml_dtypes.bfloat16)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(tiny), str(big), "bfloat16", '{"fsdp": 2}'],
            cwd=repository,
            env=os.environ | together | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    for output in outputs:
        cost = json.loads(output.splitlines()[-1])
        assert cost["result"] > 150e6
        assert cost["own"] <= 0.51 * cost["result"]
        assert cost["read"] <= cost["own"] + 0.01 * cost["result"], cost
        assert cost["grown"] <= 1.2 * cost["own"] + 16e6, cost  # and the threads' blocks
