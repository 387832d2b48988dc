"""Who answers: the face that the engine in this process and a server share, and an answer made a generation."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from eval.asks import Ask
from eval.store import Generation


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer. thought, answer, unfinished_thought, lengths: as of `store.Generation`."""

    text: str
    thought: str | None
    answer: str
    finish_reason: str
    unfinished_thought: bool
    prompt_tokens: int
    thought_tokens: int
    answer_tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why an ask has no answer, though others may (it is longer than the context)."""

    why: str


class Backend(Protocol):
    """What generates."""

    def answers(
        self, asks: Iterable[Ask]
    ) -> Generator[tuple[Ask, Reply | Refusal] | None, None, None]:
        """Answers as they come, in any order, None now and then between them; asks are taken as there is room.

        Raises UserError where nothing more can be answered. A caller that stops early closes the iterator,
        which cancels what is under way.
        """
        ...

    def speed(self) -> dict[str, float]:
        """What was measured since `answers` began, as of now: seconds, tokens, and what else the back end
        knows."""
        ...


class Source(Protocol):
    """A model that can be asked, before it is opened (which costs minutes and memory).

    name: for people, once in a run. where: folder or URL. fingerprint: of what decides its answers.
    """

    name: str
    where: str
    fingerprint: str

    def open(self) -> Backend:
        """Ready to answer; UserError where that cannot be."""
        ...

    def notes(self) -> list[str]:
        """What is to be said beside every score of this model; known once it is open."""
        ...


def generation(ask: Ask, reply: Reply) -> Generation:
    """A line of the store."""
    return Generation(
        key=ask.key,
        task=ask.task,
        item=ask.item.id,
        sample=ask.sample,
        seed=ask.seed,
        model=ask.model,
        protocol=ask.protocol,
        messages=list(ask.messages),
        settings=ask.settings,
        text=reply.text,
        thought=reply.thought,
        answer=reply.answer,
        finish_reason=reply.finish_reason,
        truncated=reply.finish_reason == "length",
        unfinished_thought=reply.unfinished_thought,
        prompt_tokens=reply.prompt_tokens,
        thought_tokens=reply.thought_tokens,
        answer_tokens=reply.answer_tokens,
        seconds=round(reply.seconds, 3),
    )
