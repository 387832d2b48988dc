"""Who answers: the face that the engine in this process and a server share, and an answer made a generation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
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
    """Why an ask has no answer, though others may (it is longer than the context).

    of_all: no prompt is taken that is asked so, however short.
    """

    why: str
    of_all: bool = False


class Refusals:
    """Which ways to ask a back end takes no prompt in: there the rest need not be tried.

    What a refusal says does not tell ("too long": this prompt, or max_tokens alone?). A prompt of a word, asked
    in the same way, does: once for each way, and only after a first refusal.
    """

    def __init__(self) -> None:
        self._why: dict[str, str | None] = {}  # by way: why no prompt is taken; None: some are

    def known(self, ask: Ask) -> Refusal | None:
        """What to say without asking; None: ask."""
        why = self._why.get(_way(ask))
        return Refusal(why=why, of_all=True) if why else None

    def judge(self, ask: Ask, why: str, attempt: Callable[[Ask], str | None]) -> Refusal:
        """The refusal of an ask. attempt: asks, and says why it was refused; None: it was not."""
        way = _way(ask)
        if way not in self._why:
            self._why[way] = attempt(_of_a_word(ask))
        return self.known(ask) or Refusal(why=why)


def _of_a_word(ask: Ask) -> Ask:
    return replace(ask, messages=[{**message, "content": "Hi"} for message in ask.messages])


def _way(ask: Ask) -> str:
    """All of an ask but what its messages say."""
    return repr((ask.settings, [message["role"] for message in ask.messages]))


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
