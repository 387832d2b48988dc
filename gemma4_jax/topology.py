"""Names of machines: "v5p-128", "tpu7x-64", "h100-8", or libtpu's own "v5p:4x4x4", as chips, devices and shape.

The number is what people type: TensorCores for v5p (its slices are named so: v5p-128 has 64 chips), chips for
all others. Devices are JAX's: one a chip, two on tpu7x. Shapes and hosts of TPU slices are those that libtpu
makes of the same name for ahead-of-time compilation (checked with 0.0.42). Not here: what a chip can do
(`chips.py`), and several slices.
"""

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gemma4_jax.chips import CHIPS, Chip
from gemma4_jax.errors import UserError, unknown

# What the number of a name counts, where it is not chips: TensorCores.
_COUNTED_PER_CHIP = {"v5p": 2}
# Slices that are offered, as shapes: https://docs.cloud.google.com/tpu/docs/v5e (v6e has the same).
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Below a cube of 4 x 4 x 4; from there on every shape is made of such cubes.
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 4
# Chips of the largest slice: https://docs.cloud.google.com/tpu/docs/v5p and .../tpu7x.
_MOST = {"v5p": 6144, "tpu7x": 9216}
_HOSTS_OF_GPUS = 1024


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A machine. name: as given; shape: chips along each dimension of the torus, or (hosts, GPUs of one).

    devices: JAX's, of all hosts. processes: hosts. libtpu_name: by which libtpu describes it for
    ahead-of-time compilation; None for GPUs, and for slices that are part of a host.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: int
    processes: int
    libtpu_name: str | None

    @property
    def chips(self) -> int:
        """All of them."""
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        """Whether its chips are TPUs."""
        return self.chip.torus > 0

    @property
    def memory(self) -> int:
        """Bytes of one device."""
        return self.chip.memory // self.chip.devices

    @property
    def flops(self) -> float:
        """bfloat16 operations a second of one device."""
        return self.chip.flops / self.chip.devices

    @property
    def bandwidth(self) -> float:
        """Bytes a second between one device and its memory."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each dimension is closed to a ring: 16 chips of v5e and v6e, whole cubes of the others."""
        whole = all(size % _CUBE == 0 for size in self.shape)
        if self.chip.torus == 2:
            return tuple(size == 16 for size in self.shape)
        return (whole and self.chip.torus == 3,) * len(self.shape)


def parse(name: str) -> Topology:
    """The machine of that name; UserError, in one line with what there is instead, if there is none.

    "KIND-N" as above; "KIND:AxB" or "KIND:AxBxC" gives the shape of a TPU slice.
    """
    match = re.fullmatch(r"([a-z]+\d+[a-z]*)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    if match is None:
        close = difflib.get_close_matches(re.split("[-:]", name)[0], CHIPS, n=1)
        hint = f"; did you mean {close[0]}-8?" if close else ""
        raise UserError(
            f"no machine is called {name!r}{hint} (KIND-N or KIND:AxBxC; kinds: {', '.join(CHIPS)})"
        )
    kind, number, dimensions = match.groups()
    if kind not in CHIPS:
        raise unknown("kind of chip", kind, CHIPS)
    chip = CHIPS[kind]
    if dimensions:
        shape = _given_shape(name, chip, dimensions)
    else:
        shape = _shape(name, chip, int(number))
    chips = math.prod(shape)
    # libtpu's hosts have 2 x 2 chips.
    libtpu_name = f"{kind}:{'x'.join(map(str, shape))}" if chip.torus and chips > 1 else None
    return Topology(
        name=name,
        chip=chip,
        shape=shape,
        devices=chips * chip.devices,
        processes=-(-chips // chip.per_host),
        libtpu_name=libtpu_name,
    )


def _shape(name: str, chip: Chip, number: int) -> tuple[int, ...]:
    """Of that many chips or TensorCores: the one nearest to a cube."""
    counted = _COUNTED_PER_CHIP.get(chip.name, 1)
    shapes = {math.prod(shape): shape for shape in _shapes(chip)}
    if number % counted or number // counted not in shapes:
        sizes = sorted(shapes, key=lambda chips: (abs(chips * counted - number), chips))[:3]
        near = ", ".join(f"{chip.name}-{chips * counted}" for chips in sorted(sizes))
        raise UserError(f"there is no {name}; nearest: {near}")
    return shapes[number // counted]


def _given_shape(name: str, chip: Chip, dimensions: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in dimensions.split("x"))
    if not chip.torus:
        raise UserError(f"{name}: a shape is for TPUs; write {chip.name}-{math.prod(shape)}")
    known = set(_shapes(chip, all_of_them=True))
    if shape not in known:
        chips = math.prod(shape)
        close = sorted(known, key=lambda s: (abs(math.prod(s) - chips), s))[:3]
        near = ", ".join(f"{chip.name}:{'x'.join(map(str, s))}" for s in sorted(close))
        raise UserError(f"there is no {name}; nearest: {near}")
    return shape


def _shapes(chip: Chip, all_of_them: bool = False) -> Iterator[tuple[int, ...]]:
    """Shapes that exist; of those with as many chips the last is the one nearest to a cube."""
    if not chip.torus:
        yield from ((1, count) for count in (1, 2, 4, chip.per_host))
        if chip.network:
            yield from ((hosts, chip.per_host) for hosts in range(2, _HOSTS_OF_GPUS + 1))
    elif chip.torus == 2:
        yield from _FLAT
    else:
        yield from _SMALL
        most = _MOST[chip.name] // _CUBE**3
        cubes = [
            (a, b, c)
            for a in range(1, round(most ** (1 / 3)) + 2)
            for b in range(a, most // a + 1)
            for c in range(b, most // (a * b) + 1)
            if all_of_them or c <= 3 * a
        ]
        for shape in sorted(cubes, key=max, reverse=True):
            yield tuple(_CUBE * n for n in shape)
