"""What a person sees while a demo goes: numbered parts, and the clock in front of every one."""

import time
from dataclasses import dataclass, field


@dataclass
class Narration:
    """Prints parts as they begin, and remembers how long each took.

    parts: how many there will be. seconds: (title, wall seconds, CPU seconds) of those that ended.
    """

    parts: int
    seconds: list[tuple[str, float, float]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _part: tuple[str, float, float] | None = None

    def part(self, title: str) -> None:
        """End the part before, begin the next."""
        self.end()
        self._part = (title, time.monotonic(), time.process_time())
        self.say(f"\n[{self.clock}] {len(self.seconds) + 1}/{self.parts} {title}")

    def end(self) -> None:
        """End the part under way, if there is one."""
        if self._part is not None:
            title, wall, cpu = self._part
            self.seconds.append((title, time.monotonic() - wall, time.process_time() - cpu))
            self._part = None

    def say(self, text: str) -> None:
        """Print at once, also where the output is a pipe."""
        print(text, flush=True)

    @property
    def clock(self) -> str:
        """Time since the beginning, m:ss."""
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02d}"
