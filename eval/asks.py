"""What is to be generated: every sample of every item, with its messages, settings, seed and key.

Here: from a benchmark's items to asks, in the order they are sent. Not here: who answers (`backend.py`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from configs.evals import GenerationConfig
from eval.task import Item, Message, Protocol, Settings, Task
from gemma4_jax.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One sample to be generated. settings: all that its draws depend on, the run's seed included."""

    key: str
    task: str
    item: Item
    sample: int
    seed: int
    model: str
    protocol: Protocol
    messages: list[Message]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One benchmark, asked of one model in one way: a row of the results."""

    task: Task
    items: Sequence[Item]
    model: str
    protocol: Protocol
    settings: Settings
    seed: int

    def asks(self, item: Item) -> Iterator[Ask]:
        """Every sample of an item."""
        settings = as_json(self.settings, self.seed)
        for sample in range(self.settings.samples):
            messages: list[Message] = [
                dict(m) for m in self.task.prompt(item, sample, self.protocol)
            ]
            asked = (self.task.name, item.id, sample, self.protocol, messages, settings, self.model)
            yield Ask(
                key=digest(asked),
                task=self.task.name,
                item=item,
                sample=sample,
                seed=sample_seed(self.seed, self.task.name, item.id, sample),
                model=self.model,
                protocol=self.protocol,
                messages=messages,
                settings=settings,
            )


def in_order(cells: Sequence[Cell], seed: int) -> Iterator[Ask]:
    """The asks of all cells: items in an order drawn by the seed, an item's samples side by side.

    Long answers are not known beforehand: a drawn order keeps them from gathering at the end, where rows of the
    engine would stand empty, and makes the running score one of a fair sample. Samples of one item often share
    their prompt, which is then read once.
    """
    pairs = [(cell, item) for cell in cells for item in cell.items]
    random.Random(seed).shuffle(pairs)
    for cell, item in pairs:
        yield from cell.asks(item)


def sample_seed(seed: int, task: str, item: str, sample: int) -> int:
    """From 0 to 2**31 - 1 (what every server takes); that of another sample of the item is always another."""
    first = int(digest((seed, task, item)), 16)
    return (first + sample) % 2**31


def resolve(task: Task, protocol: Protocol, asked: GenerationConfig) -> Settings:
    """A benchmark's settings of a protocol, with what the run asks for in their place."""
    if protocol not in task.settings:
        raise unknown(f"protocol of {task.name}", protocol, task.settings)
    given = {name: value for name, value in asdict(asked).items() if value is not None}
    if given.get("top_p") == 1:
        given["top_p"] = None
    if given.get("top_k") == 0:
        given["top_k"] = None
    return replace(task.settings[protocol], **given)


def choose(items: Sequence[Item], limit: int, by: str, seed: int) -> list[Item]:
    """`limit` items, in their order: the first, or drawn by the seed; 0: all."""
    if not items:
        raise UserError("a benchmark without items; give another file")
    if not limit or limit >= len(items):
        return list(items)
    if by == "first":
        return list(items[:limit])
    # A smaller limit draws a part of what a larger one does.
    drawn = random.Random(seed).sample(range(len(items)), len(items))[:limit]
    return [items[i] for i in sorted(drawn)]


def as_json(settings: Settings, seed: int) -> dict[str, Any]:
    """What a draw depends on, as JSON gives it back; the number of samples is no part of that."""
    values = {**asdict(settings), "seed": seed, "stop": list(settings.stop)}
    del values["samples"]
    return values


def digest(value: Any) -> str:
    """32 hexadecimal digits of JSON values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
