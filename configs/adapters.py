"""What is trained beside the model in its place: low-rank adapters, over a base that may be quantised.

Not here: what an adapter computes (gemma4_jax/model/adapters.py), files (docs/lora.md).
"""

import dataclasses
from typing import Literal

from configs.checks import check


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
        check(self.rank >= 0, "lora.rank", self.rank, "at least 0 (0: no adapters)")
        check(0 < self.alpha < float("inf"), "lora.alpha", self.alpha, "above 0 and finite")
        known = ("attention", "mlp", "experts", "per_layer_input")
        ok = bool(self.targets) and set(self.targets) <= set(known)
        check(ok, "lora.targets", self.targets, f"one or more of {', '.join(known)}")
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "at least 0 and below 1")
        if not self.rank:
            for name, off in {
                "dropout": 0.0, "rslora": False, "dora": False, "base_quantization": "none",
            }.items():  # fmt: skip
                bound = f"{off!r} while lora.rank is 0 (set lora.rank)"
                check(getattr(self, name) == off, f"lora.{name}", getattr(self, name), bound)
