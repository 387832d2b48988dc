"""The pictures of docs/plan.md and docs/sharding.md: what a plan says, as bars. Arithmetic, no device.

    python -m benchmarks.plan_pictures          # writes docs/pictures/*.svg anew

The same plans make the same bytes: tests/plan/test_document.py compares. Not here: the sums (gemma4_jax/plan).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gemma4_jax.config import FULL, SLIDING, LayerConfig
from gemma4_jax.plan.memory import bytes_by_part, peak
from gemma4_jax.plan.traffic import sequence_bytes
from gemma4_jax.plan.workload import Workload, sizes_of
from gemma4_jax.presets import preset
from gemma4_jax.topology import parse

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
MODELS = ("e2b", "e4b", "12b", "26b-a4b", "31b")

# Of the first picture.
MACHINE, ROW = "v5p-64", 8192
_PARTS = {
    "weights": ("weights, float32", "#1b4f72"),
    "optimizer": ("AdamW's moments", "#2e86c1"),
    "gradients": ("gradients", "#85c1e9"),
    "activations": ("kept for the backward pass", "#ca6f1e"),
    "running": ("a layer or the loss while it runs", "#f0b27a"),
}
# Of the second one.
LONG, SEQ = 262_144, 16
_OURS, _GATHERED = "#2e86c1", "#c9ced1"

_WIDTH, _LEFT, _BAR, _GAP, _LINE = 760, 150, 24, 14, 20
Piece = tuple[float, str]


def memory() -> str:
    """Stacked bars: what a device needs at its peak in a step of SFT of all parameters, by model."""
    place = parse(MACHINE)
    bars: dict[str, list[Piece]] = {}
    for name in MODELS:
        work = Workload(
            config=preset(name),
            tokens=ROW,
            rows=place.devices,
            sizes=sizes_of({"fsdp": place.devices}),
            splash=place.is_tpu,
        )
        parts = bytes_by_part(work)
        parts["running"] = max(parts["layer"], parts["loss"], parts["lookup"])
        bars[name] = [(parts[part] / 2**30, colour) for part, (_, colour) in _PARTS.items()]
        # What the picture stacks must be what is there at the peak, not a part of something larger.
        assert sum(parts[part] for part in _PARTS) == peak(parts), name
    title = f"GiB of a device at its peak, of {place.memory / 2**30:.0f}: SFT of all parameters"
    under = f"{MACHINE} ({place.chips} chips), fsdp={place.devices}, a row of {ROW} tokens a device, remat full"
    return _chart((title, under), bars, "{:.1f}", list(_PARTS.values()))


def exchanged() -> str:
    """Bars: what a chip sends for keys and values in one forward pass of a layer of 262 144 tokens."""
    bars: dict[str, list[Piece]] = {}
    for name in ("12b", "26b-a4b", "31b"):
        config = preset(name)
        work = Workload(config=config, tokens=LONG, rows=1, sizes=sizes_of({"seq": SEQ}))
        for kind in (SLIDING, FULL):
            layer = next(layer for layer in config.layers if layer.kind == kind)
            _, ours, _ = sequence_bytes(work, layer, work.compute)
            bars[f"{name}, {kind}"] = [(ours / 1e6, _OURS)]
            bars[f"{name}, {kind} "] = [(gathered(work, layer) / 1e6, _GATHERED)]
    title = f"MB that a chip sends for K and V in a forward pass of a layer: {LONG} tokens over seq={SEQ}"
    under = "bfloat16; sliding layers: a halo of W - 1; full layers: a ring of V and the rotated slice of K"
    legend = [("ours", _OURS), ("all-gather of K and V", _GATHERED)]
    return _chart((title, under), bars, "{:,.0f}", legend)


def gathered(work: Workload, layer: LayerConfig) -> float:
    """Bytes that a device sends if K and V of the row are gathered over `seq`."""
    shard = work.tokens // work.mesh["seq"] * layer.num_kv_heads * 2 * layer.head_dim * work.compute
    return float((work.mesh["seq"] - 1) * shard)


def _chart(
    title: Sequence[str],
    bars: Mapping[str, Sequence[Piece]],
    number: str,
    legend: Sequence[tuple[str, str]],
) -> str:
    """Horizontal bars of pieces (length, colour); a name that ends in a space is the bar before it, again."""
    longest = max(sum(length for length, _ in pieces) for pieces in bars.values())
    scale = (_WIDTH - _LEFT - 90) / longest
    drawn, y = [], 16
    for line in title:
        drawn.append(_text(12, y + 4, line, bold=line is title[0]))
        y += _LINE
    y += 4
    for name, pieces in bars.items():
        again = name.endswith(" ")
        y += 0 if again else _GAP
        if not again:
            drawn.append(_text(_LEFT - 10, y + _BAR - 7, name, anchor="end"))
        x = float(_LEFT)
        for length, colour in pieces:
            drawn.append(
                f'<rect x="{x:.1f}" y="{y}" width="{length * scale:.1f}" height="{_BAR}" fill="{colour}"/>'
            )
            x += length * scale
        total = number.format(sum(length for length, _ in pieces))
        drawn.append(_text(x + 6, y + _BAR - 7, total))
        y += _BAR
    y += _GAP + 8
    x = 12.0
    for name, colour in legend:
        wide = 30 + 6.6 * len(name)
        if x + wide > _WIDTH:
            x, y = 12.0, y + _LINE
        drawn.append(f'<rect x="{x:.1f}" y="{y}" width="12" height="12" fill="{colour}"/>')
        drawn.append(_text(x + 17, y + 10, name))
        x += wide
    height = y + _LINE + 4
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *drawn,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.0f}" text-anchor="{anchor}" fill="#222"{weight}>{words}</text>'
    )


PICTURES = {"memory.svg": memory, "exchanged.svg": exchanged}


def main() -> None:
    """Write all."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw())


if __name__ == "__main__":
    main()
