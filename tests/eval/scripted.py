"""A source whose answers are made of the ask alone: the runner without a model."""

import hashlib
from collections.abc import Callable, Generator, Iterable

from eval.asks import Ask
from eval.backend import Refusal, Reply

Say = Callable[[Ask], Reply | Refusal]


def reply(text: str, **changes: object) -> Reply:
    values: dict[str, object] = dict(
        text=text, thought=None, answer=text, finish_reason="stop", unfinished_thought=False,
        prompt_tokens=3, thought_tokens=0, answer_tokens=len(text), seconds=0.25,
    )  # fmt: skip
    return Reply(**{**values, **changes})  # type: ignore[arg-type]


def babble(ask: Ask) -> Reply:
    """Letters that depend on everything a model's would."""
    return reply(hashlib.sha256(f"{ask.key} {ask.seed}".encode()).hexdigest()[:8])


class Scripted:
    """Source and back end in one; `asked`: keys it was asked for. stop_after: answers, then Ctrl-C."""

    def __init__(self, say: Say = babble, name: str = "m", stop_after: int | None = None) -> None:
        self.name, self.where, self.fingerprint = name, f"/models/{name}", f"print-of-{name}"
        self.asked: list[Ask] = []
        self._say, self._left = say, stop_after

    def open(self) -> "Scripted":
        return self

    def notes(self) -> list[str]:
        return []

    def answers(
        self, asks: Iterable[Ask]
    ) -> Generator[tuple[Ask, Reply | Refusal] | None, None, None]:
        for ask in asks:
            if self._left is not None:
                if not self._left:
                    raise KeyboardInterrupt
                self._left -= 1
            self.asked.append(ask)
            yield None
            yield ask, self._say(ask)

    def speed(self) -> dict[str, float]:
        return {"seconds": 1.0, "tokens": 100.0}
