"""The typed configuration of a training run, and nothing that needs jax.

Every field has a docstring (tyro shows it in `--help`) and is checked where it is set, so that a
bad value stops a run before anything is loaded. What a user must name himself (data, start, work
folder) is empty in the presets; `SFTConfig.require` and `DPOConfig.require` ask for it. Not here:
what the values do (train/), presets (configs/sft.py, configs/dpo.py), the parser (configs/cli.py).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that cannot be run; `str(error)` is one line: value, bound, way out."""


def _check(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r}; it must be {bound}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where the model comes from and how it computes: give `path` or `architecture`, not both."""

    path: str = ""
    """Folder to start from: Hugging Face (config.json + safetensors) or an Orbax folder of ours."""
    architecture: str = ""
    """Train from scratch: a model preset (such as tiny-ple) or the path of a config.json."""
    tokenizer: str = ""
    """Tokenizer file or folder; empty: the one in `path`, else the Gemma 4 one we ship."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which parameters are held and updated."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products; norms, router, softmax and loss stay float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""

    def __post_init__(self) -> None:
        if self.path and self.architecture:
            raise ConfigError(
                f"model.path is {self.path!r} and model.architecture is {self.architecture!r}; "
                "give one: path to continue from weights, architecture to start from scratch"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on."""

    path: str = ""
    """A .jsonl file, or a folder of them (taken in the order of their names)."""
    max_length: int = 2048
    """Longest row in tokens, prompt included."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What to do with rows longer than max_length: stop, leave them out, or cut their end off."""
    cache_dir: str = ""
    """Where tokenised rows are kept; empty: `cache` in the work folder."""

    def __post_init__(self) -> None:
        _check(self.max_length >= 2, "data.max_length", self.max_length, "at least 2 tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTDataConfig(DataConfig):
    """What is trained on; rows are {"messages": [...]}, optionally with "tools"."""

    packing: bool = False
    """Put several short rows into one sequence of max_length (they do not see each other)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How much goes into one optimiser step."""

    rows: int = 16
    """Sequences (SFT) or pairs (DPO) in one optimiser step."""
    accumulation: int = 1
    """Micro-batches that one step is split into; the result is that of one big batch."""

    def __post_init__(self) -> None:
        _check(self.rows >= 1, "batch.rows", self.rows, "at least 1")
        _check(self.accumulation >= 1, "batch.accumulation", self.accumulation, "at least 1")
        _check(
            self.rows % self.accumulation == 0,
            "batch.accumulation",
            self.accumulation,
            f"a divisor of batch.rows = {self.rows}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    peak_lr: float = 1e-5
    """Learning rate after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls from peak_lr to peak_lr * final_lr_fraction at the last step."""
    warmup_fraction: float = 0.03
    """Share of all steps in which the rate climbs from 0 to peak_lr."""
    final_lr_fraction: float = 0.0
    """Rate at the last step as a share of peak_lr (cosine and linear)."""
    b1: float = 0.9
    """Decay of the mean of gradients."""
    b2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.0
    """Decoupled decay of projection matrices; embeddings, norms and scales never decay."""
    clip_norm: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down (logged: the norm before)."""
    max_bad_steps: int = 10
    """Stop after so many steps in a row with a loss or gradient not finite (each is skipped)."""

    def __post_init__(self) -> None:
        _check(0 < self.peak_lr < float("inf"), "optim.peak_lr", self.peak_lr, "above 0 and finite")
        for name in ("warmup_fraction", "final_lr_fraction"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"optim.{name}", value, "between 0 and 1")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"optim.{name}", value, "at least 0 and below 1")
        _check(self.eps > 0, "optim.eps", self.eps, "above 0")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        _check(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0 (inf: no clipping)")
        _check(self.max_bad_steps >= 1, "optim.max_bad_steps", self.max_bad_steps, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how often, and where to."""

    workdir: str = ""
    """Folder of this run: config, checkpoints, metrics, plot. The same command continues it."""
    epochs: float = 1.0
    """Passes over the data; ignored where steps is set."""
    steps: int | None = None
    """Optimiser steps of the whole run; None: as many as `epochs` needs."""
    log_every: int = 10
    """Steps between lines of metrics."""
    save_every: int = 500
    """Steps between checkpoints (the last step, SIGTERM and Ctrl-C save as well)."""
    keep: int = 2
    """Checkpoints that are kept; older ones are deleted."""
    export_huggingface: bool = False
    """Write the result as a Hugging Face folder too (`huggingface` in the work folder)."""

    def __post_init__(self) -> None:
        _check(0 < self.epochs < float("inf"), "run.epochs", self.epochs, "above 0 and finite")
        _check(self.steps is None or self.steps >= 1, "run.steps", self.steps, "at least 1")
        for name in ("log_every", "save_every", "keep"):
            value = getattr(self, name)
            _check(value >= 1, f"run.{name}", value, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """The preference loss: -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected))."""

    beta: float = 0.1
    """Strength of the pull towards the reference (arXiv 2305.18290, equation 7)."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """Reference log-probabilities: one pass before training (then freed), or at every step."""

    def __post_init__(self) -> None:
        _check(0 < self.beta < float("inf"), "loss.beta", self.beta, "above 0 and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters: the model stays as it is, small matrices beside its own are trained."""

    rank: int = 0
    """Rank of the adapters; 0: no adapters, all parameters are trained."""
    alpha: float = 16.0
    """Their product counts alpha / rank times (rslora: alpha / sqrt(rank))."""
    targets: tuple[Literal["attention", "mlp", "experts", "per_layer_input"], ...] = (
        "attention",
        "mlp",
        "experts",
    )
    """What is adapted, of what the model has: never the router, embeddings or norms."""
    dropout: float = 0.0
    """Share of an adapter's inputs set to 0 in training."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks from learning slowly (arXiv 2312.03732)."""
    dora: bool = False
    """Learn lengths of columns apart from directions (arXiv 2402.09353); not for experts."""
    base_quantization: Literal["none", "int8", "nf4"] = "none"
    """Hold the matrices that are not trained in 8 or 4 bits (QLoRA); tables stay in param_dtype."""

    def __post_init__(self) -> None:
        _check(self.rank >= 0, "lora.rank", self.rank, "at least 0 (0: no adapters)")
        _check(0 < self.alpha < float("inf"), "lora.alpha", self.alpha, "above 0 and finite")
        known = ("attention", "mlp", "experts", "per_layer_input")
        ok = bool(self.targets) and set(self.targets) <= set(known)
        _check(ok, "lora.targets", self.targets, f"one or more of {', '.join(known)}")
        _check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "at least 0 and below 1")
        if not self.rank:
            for name, off in {
                "dropout": 0.0, "rslora": False, "dora": False, "base_quantization": "none",
            }.items():  # fmt: skip
                bound = f"{off!r} while lora.rank is 0 (set lora.rank)"
                _check(getattr(self, name) == off, f"lora.{name}", getattr(self, name), bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What SFT and DPO have in common."""

    model: ModelSource = ModelSource()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoRAConfig = LoRAConfig()
    run: RunConfig = RunConfig()
    seed: int = 0
    """Seed of initialisation, data order and everything else that is random."""

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2**31 - 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainConfig):
    """Supervised fine-tuning on the assistant turns of dialogues."""

    data: SFTDataConfig = SFTDataConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainConfig):
    """Direct preference optimisation on pairs of a chosen and a rejected answer."""

    data: DataConfig = DataConfig()
    loss: PreferenceConfig = PreferenceConfig()


AnyConfig = SFTConfig | DPOConfig


def require(config: AnyConfig) -> None:
    """Raise `ConfigError` where something that only the user can name is still empty."""
    if not (config.model.path or config.model.architecture):
        raise ConfigError(
            "no model; give --model.path FOLDER to start from weights, "
            "or --model.architecture PRESET to start from scratch"
        )
    if not config.data.path:
        raise ConfigError("no data; give --data.path FILE.jsonl (or a folder of them)")
    if not config.run.workdir:
        raise ConfigError("no work folder; give --run.workdir FOLDER")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted name, value) of every leaf of a configuration, in declared order."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def render(config: AnyConfig) -> str:
    """The resolved configuration as text, one `name = value` a line."""
    return "".join(f"{name} = {value!r}\n" for name, value in flatten(config))
