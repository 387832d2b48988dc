"""Any server that speaks OpenAI's chat completions as a back end: vLLM, llama.cpp, SGLang, a hosted one.

Many requests are in flight, each in a thread that waits. What OpenAI's interface lacks (top_k, thinking)
stands in the body beside the rest, where these servers take it. Not here: connections and retries
(`client.py`), whether the server does as it is told (`probe.py`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eval.asks import Ask
from eval.backend import Refusal, Refusals, Reply
from eval.client import Client, Failed, Refused
from eval.probe import UNBENT
from eval.thoughts import thought_is_open
from gemma4_jax.errors import UserError
from gemma4_jax.text import control
from gemma4_jax.text.parse import parse, start_of

# Ends a prompt that asks for a thought, for the parser: the server's own prompt is not seen.
_ASKED = f"{control.THINK}{control.TURN}model\n"
_HEARTBEAT = 0.5  # seconds


class ServerBackend:
    """Answers by a server. model: its name there. off: what it takes for a top_k that is off."""

    def __init__(self, client: Client, model: str, in_flight: int, off: int) -> None:
        self._client, self._model, self._in_flight, self._off = client, model, in_flight, off
        self._begin = self._end = time.perf_counter()
        self._tokens = 0
        self._refusals, self._lock = Refusals(), threading.Lock()

    def answers(
        self, asks: Iterable[Ask]
    ) -> Generator[tuple[Ask, Reply | Refusal] | None, None, None]:
        """See `backend.Backend`."""
        waiting, running, more = iter(asks), 0, True
        done: queue.Queue[tuple[Ask, Reply | Refusal | BaseException]] = queue.Queue()
        self._begin = self._end = time.perf_counter()
        self._tokens = 0

        def work(ask: Ask) -> None:
            try:
                done.put((ask, self._ask(ask)))
            except BaseException as error:  # told to the thread that reads the queue
                done.put((ask, error))

        pool = ThreadPoolExecutor(self._in_flight)
        try:
            while running or more:
                while more and running < self._in_flight:
                    ask = next(waiting, None)
                    if ask is None:
                        more = False
                    else:
                        pool.submit(work, ask)
                        running += 1
                try:
                    ask, found = done.get(timeout=_HEARTBEAT)
                except queue.Empty:
                    yield None
                    continue
                running -= 1
                if isinstance(found, BaseException):
                    raise found
                if isinstance(found, Reply):
                    self._tokens += found.thought_tokens + found.answer_tokens
                self._end = time.perf_counter()
                yield ask, found
        finally:
            if running:
                self._client.stop()
            pool.shutdown(wait=True, cancel_futures=True)

    def speed(self) -> dict[str, float]:
        """seconds up to the last answer, and tokens of the answers that have come."""
        return {"seconds": self._end - self._begin, "tokens": self._tokens}

    def _ask(self, ask: Ask) -> Reply | Refusal:
        if known := self._refusals.known(ask):
            return known
        start = time.perf_counter()
        try:
            answer = self._post(ask)
        except Failed as error:  # others are answered
            return Refusal(why=str(error))
        except Refused as error:
            with self._lock:  # of all that are refused now, one finds out
                return self._refusals.judge(ask, str(error), self._attempt)
        return read_reply(answer, ask.settings["thinking"], time.perf_counter() - start)

    def _post(self, ask: Ask) -> Any:
        return self._client.post("/chat/completions", request_body(self._model, ask, self._off))

    def _attempt(self, ask: Ask) -> str | None:
        try:
            self._post(ask)
        except Failed:
            return None
        except Refused as error:
            return str(error)
        return None


def request_body(model: str, ask: Ask, off: int) -> dict[str, Any]:
    """The body of a request. off: top_k that is none. Filters that are off are said to be off: a server may
    have its own defaults."""
    given = ask.settings
    body: dict[str, Any] = {
        "model": model,
        "messages": ask.messages,
        "max_tokens": given["max_tokens"],
        "temperature": given["temperature"],
        "top_p": 1.0 if given["top_p"] is None else given["top_p"],
        "top_k": off if given["top_k"] is None else given["top_k"],
        "seed": ask.seed,
        "chat_template_kwargs": {"enable_thinking": given["thinking"]},
        # A server without a parser for thoughts would leave out the tokens that end them.
        "skip_special_tokens": False,
        **UNBENT,
    }
    if given["stop"]:
        body["stop"] = given["stop"]
    return body


def read_reply(answer: Any, thinking: bool, seconds: float) -> Reply:
    """A chat completion as a reply; UserError if it is none."""
    try:
        choice = answer["choices"][0]
        said = choice["message"]
        content = said.get("content") or ""
        thought = said.get("reasoning_content") or said.get("reasoning") or None
        finish = choice.get("finish_reason") or "stop"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UserError(f"the server's answer is no chat completion: {str(answer)[:120]}") from None
    if thought is not None:
        # The server has taken the output apart.
        is_open, text = not content.strip(), f"{control.THOUGHT_OPEN}{thought}"
        if not is_open:
            text += f"\n{control.CHANNEL_END}{content}"
    else:
        prompt = _ASKED if thinking else ""
        message, text = parse(content, prompt), content
        is_open = thought_is_open(text, message, start_of(prompt))
        thought, content = message.reasoning, message.content or ""
    answer_text = "" if is_open else content.strip()
    usage: Mapping[str, Any] = answer.get("usage") or {}
    total = int(usage.get("completion_tokens") or 0)
    details = usage.get("completion_tokens_details") or {}
    thoughts = details.get("reasoning_tokens")
    if not thoughts:  # most servers do not tell: by the share of the letters
        share = len(thought or "") / max(1, len(thought or "") + len(answer_text))
        thoughts = round(total * share)
    return Reply(
        text=text,
        thought=thought,
        answer=answer_text,
        finish_reason=finish,
        unfinished_thought=is_open,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        thought_tokens=thoughts,
        answer_tokens=total - thoughts,
        seconds=seconds,
    )
