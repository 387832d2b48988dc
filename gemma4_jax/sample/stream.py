"""What an engine says of one request, as it comes: in a `for`, in an `async for`, or all at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from gemma4_jax.errors import UserError
from gemma4_jax.sample.row import Completion, Token


@dataclass(frozen=True, kw_only=True)
class Event:
    """What is new of a request: text that is certain, the tokens behind it, and at the end the whole."""

    text: str
    tokens: list[Token]
    completion: Completion | None = None


class Stream(Iterator[Event], AsyncIterator[Event]):
    """Events of one request, in a `for` or an `async for`; `completion` is there when they are over.

    What the request did wrong is raised here, and nobody else notices.
    """

    def __init__(
        self,
        advance: Callable[[Stream], None],
        cancel: Callable[[Stream], None],
        prompt: Sequence[int],
    ) -> None:
        self.prompt = tuple(prompt)
        # Of an engine: run until the stream has something to say; end its request.
        self._advance, self._cancel = advance, cancel
        self._events: deque[Event] = deque()
        self._error: UserError | None = None
        self.ended = False  # nothing more will come
        self.completion: Completion | None = None

    def __next__(self) -> Event:
        self._advance(self)
        return self._pop()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if not self.ready:
            await asyncio.to_thread(self._advance, self)
        try:
            return self._pop()
        except StopIteration:
            raise StopAsyncIteration from None

    @property
    def ready(self) -> bool:
        """Whether the next event, or the end, is there without waiting."""
        return bool(self._events) or self.ended

    @property
    def waiting(self) -> tuple[Event, ...]:
        """Events that nobody has taken yet."""
        return tuple(self._events)

    def result(self) -> Completion:
        """The whole, when it is there."""
        for _ in self:
            pass
        assert self.completion is not None
        return self.completion

    def cancel(self) -> None:
        """Stop; what has been written so far is the completion, its finish_reason "cancelled"."""
        self._cancel(self)

    def put(self, event: Event) -> None:
        self._events.append(event)
        if event.completion is not None:
            self.completion, self.ended = event.completion, True

    def fail(self, error: UserError) -> None:
        self._error, self.ended = error, True

    def _pop(self) -> Event:
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration
