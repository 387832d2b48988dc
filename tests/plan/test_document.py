"""What docs/plan.md shows: the smallest machine of each kind that holds a model's training, pages of `gemma4
plan`, and the pictures there and in docs/sharding.md.

After an intended change: `python -m tests.plan.test_document` writes them anew.
"""

import contextlib
import io
from pathlib import Path

from benchmarks import plan_pictures
from gemma4_jax import cli
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
PAGES, END_OF_PAGES = "<!-- pages -->\n", "<!-- end of pages -->\n"
# One page of each model; of all but the first the head and the search.
COMMANDS = (
    "e2b --topology v5e-8 --lora 16 --seq 4096 --batch 8 --top 3",
    "e4b --topology h100-8 --seq 8192 --batch 16 --top 3",
    "12b --topology v5p-32 --seq 8192 --batch 32 --top 3",
    "26b-a4b --topology tpu7x-64 --seq 4096 --batch 2048 --top 3",
    "31b --topology v5p-256 --seq 262144 --batch 16 --top 3",
)
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
            splash=topology.is_tpu,
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


def page(words: str, whole: bool) -> str:
    """A command and what it prints, as a block of Markdown."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(["plan", *words.split()])
    parts = out.getvalue().strip().split("\n\n")
    shown = [f"$ gemma4 plan {words}\n" + parts[0], *(parts[1:] if whole else parts[-1:])]
    lines = "\n\n".join(shown).splitlines()
    return "".join(f"    {line}".rstrip() + "\n" for line in lines)


def pages() -> str:
    return "\n".join(page(words, words is COMMANDS[0]) for words in COMMANDS)


def between(text: str, start: str, end: str) -> tuple[str, str, str]:
    """What is before the end of `start`, then up to `end`, then the rest."""
    first, last = text.index(start) + len(start), text.index(end)
    return text[:first], text[first:last], text[last:]


def test_the_documented_table_is_this_arithmetic():
    assert between(DOCUMENT.read_text(), START, END)[1] == table()


def test_the_documented_pages_are_what_the_command_prints():
    assert between(DOCUMENT.read_text(), PAGES, END_OF_PAGES)[1] == pages()


def test_the_pictures_are_this_arithmetic():
    for name, draw in plan_pictures.PICTURES.items():
        assert (plan_pictures.FOLDER / name).read_text() == draw(), name


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    for start, end, new in ((START, END, table()), (PAGES, END_OF_PAGES, pages())):
        before, _, after = between(text, start, end)
        text = before + new + after
    DOCUMENT.write_text(text)
    plan_pictures.main()
