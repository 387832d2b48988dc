"""The typed configuration of a training run, and nothing that needs jax.

Every field has a docstring (tyro shows it in `--help`) and is checked where it is set, so that a
bad value stops a run before anything is loaded. What a user must name himself (data, start, work
folder) is empty in the presets; `SFTConfig.require` and `DPOConfig.require` ask for it. Not here:
what the values do (train/), presets (configs/sft.py, configs/dpo.py), the parser (configs/cli.py).
"""

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that cannot be run; `str(error)` is one line: value, bound, way out."""


def _check(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r}; it must be {bound}")


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
        _check(self.max_length >= 2, "data.max_length", self.max_length, "at least 2 tokens")
        _check(self.buckets >= 1, "data.buckets", self.buckets, "at least 1")
        _check(self.workers >= 0, "data.workers", self.workers, "at least 0")
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
        _check(0 < self.peak_lr < float("inf"), "optim.peak_lr", self.peak_lr, "above 0 and finite")
        for name in ("warmup_fraction", "final_lr_fraction"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"optim.{name}", value, "between 0 and 1")
        for name in ("b1", "b2", "muon_momentum", "average_decay"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"optim.{name}", value, "at least 0 and below 1")
        _check(self.eps > 0, "optim.eps", self.eps, "above 0")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        _check(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0 (inf: no clipping)")
        _check(self.spike_sigma >= 0, "optim.spike_sigma", self.spike_sigma, "at least 0 (0: off)")
        _check(self.max_bad_steps >= 1, "optim.max_bad_steps", self.max_bad_steps, "at least 1")


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
        _check(0 < self.epochs < float("inf"), "run.epochs", self.epochs, "above 0 and finite")
        _check(self.steps is None or self.steps >= 1, "run.steps", self.steps, "at least 1")
        for name in ("log_every", "save_every", "keep", "profile_steps"):
            value = getattr(self, name)
            _check(value >= 1, f"run.{name}", value, "at least 1")
        for name in ("keep_every", "keep_best", "samples", "profile_at", "peak_tflops"):
            value = getattr(self, name)
            _check(value >= 0, f"run.{name}", value, "at least 0 (0: off)")


PreferenceLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
# They read more of a pair than the difference of its scores, or sort the batch.
_REVERSE_KL_ONLY = frozenset(
    {"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"}
)
_SORTING = frozenset({"aot", "aot_unpaired"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """The preference loss: a weighted sum of terms (train/preference.py has their formulas)."""

    types: tuple[PreferenceLoss, ...] = ("sigmoid",)
    """Terms of the loss. MPO: sigmoid bco_pair sft, with weights 0.8 0.2 1; RPO: sigmoid sft."""
    weights: tuple[float, ...] = ()
    """Weight of each term; empty: 1 each."""
    beta: float = 0.1
    """Strength of the pull towards the reference (arXiv 2305.18290, equation 7)."""
    label_smoothing: float = 0.0
    """Share of pairs assumed to be labelled the wrong way round (robust, exo_pair, aot kinds)."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        "reverse_kl"
    )
    """What the pull towards the reference measures (arXiv 2309.16240)."""
    f_alpha: float = 0.5
    """Order of the alpha divergence."""
    discopop_tau: float = 0.05
    """Temperature of discopop's blend."""
    ld_alpha: float | None = None
    """LD-DPO: weight of the tokens beyond the shorter completion's length; None: all count alike."""
    wpo: bool = False
    """Weight each pair by how likely the policy is to write it (arXiv 2406.11827)."""
    reference: Literal["auto", "precomputed", "live"] = "auto"
    """Reference log-probabilities: one pass before training (then freed), or at every step."""
    sync_every: int = 0
    """TR-DPO: steps between updates of a live reference towards the policy; 0: never."""
    sync_alpha: float = 0.6
    """TR-DPO: share of the policy in an update of the reference (arXiv 2404.09656)."""

    def __post_init__(self) -> None:
        _check(0 < self.beta < float("inf"), "loss.beta", self.beta, "above 0 and finite")
        _check(bool(self.types), "loss.types", self.types, "at least one loss")
        _check(len(set(self.types)) == len(self.types), "loss.types", self.types, "without repeats")
        _check(
            len(self.weights) in (0, len(self.types)),
            "loss.weights",
            self.weights,
            f"empty or one number for each of loss.types = {' '.join(self.types)}",
        )
        _check(
            all(0 <= weight < float("inf") for weight in self.weights)
            and any((*self.weights, not self.weights)),
            "loss.weights",
            self.weights,
            "at least 0, finite, and not all 0",
        )
        smoothing = self.label_smoothing
        _check(0 <= smoothing < 0.5, "loss.label_smoothing", smoothing, "at least 0, below 0.5")
        if "exo_pair" in self.types:
            _check(smoothing > 0, "loss.label_smoothing", smoothing, "above 0 for exo_pair")
        if self.f_divergence != "reverse_kl":
            bad = sorted(_REVERSE_KL_ONLY & set(self.types))
            _check(
                not bad,
                "loss.f_divergence",
                self.f_divergence,
                f"reverse_kl with {', '.join(bad)}: only the difference of two scores has other forms",
            )
        _check(self.discopop_tau > 0, "loss.discopop_tau", self.discopop_tau, "above 0")
        if self.ld_alpha is not None:
            _check(0 <= self.ld_alpha <= 1, "loss.ld_alpha", self.ld_alpha, "between 0 and 1")
        if self.wpo:
            bad = sorted(_SORTING & set(self.types))
            _check(
                not bad, "loss.wpo", True, f"False with {', '.join(bad)}, which re-pair the batch"
            )
        _check(self.sync_every >= 0, "loss.sync_every", self.sync_every, "at least 0 (0: never)")
        _check(0 < self.sync_alpha <= 1, "loss.sync_alpha", self.sync_alpha, "above 0, at most 1")
        if self.sync_every:
            _check(
                self.reference != "precomputed",
                "loss.reference",
                self.reference,
                "live or auto when loss.sync_every moves the reference",
            )

    @property
    def terms(self) -> tuple[tuple[PreferenceLoss, float], ...]:
        """(loss, weight) of each term."""
        return tuple(zip(self.types, self.weights or (1.0,) * len(self.types), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTLossConfig:
    """The supervised loss: negative log-likelihood per target token, and what may be added to it."""

    label_smoothing: float = 0.0
    """Share of each target's probability that is spread over the whole vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser per target token, which keeps logits from drifting."""
    neftune_alpha: float = 0.0
    """Size of the uniform noise on embeddings while training (arXiv 2310.05914; 5 is usual); 0: none."""

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        _check(0 <= smoothing < 1, "loss.label_smoothing", smoothing, "at least 0 and below 1")
        for name in ("z_loss", "neftune_alpha"):
            value = getattr(self, name)
            _check(0 <= value < float("inf"), f"loss.{name}", value, "at least 0 and finite")


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
class RouterConfig:
    """Training of mixture-of-experts routers; without effect on models that have none."""

    balance_loss: float = 0.0
    """Weight of the loss that spreads tokens evenly over experts (1e-2 is usual from scratch)."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser of router logits (1e-3 is usual from scratch)."""
    freeze: bool = False
    """Leave routers as they are: what fine-tuning on little data should do."""
    noise: bool = False
    """Add noise of a learnt size to router logits in training (arXiv 1701.06538); it is not exported."""

    def __post_init__(self) -> None:
        for name in ("balance_loss", "z_loss"):
            value = getattr(self, name)
            _check(0 <= value < float("inf"), f"router.{name}", value, "at least 0 and finite")
        _check(
            not (self.noise and self.freeze),
            "router.noise",
            self.noise,
            "False with router.freeze: the noise is there for routers that learn",
        )


from configs.mesh import MeshConfig  # noqa: E402


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
        _check(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2**31 - 1")
        if self.run.keep_best:
            _check(
                bool(self.data.validation),
                "run.keep_best",
                self.run.keep_best,
                "0 without data.validation: the best is that of the smallest validation loss",
            )
        _check(
            not (self.router.noise and self.lora.rank),
            "router.noise",
            self.router.noise,
            f"False with lora.rank {self.lora.rank}: adapters leave routers as they are",
        )
        if self.optim.stochastic_rounding:
            _check(
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
        sorting = sorted(_SORTING & set(self.loss.types))
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


def render(config: AnyConfig) -> str:
    """The resolved configuration as text, one `name = value` a line."""
    return "".join(f"{name} = {value!r}\n" for name, value in flatten(config))
