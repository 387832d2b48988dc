"""What a compiled program says of itself: what devices send each other, how often, the compiler's cycles.

`compiled.as_text()` of XLA on CPU and on TPU. A loop's body is there once: it is counted as often as the loop's
condition says. TPU programs differ in form: a reduce-scatter is a fused computation of that name around an
all-reduce, collectives come as start and done, and loops do not say how long they are. Not here: compiling
(`ahead.py`), what a program should contain (tests).
"""

import dataclasses
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

_OPERATIONS = (
    "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    "collective-broadcast"
)
_COLLECTIVE = re.compile(rf"({_OPERATIONS})(-start)?")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)")
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|called_computations|branch_computations)"
    r"=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "s2": 2, "u2": 2}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of a program, as one device sees it.

    shape: of the result, such as "bf16[8,128]" (of several together, the first). axes: of the mesh, along which
    it goes; None where that is not known. count: executions in one run of the program. bytes: of the results of
    one execution.
    """

    operation: str
    shape: str
    axes: tuple[str, ...] | None
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cycles:
    """The compiler's estimate of one run. without: operations that it has none for, by kind, as often as they
    run."""

    total: int
    without: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes

    @property
    def called(self) -> list[str]:
        """Computations that run when this does, the parts of loops excepted."""
        groups = (many or one for many, one in _CALLED.findall(self.rest))
        return [name.strip().lstrip("%") for group in groups for name in group.split(",")]

    def part(self, name: str) -> str:
        """The body or condition of a loop."""
        match = re.search(rf"{name}=%?([\w.\-]+)", self.rest)
        assert match is not None, self.rest
        return match.group(1)


class Program:
    """A compiled program's text, read."""

    def __init__(self, text: str, bounds: Mapping[str, int] | None = None):
        """bounds: how often loops run whose end depends on data, by a word of their operation's name; others
        of the kind count once."""
        self._bounds = bounds or {}
        self._computations: dict[str, list[_Instruction]] = {}
        self._entry = ""
        inside: list[_Instruction] = []
        for line in text.splitlines():
            if line and not line[0].isspace():
                header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                if header:
                    inside = self._computations[header.group(2)] = []
                    self._entry = header.group(2) if header.group(1) else self._entry
            elif match := _INSTRUCTION.match(line):
                inside.append(_Instruction(*match.groups()))

    def collectives(self, mesh: Mapping[str, int] | None = None) -> list[Collective]:
        """All that travels between devices, largest first; equal ones are added up.

        mesh: size of each axis, in order, to name the axes by. What a device exchanges with itself alone is
        left out.
        """
        found: Counter[Collective] = Counter()
        for name, times in self._times().items():
            for instruction in self._computations[name]:
                match = _COLLECTIVE.fullmatch(instruction.opcode)
                if match is None:
                    continue
                groups = _groups(instruction.rest)
                if groups is not None and groups.shape[1] == 1:
                    continue
                operation, shape = match.group(1), instruction.type
                # The scattered result is that of the fusion; what is reduced inside is the whole.
                if operation == "all-reduce" and "all-reduce-scatter" in name:
                    operation, shape = "reduce-scatter", self._scattered(name)
                results = _results(shape, bool(match.group(2)))
                if results:
                    first = f"{results[0][0]}[{results[0][1]}]"
                    size = sum(_bytes(*result) for result in results)
                    axes = None if mesh is None else _axes(groups, mesh)
                    found[Collective(operation, first, axes, 0, size)] += times
        counted = [dataclasses.replace(one, count=count) for one, count in found.items()]
        return sorted(counted, key=lambda one: -one.bytes * one.count)

    def cycles(self) -> Cycles:
        """The compiler's estimates, summed over the schedule; of branches the longest."""
        without: Counter[str] = Counter()
        for name, times in self._times(into_fusions=False).items():
            for instruction in self._computations[name]:
                kind = instruction.opcode
                if kind == "custom-call":
                    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
                    kind = target.group(1) if target else kind
                elif not _COLLECTIVE.fullmatch(kind):
                    continue
                if _own_cycles(instruction) == 0:
                    without[kind] += times
        return Cycles(self._cycles(self._entry), dict(without))

    def arrays(self) -> set[str]:
        """Every shape that occurs, such as "bf16[8,128]"."""
        texts = (i.type for instructions in self._computations.values() for i in instructions)
        return {f"{kind}[{size}]" for text in texts for kind, size in _SHAPE.findall(text)}

    def sizes(self) -> set[int]:
        """How many numbers arrays have."""
        found = (re.findall(r"\d+", array.partition("[")[2]) for array in self.arrays())
        return {math.prod(map(int, sizes)) for sizes in found}

    def _cycles(self, name: str) -> int:
        return self._cycles_of.get(name) or self._cycles_of.setdefault(name, self._summed(name))

    @functools.cached_property
    def _cycles_of(self) -> dict[str, int]:
        return {}

    def _summed(self, name: str) -> int:
        total = 0
        for instruction in self._computations.get(name, ()):
            total += _own_cycles(instruction)
            if instruction.opcode == "while":
                total += self._trips(instruction) * self._cycles(instruction.part("body"))
            elif instruction.opcode == "conditional":
                total += max(self._cycles(branch) for branch in instruction.called)
            elif instruction.opcode in ("call", "async-start"):
                total += sum(self._cycles(called) for called in instruction.called)
        return total

    def _times(self, into_fusions: bool = True) -> dict[str, int]:
        """How often each computation runs. Computations stand before those that call them."""
        times = Counter({self._entry: 1})
        for name in reversed(self._computations):
            for instruction in self._computations[name] if times[name] else ():
                if instruction.opcode == "while":
                    times[instruction.part("body")] += times[name] * self._trips(instruction)
                elif into_fusions or instruction.opcode in ("call", "conditional", "async-start"):
                    for called in instruction.called:
                        times[called] += times[name]
        return {name: count for name, count in times.items() if name in self._computations}

    def _trips(self, loop: _Instruction) -> int:
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
        if known:
            return int(known.group(1))
        for word, bound in self._bounds.items():
            if word in loop.rest:
                return bound
        return self._end(loop.part("condition")) or 1

    def _end(self, condition: str) -> int | None:
        """The constant that a loop counts to, from 0 in ones; None where its end depends on data."""
        instructions = self._computations.get(condition, [])
        found = {
            instruction.name: int(match.group())
            for instruction in instructions
            if instruction.opcode == "constant" and (match := re.match(r"\d+", instruction.rest))
        }
        return next(iter(found.values())) if len(found) == 1 else None

    def _scattered(self, name: str) -> str:
        everything = itertools.chain.from_iterable(self._computations.values())
        return next((i.type for i in everything if name in i.called), "")


def travels(text: str) -> Counter[tuple[str, str]]:
    """(collective, shape) -> how often a device executes it; of a tuple, the first shape alone."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in Program(text).collectives():
        counts[one.operation, one.shape] += one.count
    return counts


def _own_cycles(instruction: _Instruction) -> int:
    match = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    return int(match.group(1)) if match else 0


def _results(text: str, is_start: bool) -> list[tuple[str, str]]:
    """Element type and sizes of what arrives."""
    text = re.sub(r"\{[^{}]*\}", "", text)  # layouts
    if is_start and text.startswith(
        "(("
    ):  # the operands in a tuple of their own, and they may be more
        text, is_start = text.partition(")")[2].replace("u32[]", ""), False
    shapes = _SHAPE.findall(text)
    # A start's tuple has the operands, the results, and words of synchronisation.
    real = [shape for shape in shapes if shape != ("u32", "")] if is_start else shapes
    return real[len(real) // 2 :] if is_start and len(real) > 1 else real


def _bytes(kind: str, sizes: str) -> int:
    match = re.search(r"\d+", kind)
    bits = _BITS.get(kind) or int(match.group() if match else 32)
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _groups(rest: str) -> np.ndarray | None:
    """Partitions that exchange with one another, int [groups, members]; of a permutation, its pairs."""
    if match := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", rest):
        return _listed(match.group(1))
    if match := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", rest):
        return _listed(match.group(1))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dimensions = _ints(match.group(1)), _ints(match.group(2))
        numbers = np.arange(math.prod(dimensions)).reshape(dimensions)
        if match.group(3):
            numbers = numbers.transpose(_ints(match.group(3)))
        return numbers.reshape(shape)
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", rest
    ):
        return _named(*match.groups())
    return None


def _named(mesh: str, axes: str) -> np.ndarray:
    """Groups along some axes of a mesh that the compiler made up: mesh['a'=8,'b'=2] {'a':(2)4}."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    shape: list[int] = []
    inside: list[int] = []
    picked = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    }
    for name, size in sizes.items():
        before, mine = picked.get(name, (size, 1))
        inside.append(len(shape) + 1)
        shape += [before, mine, size // (before * mine)]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    numbers = np.moveaxis(numbers, inside, range(-len(inside), 0))
    return numbers.reshape(-1, math.prod(shape[axis] for axis in inside))


def _listed(text: str) -> np.ndarray | None:
    groups = [_ints(group) for group in re.findall(r"\{([\d,]+)\}", text)]
    return np.array(groups) if len({len(group) for group in groups}) == 1 else None


def _ints(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _axes(groups: np.ndarray | None, mesh: Mapping[str, int]) -> tuple[str, ...] | None:
    """Axes along which members of a group differ; partitions are numbered in the order of the mesh."""
    if groups is None:
        return None
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # [axes, groups, members]
    differ = (places != places[..., :1]).any((1, 2))
    return tuple(name for name, moves in zip(mesh, differ, strict=True) if moves)
