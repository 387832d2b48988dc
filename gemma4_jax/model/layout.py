"""How layers are grouped so that compile time does not grow with depth.

The layer list is cut into segments; a segment is a pattern of runs, repeated; a run is a number of equal
layers in a row. Segments are one `scan` over their repeats and runs one `scan` over their layers, so the
compiler sees every kind of layer once: 31B is ten repeats of (5 sliding, 1 full), two bodies for sixty
layers. E2B and E4B are two segments, one that owns K/V and one that borrows it. Layer lists need not be
periodic: what does not repeat becomes a segment of one repeat.
"""

import functools
import itertools
from dataclasses import dataclass

from gemma4_jax.config import LayerConfig, ModelConfig

# One more loop costs the compiler about half a layer: prefer few segments where bodies are equally many.
_COST_PER_SEGMENT = 0.5


@dataclass(frozen=True)
class Run:
    """`length` equal layers in a row; `layer` is the first of them in the first repeat."""

    layer: LayerConfig
    length: int


@dataclass(frozen=True)
class Segment:
    """`repeats` copies of the runs in `pattern`, starting at layer `start`."""

    start: int
    pattern: tuple[Run, ...]
    repeats: int

    @property
    def period(self) -> int:
        """Layers in one repeat."""
        return sum(run.length for run in self.pattern)

    @property
    def stop(self) -> int:
        """Index after the last layer."""
        return self.start + self.period * self.repeats


@dataclass(frozen=True)
class LayerAddress:
    """Where a layer's parameters are: params[f"segment_{segment}"][f"slot_{slot}"][...][index].

    index: (repeat, place in the run), the two leading axes of every leaf.
    """

    segment: int
    slot: int
    index: tuple[int, int]


@functools.cache
def segments(config: ModelConfig) -> tuple[Segment, ...]:
    """The cut of the layers with the fewest bodies to compile. Layers that own K/V and layers that
    borrow it never share a segment, so that prefill can stop between the two."""
    cut = config.first_shared_layer
    return (*_cheapest(config.layers[:cut]), *_cheapest(config.layers[cut:]))


@functools.cache
def layer_address(config: ModelConfig, layer: int) -> LayerAddress:
    """Segment, slot and index of a layer, by its number in the model."""
    for number, segment in enumerate(segments(config)):
        if segment.start <= layer < segment.stop:
            repeat, offset = divmod(layer - segment.start, segment.period)
            for slot, run in enumerate(segment.pattern):
                if offset < run.length:
                    return LayerAddress(number, slot, (repeat, offset))
                offset -= run.length
    raise IndexError(f"layer {layer} of {config.num_layers}")


def _runs(layers: tuple[LayerConfig, ...]) -> tuple[Run, ...]:
    groups = itertools.groupby(layers, key=lambda layer: layer.signature)
    members = [list(group) for _, group in groups]
    return tuple(Run(group[0], len(group)) for group in members)


def _cheapest(layers: tuple[LayerConfig, ...]) -> tuple[Segment, ...]:
    """Minimise the sum of (runs in the pattern + _COST_PER_SEGMENT) by dynamic programming."""
    signatures = [layer.signature for layer in layers]
    best: list[tuple[float, tuple[Segment, ...]]] = [(0.0, ())]  # best[i]: for the first i layers
    for stop in range(1, len(layers) + 1):
        options = []
        for period in range(1, stop + 1):
            bodies = len(_runs(layers[stop - period : stop]))
            repeats = 1
            while True:
                start = stop - period * repeats
                cost, before = best[start]
                pattern = _runs(layers[start : start + period])
                options.append(
                    (
                        cost + bodies + _COST_PER_SEGMENT,
                        (*before, Segment(layers[start].index, pattern, repeats)),
                    )
                )
                tail = signatures[stop - period : stop]
                if start < period or signatures[start - period : start] != tail:
                    break
                repeats += 1
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]
