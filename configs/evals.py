"""Evaluation runs, typed, and their presets. What the values do: eval/.

A preset says how to ask: which protocol, how many items, how many samples. What only the user can name (model
or server, files of tasks, folder) is empty in all of them; `require` asks for it.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

from configs.checks import ConfigError, check
from configs.mesh import MeshConfig

Protocol = Literal["thinking", "reference"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalModel:
    """The model, run in this process."""

    path: str = ""
    """Folder of the model: Hugging Face, one of ours, or a training run's with an export in it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of parameters and computation, whatever the files hold."""
    max_slots: int = 32
    """Most answers that are written together; a power of two."""
    max_tokens: int = 65_536
    """Positions that all of them together may hold; prompt and answer of one must fit."""
    drafter: str = ""
    """Guesses ahead, for speed alone: folder of the model's drafter, or ngram."""

    def __post_init__(self) -> None:
        slots = self.max_slots
        power = slots >= 1 and slots & (slots - 1) == 0
        check(power, "model.max_slots", slots, "a power of two")
        check(self.max_tokens >= 128, "model.max_tokens", self.max_tokens, "at least 128, a page")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Instead of a model: a server that speaks OpenAI's chat completions (vLLM, llama.cpp, SGLang, ...)."""

    url: str = ""
    """Its base, such as http://localhost:8000/v1. The key, if it wants one, is read from the environment
    variable OPENAI_API_KEY and from nowhere else."""
    model: str = ""
    """Name of the model there; empty: the only one that it has."""
    in_flight: int = 64
    """Requests at once."""
    timeout: float = 3600.0
    """Seconds that one answer may take."""
    patience: float = 300.0
    """Seconds to try again for while it cannot be reached or is overloaded; then the run ends, resumable."""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"server.url is {self.url!r}; it must begin with http:// or https://")
        check(self.in_flight >= 1, "server.in_flight", self.in_flight, "at least 1")
        check(self.timeout > 0, "server.timeout", self.timeout, "above 0 seconds")
        check(self.patience >= 0, "server.patience", self.patience, "at least 0 seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to generate. None: as the benchmark says for the protocol."""

    samples: int | None = None
    """Answers to every item, each with a seed of its own."""
    max_tokens: int | None = None
    """Most tokens of an answer, its thought included."""
    temperature: float | None = None
    """0 always takes the likeliest token."""
    top_p: float | None = None
    """Draw from the likeliest tokens that share this probability; 1: from all."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens; 0: from all."""
    thinking: bool | None = None
    """Let the model think first."""

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[Callable[[Any], bool], str]] = {
            "samples": (lambda n: n >= 1, "at least 1"),
            "max_tokens": (lambda n: n >= 1, "at least 1"),
            "temperature": (lambda t: 0 <= t < float("inf"), "0 or above"),
            "top_p": (lambda p: 0 < p <= 1, "above 0 and at most 1 (1: off)"),
            "top_k": (lambda k: k >= 0, "at least 0 (0: off)"),
        }
        for name, (good, bound) in bounds.items():
            value = getattr(self, name)
            check(value is None or good(value), f"generation.{name}", value, bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiveCodeBenchConfig:
    """Which of LiveCodeBench's problems, and how programs are checked; stands beside the score."""

    release: str = ""
    """v1 to v6: the files of a folder that belong to it; empty: what the path holds."""
    start: str = ""
    """First day of contests, such as 2024-08-01; empty: from the beginning."""
    end: str = ""
    """Last day of contests; empty: to the end."""
    checking: Literal["strict", "official"] = "strict"
    """strict: as a program runs anywhere. official: with the quirks of the benchmark's own checker."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeforcesConfig:
    """What a rating on Codeforces needs."""

    standings: str = ""
    """File with the contests' standings (docs/code_benchmarks.md); without it there is no Elo."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One model, some benchmarks, one way to ask."""

    model: EvalModel = EvalModel()
    server: ServerConfig = ServerConfig()
    tasks: tuple[str, ...] = ()
    """Benchmarks as NAME=PATH, such as aime_2026=data/aime_2026.jsonl."""
    protocol: Protocol = "thinking"
    """thinking: as suits a model that thinks first. reference: as the benchmark's authors ask and read
    answers."""
    limit: int = 0
    """So many items of each benchmark; 0: all."""
    limit_by: Literal["sample", "first"] = "sample"
    """Which: drawn by the seed, or the first of the file."""
    generation: GenerationConfig = GenerationConfig()
    livecodebench: LiveCodeBenchConfig = LiveCodeBenchConfig()
    codeforces: CodeforcesConfig = CodeforcesConfig()
    mesh: MeshConfig = MeshConfig(fsdp=1)
    sandbox: Literal["bubblewrap", "weak"] = "bubblewrap"
    """How programs that the model wrote are kept in, where a benchmark runs them (docs/sandbox.md)."""
    workdir: str = ""
    """Folder of this run: generations, verdicts, results. The same command continues it."""
    seed: int = 0
    """Seed of the draws, of the order of items, and of which are drawn by limit."""

    def __post_init__(self) -> None:
        check(self.limit >= 0, "limit", self.limit, "at least 0 (0: all)")
        check(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2**31 - 1")
        self.paths()

    def options(self) -> dict[str, dict[str, str]]:
        """What is asked of benchmarks beside their path, by name; empty values left out."""
        window, standings = dataclasses.asdict(self.livecodebench), self.codeforces.standings
        found = {"livecodebench": {name: value for name, value in window.items() if value}}
        if standings:
            found["codeforces"] = {"standings": os.path.abspath(standings)}
        return found

    def paths(self) -> dict[str, str]:
        """Path of every benchmark by its name."""
        found: dict[str, str] = {}
        for text in self.tasks:
            name, _, path = text.partition("=")
            if not name or not path:
                raise ConfigError(
                    f"tasks has {text!r}; it must be NAME=PATH, such as aime_2026=aime_2026.jsonl"
                )
            if name in found:
                raise ConfigError(f"tasks has {name} twice; name each benchmark once")
            found[name] = path
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(EvalConfig):
    """Several models or ways to ask, on the same benchmarks, into one folder."""

    checkpoints: tuple[str, ...] = ()
    """Folders of models, quoted globs of them, or folders of training runs: each of their checkpoints."""
    settings: tuple[str, ...] = ()
    """Ways to ask, each as NAME=VALUE,...: of protocol and what is under generation, such as
    temperature=0,samples=1 or protocol=reference. None given: that of the preset and the flags."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.variants()

    def variants(self) -> list["SweepConfig"]:
        """This configuration once for every entry of settings."""
        return [_changed(self, text) for text in self.settings] or [self]


def _changed(config: SweepConfig, text: str) -> SweepConfig:
    known = {field.name: field.type for field in dataclasses.fields(GenerationConfig)}
    changes: dict[str, Any] = {}
    protocol = config.protocol
    for part in text.split(","):
        name, _, word = part.strip().partition("=")
        if name == "protocol":
            if word not in ("thinking", "reference"):
                raise ConfigError(f"settings has {part!r}; protocols are thinking and reference")
            protocol = word  # type: ignore[assignment]
        elif name not in known:
            raise ConfigError(
                f"settings has {part!r}; known names: protocol, {', '.join(known)}, each as NAME=VALUE"
            )
        else:
            changes[name] = _value(part, word, str(known[name]))
    generation = dataclasses.replace(config.generation, **changes)
    return dataclasses.replace(config, protocol=protocol, generation=generation, settings=())


def _value(part: str, word: str, kind: str) -> Any:
    """The value that a word stands for; kind: the field's annotation."""
    try:
        if "bool" in kind:
            return {"true": True, "false": False}[word.lower()]
        return float(word) if "float" in kind else int(word)
    except (KeyError, ValueError):
        wanted = "true or false" if "bool" in kind else "a number"
        raise ConfigError(f"settings has {part!r}; {word!r} is not {wanted}") from None


def require(config: EvalConfig) -> None:
    """Raise `ConfigError` where something that only the user can name is still empty."""
    sweeping = isinstance(config, SweepConfig)
    several = config.checkpoints if isinstance(config, SweepConfig) else ()
    given = [
        name
        for name, value in (
            ("model.path", config.model.path),
            ("server.url", config.server.url),
            ("checkpoints", several),
        )
        if value
    ]
    if not given:
        raise ConfigError(
            f"no model; give {'--checkpoints FOLDER ..., ' if sweeping else ''}--model.path FOLDER, "
            "or --server.url URL for one that a server runs"
        )
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} all say which model; give one of them")
    if not config.tasks:
        raise ConfigError("no benchmark; give --tasks NAME=PATH ...")
    if not config.workdir:
        raise ConfigError("no folder to keep the run in; give --workdir FOLDER")


def quick() -> EvalConfig:
    """A look: 50 items of each benchmark, drawn by the seed, one answer each of at most 8192 tokens.

    Command: `python -m eval.run quick --model.path DIR --tasks NAME=FILE --workdir RUN`
    Hardware: whatever holds the model: 10 GB in bfloat16 for E2B.
    Expect: intervals of 20 points and more; good for finding a broken model, not for comparing two sound ones.
    """
    return EvalConfig(limit=50, generation=GenerationConfig(samples=1, max_tokens=8192))


def thinking() -> EvalConfig:
    """Everything, as suits a thinking model: temperature 1, top-p 0.95, top-k 64, long thoughts, all samples.

    Command: `python -m eval.run thinking --model.path DIR --tasks NAME=FILE --workdir RUN`
    Hardware: whatever holds the model and its answers: 10 GB in bfloat16 for E2B, and the cache.
    Expect: scores to put beside published ones (results.json has both); with the weights' own sampling
    settings from the model card. Hours to days on one device for the larger benchmarks.
    """
    return EvalConfig()


def reference() -> EvalConfig:
    """Everything, as each benchmark's authors ask: their prompts, their settings, their reading of answers.

    Command: `python -m eval.run reference --model.path DIR --tasks NAME=FILE --workdir RUN`
    Hardware: whatever holds the model: 10 GB in bfloat16 for E2B.
    Expect: scores as other models' were measured by these authors. Most limits date from before models thought.
    """
    return EvalConfig(protocol="reference")


PRESETS: dict[str, Callable[[], EvalConfig]] = {
    "quick": quick,
    "thinking": thinking,
    "reference": reference,
}


def _swept(preset: Callable[[], EvalConfig]) -> Callable[[], SweepConfig]:
    def one() -> SweepConfig:
        plain = preset()
        values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        return SweepConfig(**values)

    one.__doc__ = (
        (preset.__doc__ or "")
        .replace("eval.run", "eval.sweep")
        .replace("--model.path DIR", "--checkpoints DIR DIR")
    )
    return one


#: The same for several models or settings.
SWEEPS: dict[str, Callable[[], SweepConfig]] = {
    name: _swept(preset) for name, preset in PRESETS.items()
}
