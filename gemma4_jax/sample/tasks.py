"""A request on its way through an engine: what it holds, where it is, what it wants of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gemma4_jax.sample.beams import Beams
from gemma4_jax.sample.drafters import History
from gemma4_jax.sample.engine_device import Asked
from gemma4_jax.sample.row import Completion, Row
from gemma4_jax.sample.stream import Event, Stream


@dataclass
class Task:
    """`tokens`: its prompt and all that was chosen for it. number: of its turn, the first is 0."""

    row: Row
    number: int
    tokens: list[int]
    stream: Stream
    history: History  # of the same tokens
    part: int = 0  # of those in which a mesh cuts rows
    pages: list[int] = field(default_factory=list)
    held: int = 0  # tokens that its pages and rings hold
    reading: int | None = None  # its place among the rows that are read
    slot: int | None = None  # its place among the rows that decode
    beams: Beams | None = None  # which it is continued by, in rows of their own

    @property
    def output(self) -> list[int]:
        """Tokens chosen so far."""
        return self.tokens[len(self.row.request.prompt) :]

    @property
    def rows(self) -> int:
        """Rows that it decodes in."""
        return 1 if self.beams is None else self.beams.count

    @property
    def ready(self) -> bool:
        """Whether all of its tokens have been read."""
        return self.held == len(self.tokens)

    def tell(self, text: str, before: int, completion: Completion | None = None) -> None:
        """What it has got since it had `before` tokens, to its stream."""
        new = self.row.chosen[before:]
        self.stream.put(Event(text=text, tokens=new, completion=completion))


def asked(tasks: Sequence[Task | None]) -> Asked:
    """What tasks want of a call, in the order of its rows."""
    return Asked(
        requests=[None if task is None else task.row.request for task in tasks],
        pages=[() if task is None else task.pages for task in tasks],
        outputs=[() if task is None else task.output for task in tasks],
        stop_ids=[() if task is None else task.row.stop_ids for task in tasks],
    )
