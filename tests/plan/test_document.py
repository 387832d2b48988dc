"""The table of docs/plan.md: the smallest machine of each kind that holds a model's training.

After an intended change: `python -m tests.plan.test_document` writes it anew.
"""

from pathlib import Path

from gemma4_jax.errors import UserError
from gemma4_jax.model.adapters import LoRA
from gemma4_jax.plan.memory import bytes_by_part, peak
from gemma4_jax.plan.search import ROOM
from gemma4_jax.plan.workload import Workload, check, sizes_of
from gemma4_jax.presets import preset
from gemma4_jax.topology import parse

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "plan.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"
MODELS = ("e2b", "e4b", "12b", "26b-a4b", "31b")
MACHINES = {
    "v5e": (1, 4, 8, 16, 32, 64, 128, 256),
    "v5p": (8, 16, 32, 64, 128, 256, 512),
    "v6e": (1, 4, 8, 16, 32, 64, 128, 256),
    "tpu7x": (4, 8, 16, 32, 64, 128),
    "h100": (1, 2, 4, 8, 16, 32, 64),
    "h200": (1, 2, 4, 8, 16, 32, 64),
    "rtx4090": (1, 2, 4, 8),
}
METHODS = {
    "all": {},
    "all, bf16 Adafactor": {
        "param_dtype": "bfloat16",
        "optimizer": "adafactor",
        "stochastic_rounding": True,
    },
    "LoRA": {"param_dtype": "bfloat16", "lora": LoRA(rank=16)},
    "QLoRA": {"param_dtype": "bfloat16", "lora": LoRA(rank=16), "base": "nf4"},
}


def smallest(model: str, method: str, kind: str) -> str:
    """The machine, and the share of a device's memory at the peak."""
    for number in MACHINES[kind]:
        topology = parse(f"{kind}-{number}")
        work = Workload(
            config=preset(model),
            tokens=4096,
            rows=topology.devices,
            sizes=sizes_of({"fsdp": topology.devices}),
            **METHODS[method],
        )
        try:
            check(work)
        except UserError:
            continue
        share = peak(bytes_by_part(work)) / topology.memory
        if share <= ROOM:
            return f"{topology.name} {share:.0%}"
    return "-"


def table() -> str:
    lines = [
        "| model | trained | " + " | ".join(MACHINES) + " |",
        "|---|---" * 1 + "|---" * 7 + "|",
    ]
    for model in MODELS:
        for method in METHODS:
            cells = (smallest(model, method, kind) for kind in MACHINES)
            lines.append(f"| {model} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_documented_table_is_this_arithmetic():
    text = DOCUMENT.read_text()
    assert text[text.index(START) + len(START) : text.index(END)] == table()


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    DOCUMENT.write_text(before + table() + after)
