"""Our own engine as a back end: it is kept full, and says how full it was.

Over several processes each one runs the same asks in the same order on the same engine; what only one of them
does (store, score) is not here.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from eval.asks import Ask
from eval.backend import Refusal, Refusals, Reply
from eval.thoughts import thought_is_open
from gemma4_jax.errors import UserError
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.row import Completion
from gemma4_jax.sample.stream import Stream
from gemma4_jax.text import control
from gemma4_jax.text.parse import Message, parse
from gemma4_jax.text.token_parse import parse_tokens, start_of
from gemma4_jax.text.tokenizer import Tokenizer

# Requests in line for every row that decodes: enough that none waits, few enough to hold in memory.
_AHEAD = 4
# Where to turn for a request that is too long, as nearly all refused ones are.
_BOUNDS = "--model.max-tokens has room for so much, --generation.max-tokens asks for so much"


@dataclass
class _Measured:
    """Seconds: all; of steps; of steps while there was work for all rows, and times the share in use."""

    wall: float = 0.0
    steps: float = 0.0
    full: float = 0.0
    supplied: float = 0.0
    tokens: int = 0


class EngineBackend:
    """Answers by an engine whose model has a tokenizer and a chat format."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._refusals = Refusals()
        self._measured = _Measured()

    def answers(
        self, asks: Iterable[Ask]
    ) -> Generator[tuple[Ask, Reply | Refusal] | None, None, None]:
        """See `backend.Backend`."""
        engine, waiting = self._engine, iter(asks)
        measured = self._measured = _Measured()
        running: list[tuple[Ask, Stream, float]] = []
        more = True
        begin = time.perf_counter()
        try:
            while running or more:
                room = _AHEAD * engine.max_slots - len(running)
                taken = list(islice(waiting, room)) if more else []
                more = more and len(taken) == room
                for ask in taken:
                    found = self._refusals.known(ask) or self._submit(ask)
                    if isinstance(found, Refusal):
                        yield ask, found
                    else:
                        running.append((ask, found, time.perf_counter()))
                enough = len(running) >= engine.max_slots
                start = time.perf_counter()
                engine.step()
                now = time.perf_counter()
                share = engine.active / engine.max_slots
                measured.steps += now - start
                if enough:
                    measured.full += (now - start) * share
                    measured.supplied += now - start
                for _, stream, _ in running:
                    while stream.waiting:
                        measured.tokens += len(next(stream).tokens)
                ended = [entry for entry in running if entry[1].ended]
                running = [entry for entry in running if not entry[1].ended]
                measured.wall = now - begin
                yield None
                for ask, stream, since in ended:
                    # Raises what went wrong with it alone: numbers that are not finite, so a broken model.
                    yield ask, self._reply(ask, stream, stream.result(), now - since)
        finally:
            for _, stream, _ in running:
                stream.cancel()

    def speed(self) -> dict[str, float]:
        """engine_busy: share of the time in which the engine ran. rows_in_use: mean share of its rows, while
        there was work for all of them (at the end there is not)."""
        m = self._measured
        return {
            "seconds": m.wall,
            "tokens": m.tokens,
            "engine_busy": m.steps / m.wall if m.wall else 0.0,
            "rows_in_use": m.full / m.supplied if m.supplied else 0.0,
        }

    def _submit(self, ask: Ask) -> Stream | Refusal:
        def attempt(short: Ask) -> str | None:
            try:
                self._engine.submit(short.messages, **_options(short)).cancel()
            except UserError as error:
                return f"{error} ({_BOUNDS})"
            return None

        try:
            return self._engine.submit(ask.messages, **_options(ask))
        except UserError as error:
            return self._refusals.judge(ask, f"{error} ({_BOUNDS})", attempt)

    def _reply(self, ask: Ask, stream: Stream, done: Completion, seconds: float) -> Reply:
        tokenizer = self._engine.model.tokenizer
        assert tokenizer is not None
        prompt_text = tokenizer.decode(stream.prompt)
        # Ids tell a control token from its name in letters; where a stop string cut the text, only the text
        # is cut.
        message: Message = (
            parse(done.text, prompt_text)
            if ask.settings["stop"]
            else parse_tokens(tokenizer, done.tokens, stream.prompt)
        )
        is_open = thought_is_open(done.text, message, start_of(tokenizer, stream.prompt))
        thought_tokens = _thought_tokens(done.tokens, is_open, tokenizer)
        return Reply(
            text=done.text,
            thought=message.reasoning,
            answer="" if is_open else message.content or "",
            finish_reason=done.finish_reason,
            unfinished_thought=is_open,
            prompt_tokens=len(stream.prompt),
            thought_tokens=thought_tokens,
            answer_tokens=len(done.tokens) - thought_tokens,
            seconds=seconds,
        )


def _options(ask: Ask) -> dict[str, Any]:
    given = ask.settings
    return {
        "max_new_tokens": given["max_tokens"],
        "temperature": float(given["temperature"]),
        "top_p": given["top_p"],
        "top_k": given["top_k"],
        "stop": tuple(given["stop"]),
        "enable_thinking": given["thinking"],
        "seed": ask.seed,
    }


def _thought_tokens(tokens: list[int], is_open: bool, tokenizer: Tokenizer) -> int:
    """Tokens up to the end of the last thought, its marks included."""
    if is_open:
        return len(tokens)
    end = tokenizer.control_tokens.get(control.CHANNEL_END)
    return len(tokens) - tokens[::-1].index(end) if end in tokens else 0
