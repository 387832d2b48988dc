"""Training and decoding steps of the five models compiled for TPUs that are not there: one JSON line each.

    python -m benchmarks.ahead [--only WORD] [--level O0|O1|default]
    python -m benchmarks.ahead --table LINES.jsonl      # those lines as the tables of docs/ahead_of_time.md

Each step is compiled in a process of its own (`python -m train.ahead`, `gemma4_jax.commands.decode_ahead`), so
that host memory is its own. Needs libtpu; minutes of CPU each.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import emit

_DECODING = "decode "
# What is asked of `train.ahead`, or after "decode" of `decode_ahead`, by name.
CASES = {
    "31b-v5p-128": "sft 31b --topology v5p-128 --seq 8192 --batch 64 --mesh fsdp=-1",
    "31b-v5p-128-tensor": "sft 31b --topology v5p-128 --seq 8192 --batch 16 --mesh fsdp=-1,tensor=4",
    "31b-tpu7x-64": "sft 31b --topology tpu7x-64 --seq 8192 --batch 128 --mesh fsdp=-1,tensor=4",
    "31b-256k": "sft 31b --topology v5p:4x8x8 --seq 262144 --batch 4 --mesh fsdp=4,seq=16,tensor=4",
    "26b-a4b-tpu7x-64": "sft 26b-a4b --topology tpu7x-64 --seq 8192 --batch 128 --mesh fsdp=-1,expert=16",
    "26b-a4b-v5p-128": "sft 26b-a4b --topology v5p-128 --seq 8192 --batch 64 --mesh fsdp=-1,expert=16",
    "12b-v5p-64": "sft 12b --topology v5p-64 --seq 8192 --batch 32 --mesh fsdp=-1",
    "e2b-v5e-8": "sft e2b --topology v5e-8 --seq 2048 --batch 8 --mesh fsdp=-1",
    "e4b-v5e-16": "sft e4b --topology v5e-16 --seq 2048 --batch 16 --mesh fsdp=-1",
    "31b-dpo-lora-v5p-8": "dpo 31b --lora 16 --topology v5p-8 --seq 2048 --batch 4 --mesh fsdp=-1",
    "26b-a4b-dpo-lora-v5e-16": (
        "dpo 26b-a4b --lora 8 --topology v5e-16 --seq 1024 --batch 16 --mesh fsdp=1,expert=-1"
    ),
    "e2b-decode": "decode e2b --topology v5e-8 --seq 131072 --batch 8 --mesh data=8",
    "e4b-decode": "decode e4b --topology v5e-8 --seq 131072 --batch 4 --mesh data=4,tensor=2",
    "12b-decode": "decode 12b --topology v5e-8 --seq 262144 --batch 1 --mesh seq=2,tensor=4",
    "26b-a4b-decode": "decode 26b-a4b --topology v5p-8 --seq 262144 --batch 4 --mesh expert=4",
    "31b-decode": "decode 31b --topology v5p-8 --seq 262144 --batch 1 --mesh seq=4",
}
_GIB = 2**30


def measure(name: str, words: str, level: str) -> dict[str, Any]:
    """One compilation; `rematerialised`: how often XLA said that it moves a whole array to cut it otherwise."""
    module = "gemma4_jax.commands.decode_ahead" if words.startswith(_DECODING) else "train.ahead"
    asked = words.removeprefix(_DECODING).split()
    command = [sys.executable, "-m", module, *asked, "--level", level, "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"benchmark": "ahead", "name": name, "error": done.stderr.strip()[-2000:]}
    report = json.loads(done.stdout)
    total = sum(one["count"] * one["bytes"] for one in report["collectives"])
    report["collectives"] = report["collectives"][:12]
    return {
        "benchmark": "ahead",
        "name": name,
        "command": words,
        "level": level,
        **report,
        "received_bytes": total,
        "rematerialised": done.stderr.count("Involuntary full rematerialization"),
        "seconds": round(time.perf_counter() - began, 1),
    }


def planned(words: str) -> int:
    """Bytes at the peak by `gemma4 plan`, for what `train.ahead` compiled."""
    task, model, *flags = words.split()
    asked = ["--task", task, *flags, "--remat", "full", "--accumulation", "1", "--json"]
    command = [sys.executable, "-m", "gemma4_jax", "plan", model, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak: int = json.loads(done.stdout)["chosen"]["memory"]["peak"]
    return peak


def tables(results: list[dict[str, Any]]) -> str:
    """Results as rows of Markdown: training beside what is planned, and decoding."""
    training = [r for r in results if not r["command"].startswith(_DECODING)]
    decoding = [r for r in results if r["command"].startswith(_DECODING)]
    parts = []
    for module, column, found in (
        ("train.ahead", "planned", training),
        ("gemma4_jax.commands.decode_ahead", "cache", decoding),
    ):
        head = f"| `python -m {module}` ... | level | HBM a device, GiB | {column} | of | CPU-s | host, GiB |"
        parts.append("\n".join([head, "|---" * 7 + "|", *map(_row, found)]))
    return "\n\n".join(parts)


def _row(r: dict[str, Any]) -> str:
    words = r["command"]
    beside = r["cache_bytes"] if words.startswith(_DECODING) else planned(words)
    peak = f"{r['peak_bytes'] / _GIB:.1f}" + ("" if r["fits"] else ", does not fit")
    cells = [words.removeprefix(_DECODING), r["level"], peak, f"{beside / _GIB:.1f}"]
    cells += [f"{r['hbm_bytes'] / _GIB:.0f}", f"{r['cpu_seconds_to_compile']:.0f}"]
    return "| " + " | ".join([*cells, f"{r['host_peak_bytes'] / _GIB:.1f}"]) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--level", default="O0", choices=("O0", "O1", "default"))
    parser.add_argument("--table", type=Path, help="print these results as tables, measure nothing")
    args = parser.parse_args()
    if args.table:
        results = [json.loads(line) for line in args.table.read_text().splitlines()]
        print(tables([result for result in results if "error" not in result]))
        return
    for name, words in CASES.items():
        if args.only in name:
            emit(measure(name, words, args.level))


if __name__ == "__main__":
    main()
