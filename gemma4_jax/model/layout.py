"""How layers are grouped so that compile time does not grow with depth.

The layer list is cut into segments; a segment is a short pattern of unlike layers, repeated. Each segment
is one `scan` over its repeats, so the compiler sees every pattern once. Gemma 4's released sizes give one
segment of ten (5 sliding + 1 full) blocks for 31B; E2B and E4B give a stack that owns K/V and one that
borrows it. Layer lists need not be periodic: what does not repeat becomes a segment of one repeat.
"""

import functools
from dataclasses import dataclass

from gemma4_jax.config import LayerConfig, ModelConfig

# One scanned loop costs about half a layer of compile time: merge single layers unless repeats pay.
_COST_PER_SEGMENT = 0.5


@dataclass(frozen=True)
class Segment:
    """`repeats` copies of `pattern`, starting at layer `start`. The pattern shows the first copy."""

    start: int
    pattern: tuple[LayerConfig, ...]
    repeats: int

    @property
    def num_layers(self) -> int:
        """Layers in all repeats together."""
        return len(self.pattern) * self.repeats


@dataclass(frozen=True)
class LayerAddress:
    """Where a layer's parameters are: params[f"segment_{segment}"][f"slot_{slot}"][...][index]."""

    segment: int
    slot: int
    index: int


@functools.cache
def segments(config: ModelConfig) -> tuple[Segment, ...]:
    """The cheapest cut of the layers into repeated patterns. Layers that own K/V and layers that
    borrow it never share a segment, so that prefill can stop between the two."""
    cut = config.first_shared_layer
    return (*_cheapest(config.layers[:cut]), *_cheapest(config.layers[cut:]))


@functools.cache
def layer_address(config: ModelConfig, layer: int) -> LayerAddress:
    """Segment, slot and repeat of a layer, by its index in the model."""
    for number, segment in enumerate(segments(config)):
        offset = layer - segment.start
        if 0 <= offset < segment.num_layers:
            return LayerAddress(
                number, offset % len(segment.pattern), offset // len(segment.pattern)
            )
    raise IndexError(f"layer {layer} of {config.num_layers}")


def _cheapest(layers: tuple[LayerConfig, ...]) -> tuple[Segment, ...]:
    """Minimise the sum of (pattern length + _COST_PER_SEGMENT) by dynamic programming."""
    signatures = [layer.signature for layer in layers]
    best: list[tuple[float, tuple[Segment, ...]]] = [(0.0, ())]  # best[i]: for the first i layers
    for stop in range(1, len(layers) + 1):
        options = []
        for period in range(1, stop + 1):
            pattern = signatures[stop - period : stop]
            repeats = 1
            while True:
                start = stop - period * repeats
                cost, before = best[start]
                here = Segment(layers[start].index, layers[start : start + period], repeats)
                options.append((cost + period + _COST_PER_SEGMENT, (*before, here)))
                if start < period or signatures[start - period : start] != pattern:
                    break
                repeats += 1
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]
