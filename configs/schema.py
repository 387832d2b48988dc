"""The typed configuration of a training run, and nothing that needs jax.

Every field has a docstring (tyro shows it in `--help`) and is checked where it is set, so that a
bad value stops a run before anything is loaded. What a user must name himself (data, start, work
folder) is empty in the presets; `SFTConfig.require` and `DPOConfig.require` ask for it. Not here:
losses and routers (losses.py), adapters (adapters.py), mesh axes (mesh.py), what the values do (train/),
presets (sft.py, dpo.py, hardware.py), the parser (cli.py).
"""

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal

from configs.adapters import LoRAConfig
from configs.checks import ConfigError, check
from configs.losses import SORTING, PreferenceConfig, RouterConfig, SFTLossConfig
from configs.mesh import MeshConfig


def _weighted(text: str) -> tuple[Fraction, str]:
    """Weight and path of one entry of data.mixture."""
    weight, _, path = text.partition(":")
    try:
        share = Fraction(weight)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if share <= 0 or not path:
        raise ConfigError(
            f"data.mixture has {text!r}; it must be WEIGHT:PATH with a weight above 0, such as 0.7:a.jsonl"
        )
    return share, path


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
    gpu_kernels: bool = False
    """On GPUs, our Triton kernels in the place of XLA's attention. Compiled for H100, never run on a GPU:
    run `python -m benchmarks.kernels` there first."""

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
    """A file (.jsonl, .parquet, .array_record), a folder of them in order of names, or a quoted glob."""
    mixture: tuple[str, ...] = ()
    """Instead of path: several of those as WEIGHT:PATH, such as 0.7:math.jsonl 0.3:chat/; weights are shares
    of the rows trained on (with packing: of the packed sequences)."""
    validation: tuple[str, ...] = ()
    """Held-out files or folders: their loss is measured with every checkpoint, each under its own name."""
    max_length: int = 2048
    """Longest row in tokens, prompt included."""
    packing: bool = False
    """Put several short rows into one sequence of max_length (they do not see each other). DPO: several
    pairs, the prompt of each once; a pair too long for max_length makes all sequences longer."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What to do with rows longer than max_length: stop, leave them out, or cut their end off."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be read: stop, or go on and list it in rejected.jsonl."""
    thoughts: Literal["keep", "drop"] = "keep"
    """Learn the thoughts of messages, each in an example that ends with its turn, or leave them out."""
    buckets: int = 1
    """How many lengths rows are padded to; a batch has rows of one. Each costs a compilation."""
    workers: int = 0
    """Processes that make batches; 0: threads of this one, enough unless input_wait is above zero."""
    cache_dir: str = ""
    """Where tokenised rows are kept; empty: `cache` in the work folder."""

    def __post_init__(self) -> None:
        check(self.max_length >= 2, "data.max_length", self.max_length, "at least 2 tokens")
        check(self.buckets >= 1, "data.buckets", self.buckets, "at least 1")
        check(self.workers >= 0, "data.workers", self.workers, "at least 0")
        if self.path and self.mixture:
            raise ConfigError(
                f"data.path is {self.path!r} and data.mixture is {' '.join(self.mixture)!r}; give one"
            )
        self.sources()
        if self.packing and self.buckets > 1:
            raise ConfigError(
                f"data.buckets is {self.buckets} and data.packing is on; packed sequences all have "
                "max_length: set one of them"
            )

    def sources(self) -> list[tuple[Fraction, str]]:
        """(weight, path) of everything that is trained on."""
        if not self.mixture:
            return [(Fraction(1), self.path)]
        return [_weighted(text) for text in self.mixture]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How much goes into one optimiser step."""

    rows: int = 16
    """Sequences in one optimiser step; DPO without packing: pairs."""
    accumulation: int = 1
    """Micro-batches that one step is split into; the result is that of one big batch."""

    def __post_init__(self) -> None:
        check(self.rows >= 1, "batch.rows", self.rows, "at least 1")
        check(self.accumulation >= 1, "batch.accumulation", self.accumulation, "at least 1")
        check(
            self.rows % self.accumulation == 0,
            "batch.accumulation",
            self.accumulation,
            f"a divisor of batch.rows = {self.rows}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its schedule, and what happens to steps that went wrong."""

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    """adamw: two moments, 8 bytes a parameter. adafactor: second moments factored, next to none.
    muon: orthogonalised momentum for projections, 4 bytes a parameter, Nesterov AdamW for the rest."""
    peak_lr: float = 1e-5
    """Learning rate after the warm-up (muon: scaled so that AdamW's rates fit)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls from peak_lr to peak_lr * final_lr_fraction at the last step."""
    warmup_fraction: float = 0.03
    """Share of all steps in which the rate climbs from 0 to peak_lr."""
    final_lr_fraction: float = 0.0
    """Rate at the last step as a share of peak_lr (cosine and linear)."""
    b1: float = 0.9
    """Decay of the mean of gradients (adafactor keeps none)."""
    b2: float = 0.999
    """Decay of the mean of squared gradients (adamw, and muon's AdamW part)."""
    eps: float = 1e-8
    """Added to the root of the mean square (adamw)."""
    muon_momentum: float = 0.95
    """Decay of the momentum that muon orthogonalises."""
    weight_decay: float = 0.0
    """Decoupled decay of projection matrices; embeddings, norms and scales never decay."""
    clip_norm: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down (logged: the norm before)."""
    stochastic_rounding: bool = False
    """Round updated bfloat16 parameters up or down at random, right on average (else to nearest)."""
    average_decay: float = 0.0
    """Decay of a moving average of the parameters, exported in their place; 0: none is kept."""
    spike_sigma: float = 0.0
    """Skip steps whose loss is so many deviations above its running mean; 0: none is called a spike."""
    max_bad_steps: int = 10
    """Stop after so many steps in a row that were skipped (loss or gradient not finite, or a spike)."""
    group_norms: bool = False
    """Log the gradient norm of each group of parameters too (attention, mlp, experts, ...)."""
    offload: bool = False
    """Keep the optimiser's moments in host memory between steps, on the device only for the update."""

    def __post_init__(self) -> None:
        check(0 < self.peak_lr < float("inf"), "optim.peak_lr", self.peak_lr, "above 0 and finite")
        for name in ("warmup_fraction", "final_lr_fraction"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"optim.{name}", value, "between 0 and 1")
        for name in ("b1", "b2", "muon_momentum", "average_decay"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optim.{name}", value, "at least 0 and below 1")
        check(self.eps > 0, "optim.eps", self.eps, "above 0")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        check(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0 (inf: no clipping)")
        check(self.spike_sigma >= 0, "optim.spike_sigma", self.spike_sigma, "at least 0 (0: off)")
        check(self.max_bad_steps >= 1, "optim.max_bad_steps", self.max_bad_steps, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how often, and where to."""

    workdir: str = ""
    """Folder of this run: config, checkpoints, metrics, plot. The same command continues it."""
    epochs: float = 1.0
    """Passes over the data (of a mixture: as many rows as all of it has); ignored where steps is set."""
    steps: int | None = None
    """Optimiser steps of the whole run; None: as many as `epochs` needs."""
    log_every: int = 10
    """Steps between lines of metrics."""
    save_every: int = 500
    """Steps between checkpoints (the last step, SIGTERM and Ctrl-C save as well)."""
    keep: int = 2
    """Newest checkpoints that are kept; older ones are deleted."""
    keep_every: int = 0
    """Keep checkpoints at multiples of so many steps too; 0: not for that reason."""
    keep_best: int = 0
    """Keep so many checkpoints of the smallest validation loss too."""
    samples: int = 3
    """Prompts of the data that are answered before and after training, for report.html; 0: none."""
    tensorboard: bool = False
    """Write metrics for TensorBoard too (`tensorboard` in the work folder; needs tensorboardX)."""
    profile_at: int = 0
    """Record what the device does for profile_steps steps from this one on (`profile`); 0: never."""
    profile_steps: int = 3
    """Steps of a profile."""
    peak_tflops: float = 0.0
    """Peak of one device for the MFU, in TFLOP/s; 0: that of the data sheet, if it is a known device."""
    export_huggingface: bool = False
    """Write the result as a Hugging Face folder too (`huggingface` in the work folder)."""

    def __post_init__(self) -> None:
        check(0 < self.epochs < float("inf"), "run.epochs", self.epochs, "above 0 and finite")
        check(self.steps is None or self.steps >= 1, "run.steps", self.steps, "at least 1")
        for name in ("log_every", "save_every", "keep", "profile_steps"):
            value = getattr(self, name)
            check(value >= 1, f"run.{name}", value, "at least 1")
        for name in ("keep_every", "keep_best", "samples", "profile_at", "peak_tflops"):
            value = getattr(self, name)
            check(value >= 0, f"run.{name}", value, "at least 0 (0: off)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What SFT and DPO have in common."""

    model: ModelSource = ModelSource()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoRAConfig = LoRAConfig()
    router: RouterConfig = RouterConfig()
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    """Seed of initialisation, data order and everything else that is random."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2**31 - 1")
        if self.run.keep_best:
            check(
                bool(self.data.validation),
                "run.keep_best",
                self.run.keep_best,
                "0 without data.validation: the best is that of the smallest validation loss",
            )
        check(
            not (self.router.noise and self.lora.rank),
            "router.noise",
            self.router.noise,
            f"False with lora.rank {self.lora.rank}: adapters leave routers as they are",
        )
        if self.optim.stochastic_rounding:
            check(
                self.model.param_dtype == "bfloat16",
                "optim.stochastic_rounding",
                True,
                f"False with model.param_dtype {self.model.param_dtype}: only bfloat16 is rounded",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainConfig):
    """Supervised fine-tuning on the assistant turns of dialogues."""

    loss: SFTLossConfig = SFTLossConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainConfig):
    """Direct preference optimisation on pairs of a chosen and a rejected answer."""

    loss: PreferenceConfig = PreferenceConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora.rank and self.loss.sync_every:
            raise ConfigError(
                f"loss.sync_every is {self.loss.sync_every} and lora.rank {self.lora.rank}; with adapters the "
                "reference is the model without them, which does not move: set one of them to 0"
            )
        sorting = sorted(SORTING & set(self.loss.types))
        if sorting and self.batch.accumulation > 1:
            raise ConfigError(
                f"batch.accumulation is {self.batch.accumulation}; {sorting[0]} ranks the pairs of a "
                "whole batch, so it must be 1 (lower batch.rows, or take another of loss.types)"
            )
        if self.data.packing:
            unfit = [*sorting, *(["loss.ld_alpha"] if self.loss.ld_alpha is not None else [])]
            if unfit:
                raise ConfigError(
                    f"data.packing is on; {unfit[0]} needs pairs in rows of their own: turn packing off"
                )


AnyConfig = SFTConfig | DPOConfig


def require(config: AnyConfig) -> None:
    """Raise `ConfigError` where something that only the user can name is still empty."""
    if not (config.model.path or config.model.architecture):
        raise ConfigError(
            "no model; give --model.path FOLDER to start from weights, "
            "or --model.architecture PRESET to start from scratch"
        )
    if not (config.data.path or config.data.mixture):
        raise ConfigError(
            "no data; give --data.path FILE.jsonl (or a folder, or a glob), or --data.mixture"
        )
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


def render(config: Any) -> str:
    """The resolved configuration as text, one `name = value` a line."""
    return "".join(f"{name} = {value!r}\n" for name, value in flatten(config))
