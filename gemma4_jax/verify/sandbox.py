"""Programs that a model wrote, run where they can do no harm."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use. seconds: wall clock; output_bytes: of stdout and stderr each."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 64 << 10
    disk_bytes: int = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended. status: "ok" (exit code 0), "failed", "timeout", "output", "memory", "signal"."""

    status: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """How programs are kept in. limits: unless a call gives its own."""

    limits: Limits = Limits()

    def run(self, program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
        """Run a Python program to its end."""
        raise NotImplementedError
