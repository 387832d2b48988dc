"""The architecture of one Gemma 4 text model, as data.

Here: `ModelConfig`, its parts, and what follows from them layer by layer (`ModelConfig.layers`).
`DrafterConfig` is a model that drafts for another one.
The released sizes and the tiny twins are in `presets.py`, Hugging Face's `config.json` in `hf_config.py`.
Nothing here says how a model is run: dtypes, remat and meshes are arguments of `build.py`.

Letters: D d_model, L layers, N query heads, K key/value heads, H head dim, F feed-forward width,
V vocabulary, P per-layer-input width, W window.
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Literal

from gemma4_jax.errors import UserError

LayerKind = Literal["sliding", "full"]
SLIDING: LayerKind = "sliding"
FULL: LayerKind = "full"


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding of one kind of layer.

    theta: base of the frequencies `theta^(-2j/H)`, with the whole head size H in the exponent.
    proportion: share of the H/2 pairs that rotate; the others pass unchanged.
    factor: divides the frequencies (position interpolation); 1 in every release.
    """

    theta: float
    proportion: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.theta > 0 or not self.factor > 0 or not 0 < self.proportion <= 1:
            raise UserError(
                f"rope needs theta > 0, factor > 0 and 0 < proportion <= 1, got {self.theta}, "
                f"{self.factor}, {self.proportion}"
            )

    def rotated_pairs(self, head_dim: int) -> int:
        """How many of the head_dim / 2 pairs (j, j + head_dim / 2) rotate; they come first."""
        return int(self.proportion * head_dim) // 2


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Routed experts beside the dense MLP of every layer: E, A (active per token), expert width."""

    num_experts: int
    num_experts_per_token: int
    d_ff: int

    def __post_init__(self) -> None:
        _positive(self, "num_experts", "num_experts_per_token", "d_ff")
        if self.num_experts_per_token > self.num_experts:
            raise UserError(
                f"num_experts_per_token is {self.num_experts_per_token}, more than the "
                f"{self.num_experts} experts there are"
            )


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids that the model itself (not the tokenizer) gives a meaning to.

    eos: every id that ends a text. suppress: ids never to be sampled. image, video, audio: soft-token
    placeholders, None where the checkpoint is text only; their rows are looked up as `pad`.
    begin_image .. end_audio: what surrounds a block of placeholders.
    """

    pad: int = 0
    bos: int = 2
    eos: tuple[int, ...] = (1,)
    suppress: tuple[int, ...] = ()
    image: int | None = None
    video: int | None = None
    audio: int | None = None
    begin_image: int | None = None
    end_image: int | None = None
    begin_audio: int | None = None
    end_audio: int | None = None

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The soft-token placeholder ids there are."""
        return tuple(i for i in (self.image, self.video, self.audio) if i is not None)


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One layer, everything derived (spec 2.3). Only `index` and `kv_source` say where it stands.

    kv_source: the layer whose keys and values this one attends to: itself if it owns K/V, otherwise
    the last owning layer of its kind. lends_kv: a later layer attends to this one's K/V.
    value_from_key: the value is the raw key projection (no value projection exists).
    """

    index: int
    kind: LayerKind
    num_kv_heads: int
    head_dim: int
    d_ff: int
    owns_kv: bool
    kv_source: int
    lends_kv: bool
    value_from_key: bool
    rope: RopeConfig

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for layers that one scanned body can run."""
        return (self.kind, self.num_kv_heads, self.head_dim, self.d_ff, self.owns_kv)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Gemma 4 text model.

    name: for people; says nothing about the shapes.
    vocab_size, d_model, num_heads, num_kv_heads, head_dim, d_ff: V, D, N and the sliding layers' K, H; F.
    num_global_kv_heads, global_head_dim: K and H of full layers.
    layer_types: kind of each layer, in order; the last one is always full.
    window: a sliding layer sees this many keys, the token itself among them.
    k_eq_v: full layers take the raw key projection as value.
    num_kv_shared_layers: the last so many layers own no K/V. double_wide_mlp: they have 2 F.
    per_layer_input_width: P, 0 for models without per-layer embeddings.
    logit_softcap: final soft cap c, None for none.
    bidirectional: "vision": image and video blocks attend both ways on sliding layers;
        "all": an encoder, every layer two-sided.
    max_position: longest context the checkpoint was made for, in tokens.
    hf_type: `model_type` of the Hugging Face config it came from and is written back as.
    """

    name: str = "custom"
    vocab_size: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    layer_types: tuple[LayerKind, ...]
    window: int
    num_global_kv_heads: int
    global_head_dim: int
    rope_sliding: RopeConfig = field(default_factory=lambda: RopeConfig(theta=10_000.0))
    rope_full: RopeConfig = field(
        default_factory=lambda: RopeConfig(theta=1_000_000.0, proportion=0.25)
    )
    k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    double_wide_mlp: bool = False
    per_layer_input_width: int = 0
    per_layer_vocab_size: int = 0
    moe: MoEConfig | None = None
    norm_eps: float = 1e-6
    logit_softcap: float | None = 30.0
    bidirectional: Literal["vision", "all"] | None = None
    max_position: int = 131_072
    token_ids: TokenIds = field(default_factory=TokenIds)
    hf_type: Literal["gemma4_text", "gemma4", "gemma4_unified"] = "gemma4_text"

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        _positive(self, "window", "num_global_kv_heads", "global_head_dim", "max_position")
        if not self.layer_types or self.layer_types[-1] != FULL:
            raise UserError(f"the last layer must be full attention, got {self.layer_types[-1:]}")
        if odd := set(self.layer_types) - {SLIDING, FULL}:
            raise UserError(f"unknown layer types {sorted(odd)} (known: sliding, full)")
        for kind, heads in (("sliding", self.num_kv_heads), ("full", self.num_global_kv_heads)):
            if self.num_heads % heads:
                raise UserError(
                    f"{self.num_heads} query heads cannot share {heads} key/value heads evenly "
                    f"on {kind} layers"
                )
        for name in ("head_dim", "global_head_dim"):
            if getattr(self, name) % 2:
                raise UserError(
                    f"{name} must be even to rotate in pairs, got {getattr(self, name)}"
                )
        if not 0 <= self.num_kv_shared_layers < self.num_layers:
            raise UserError(
                f"num_kv_shared_layers is {self.num_kv_shared_layers}; it must leave at least one of "
                f"the {self.num_layers} layers to own K/V"
            )
        owning = set(self.layer_types[: self.first_shared_layer])
        if missing := set(self.layer_types[self.first_shared_layer :]) - owning:
            raise UserError(
                f"shared {sorted(missing)} layers have no earlier layer of their kind to take K/V from; "
                f"lower num_kv_shared_layers ({self.num_kv_shared_layers})"
            )
        if self.per_layer_input_width < 0 or not self.norm_eps > 0:
            raise UserError(
                f"per_layer_input_width must be >= 0 and norm_eps > 0, got "
                f"{self.per_layer_input_width}, {self.norm_eps}"
            )
        if self.per_layer_input_width and self.per_layer_vocab_size <= 0:
            raise UserError("per_layer_vocab_size must be positive when per-layer inputs are on")
        if self.logit_softcap is not None and not self.logit_softcap > 0:
            raise UserError(f"logit_softcap must be positive or None, got {self.logit_softcap}")

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layer_types)

    @property
    def first_shared_layer(self) -> int:
        """Index of the first layer that owns no K/V; L if all do."""
        return self.num_layers - self.num_kv_shared_layers

    @property
    def family(self) -> Literal["small", "large"]:
        """Which chat format: "small" (E2B, E4B: per-layer embeddings) or "large" (12B, 26B, 31B)."""
        return "small" if self.per_layer_input_width else "large"

    @functools.cached_property
    def layers(self) -> tuple[LayerConfig, ...]:
        """Every layer, in order."""
        first_shared = self.first_shared_layer
        last_owner = {kind: i for i, kind in enumerate(self.layer_types[:first_shared])}
        lenders = {last_owner[kind] for kind in self.layer_types[first_shared:]}
        return tuple(
            LayerConfig(
                index=i,
                kind=kind,
                num_kv_heads=self.num_global_kv_heads if kind == FULL else self.num_kv_heads,
                head_dim=self.global_head_dim if kind == FULL else self.head_dim,
                d_ff=self.d_ff * (2 if self.double_wide_mlp and i >= first_shared else 1),
                owns_kv=i < first_shared,
                kv_source=i if i < first_shared else last_owner[kind],
                lends_kv=i in lenders,
                value_from_key=self.k_eq_v and kind == FULL,
                rope=self.rope_full if kind == FULL else self.rope_sliding,
            )
            for i, kind in enumerate(self.layer_types)
        )


@dataclass(frozen=True, kw_only=True)
class CentroidConfig:
    """An output that scores part of the vocabulary: the ids of the `active` likeliest of `count` clusters."""

    count: int
    active: int

    def __post_init__(self) -> None:
        _positive(self, "count", "active")
        if self.active > self.count:
            raise UserError(f"{self.active} active centroids of {self.count}: there are too few")


@dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """A small model that guesses what a target will write, from the target's own K/V (spec 10).

    stack: its layers, which own no K/V: `num_kv_heads`, `head_dim` and their global twins are the target's,
    and `num_kv_shared_layers` says nothing. target_width: the target's d_model. centroids: None where all ids
    are scored.
    """

    stack: ModelConfig
    target_width: int
    centroids: CentroidConfig | None = None

    def __post_init__(self) -> None:
        _positive(self, "target_width")
        stack = self.stack
        if stack.moe is not None or stack.per_layer_input_width or stack.double_wide_mlp:
            raise UserError("a drafter has no experts, per-layer inputs or double-wide MLPs")
        if self.centroids is not None and stack.vocab_size % self.centroids.count:
            raise UserError(
                f"{self.centroids.count} centroids cannot share {stack.vocab_size} ids evenly"
            )

    @functools.cached_property
    def layers(self) -> tuple[LayerConfig, ...]:
        """Every layer, in order; `kv_source` means nothing."""
        return tuple(replace(layer, owns_kv=False, lends_kv=False) for layer in self.stack.layers)

    def check_fits(self, target: ModelConfig) -> None:
        """UserError, naming both sides, unless this drafts for `target`."""
        stack = self.stack
        pairs = {
            "d_model": (self.target_width, target.d_model),
            "vocab_size": (stack.vocab_size, target.vocab_size),
            "window": (stack.window, target.window),
            "sliding K/V heads": (stack.num_kv_heads, target.num_kv_heads),
            "sliding head_dim": (stack.head_dim, target.head_dim),
            "full K/V heads": (stack.num_global_kv_heads, target.num_global_kv_heads),
            "full head_dim": (stack.global_head_dim, target.global_head_dim),
            "sliding rope": (stack.rope_sliding, target.rope_sliding),
            "full rope": (stack.rope_full, target.rope_full),
        }
        for name, (wanted, found) in pairs.items():
            if wanted != found:
                raise UserError(
                    f"this drafter was made for a target of {name} {wanted}, the model has {found}; use the "
                    "drafter that was released with the model"
                )
        owning = set(target.layer_types[: target.first_shared_layer])
        if missing := set(stack.layer_types) - owning:
            raise UserError(f"the drafter's {sorted(missing)} layers find no K/V in this model")


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value <= 0:
            raise UserError(f"{name} must be a positive whole number, got {value!r}")
