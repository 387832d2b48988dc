"""Training steps of the five models compiled for TPUs that are not there: one JSON line each.

    python -m benchmarks.ahead [--only WORD] [--level O0|O1|default]
    python -m benchmarks.ahead --table LINES.jsonl      # those lines as the table of docs/ahead_of_time.md

Each step is compiled in a process of its own (`python -m train.ahead`), so that host memory is its own. Needs
libtpu; minutes of CPU each.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import emit

# What is asked of `train.ahead`, by name.
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
}
_GIB = 2**30


def measure(name: str, words: str, level: str) -> dict[str, Any]:
    """One compilation; `rematerialised`: how often XLA said that it moves a whole array to cut it otherwise."""
    command = [sys.executable, "-m", "train.ahead", *words.split(), "--level", level, "--json"]
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


def table(results: list[dict[str, Any]]) -> str:
    """Results as rows of Markdown."""
    lines = [
        "| `python -m train.ahead` ... | level | GiB | of | fits | lower, s | compile, s | CPU-s | host, GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r['command']} | {r['level']} | {r['peak_bytes'] / _GIB:.1f} | {r['hbm_bytes'] / _GIB:.0f} | "
            f"{'yes' if r['fits'] else 'no'} | {r['seconds_to_lower']:.0f} | {r['seconds_to_compile']:.0f} | "
            f"{r['cpu_seconds_to_compile']:.0f} | "
            f"{r['host_peak_bytes'] / _GIB:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--level", default="O0", choices=("O0", "O1", "default"))
    parser.add_argument(
        "--table", type=Path, help="print these results as a table, measure nothing"
    )
    args = parser.parse_args()
    if args.table:
        results = [json.loads(line) for line in args.table.read_text().splitlines()]
        print(table([result for result in results if "error" not in result]))
        return
    for name, words in CASES.items():
        if args.only in name:
            emit(measure(name, words, args.level))


if __name__ == "__main__":
    main()
