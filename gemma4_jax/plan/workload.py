"""What is planned: a model, a task, its batch, its mesh, and how numbers are held; and whether that is legal.

The words are those of `configs/schema.py`, which this library does not import. Not here: what it costs.

Letters: P devices along an axis.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal

from gemma4_jax.config import LayerConfig, ModelConfig
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.adapters import LoRA
from gemma4_jax.model.block import REMAT_POLICIES, Remat
from gemma4_jax.model.cache import Compression
from gemma4_jax.parallel.splash_shapes import shape_refusal
from gemma4_jax.parallel.zigzag import check_tokens
from gemma4_jax.plan import tree
from gemma4_jax.sharding import AXES, BATCH

Task = Literal["sft", "dpo", "decode"]
TASKS: tuple[Task, ...] = ("sft", "dpo", "decode")
Optimizer = Literal["adamw", "adafactor", "muon"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "adafactor", "muon")
Base = Literal["none", "int8", "nf4"]
BASES: tuple[Base, ...] = ("none", "int8", "nf4")
ITEM_SIZES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One step of one run.

    tokens: of a row; decoding: what a conversation has by then. rows: of a step over all devices; DPO: pairs,
    of two rows each; decoding: conversations. sizes: of AXES, in their order. accumulation: micro-batches.
    lora: None trains all parameters. base: how matrices that are not trained are held. param_dtype: of what
    is held and updated (decoding: of weights and cache); compute_dtype: of activations and products.
    DPO reads its reference's log-probabilities from the data. splash: attention runs by the kernel of TPUs
    where its shapes allow.
    """

    config: ModelConfig
    task: Task = "sft"
    tokens: int
    rows: int
    sizes: tuple[int, ...] = (1,) * len(AXES)
    accumulation: int = 1
    remat: Remat = "full"
    lora: LoRA | None = None
    base: Base = "none"
    param_dtype: str = "float32"
    compute_dtype: str = "bfloat16"
    optimizer: Optimizer = "adamw"
    stochastic_rounding: bool = False
    compression: Compression = "value+rotated"
    splash: bool = False

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("task", self.task, TASKS),
            ("remat policy", self.remat, REMAT_POLICIES),
            ("base quantization", self.base, BASES),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("dtype", self.param_dtype, ITEM_SIZES),
            ("dtype", self.compute_dtype, ITEM_SIZES),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        for what, number in (
            ("rows of a batch", self.rows),
            ("micro-batches", self.accumulation),
            *((f"mesh.{axis}", size) for axis, size in self.mesh.items()),
        ):
            if number < 1:
                raise UserError(f"{what} must be at least 1, got {number}")
        if not 1 <= self.tokens <= self.config.max_position:
            raise UserError(
                f"a row must have from 1 to {self.config.max_position} tokens, the model's own bound, "
                f"got {self.tokens}"
            )

    @functools.cached_property
    def mesh(self) -> dict[str, int]:
        """Size by axis."""
        return dict(zip(AXES, self.sizes, strict=True))

    @functools.cached_property
    def devices(self) -> int:
        """Of the mesh."""
        return math.prod(self.sizes)

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.task != "decode"

    @property
    def trains_all(self) -> bool:
        """Whether every parameter has a gradient."""
        return self.trains and self.lora is None

    @functools.cached_property
    def held(self) -> int:
        """Bytes of a number of a parameter."""
        return ITEM_SIZES[self.param_dtype]

    @functools.cached_property
    def compute(self) -> int:
        """Bytes of a number of an activation."""
        return ITEM_SIZES[self.compute_dtype]

    @functools.cached_property
    def row_parts(self) -> int:
        """In how many parts the mesh cuts a batch along its rows."""
        return math.prod(self.mesh[axis] for axis in BATCH)

    @functools.cached_property
    def gathered_over(self) -> int:
        """Devices that share what is cut along D; in decoding, those of `expert` have it whole."""
        return self.mesh["fsdp"] * (self.mesh["expert"] if self.trains else 1)

    @functools.cached_property
    def rows_here(self) -> int:
        """Rows of one device in a micro-batch; a pair is two."""
        each = 2 if self.task == "dpo" else 1
        return each * self.rows // self.accumulation // self.row_parts

    @functools.cached_property
    def tokens_here(self) -> int:
        """Tokens that one device computes at a time; decoding: one of each of its rows."""
        per_row = self.tokens // self.mesh["seq"] if self.trains else 1
        return self.rows_here * per_row

    def stores_scores(self, layer: LayerConfig) -> bool:
        """Whether attention of whole rows in training writes its scores to memory, as XLA does."""
        if self.mesh["seq"] > 1:
            return False
        return not self.splash or shape_refusal(self.tokens, layer.head_dim) is not None

    @property
    def step_tokens(self) -> int:
        """Tokens of a step over all devices."""
        each = 2 if self.task == "dpo" else 1
        return each * self.rows * (self.tokens if self.trains else 1)


def sizes_of(mesh: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of all axes in order, 1 where one is not named; UserError for an unknown axis."""
    for axis in mesh:
        if axis not in AXES:
            raise unknown("mesh axis", axis, AXES)
    return tuple(mesh.get(axis, 1) for axis in AXES)


def check(workload: Workload) -> None:
    """UserError, in the words of a run that would refuse to start, unless everything divides."""
    mesh, config = workload.mesh, workload.config
    if mesh["expert"] > 1 and config.moe is None:
        raise UserError(
            f"mesh.expert is {mesh['expert']}, and {config.name} has no experts: it must be 1"
        )
    if workload.rows % workload.accumulation:
        raise UserError(f"{workload.accumulation} micro-batches do not divide {workload.rows} rows")
    micro = workload.rows // workload.accumulation
    if micro % workload.row_parts:
        raise UserError(
            f"{' x '.join(BATCH)} is {workload.row_parts}, which does not divide the {micro} rows of a "
            "micro-batch"
        )
    if mesh["seq"] > 1 and workload.trains:
        check_tokens(workload.tokens, mesh["seq"])
    if not workload.trains and workload.accumulation > 1:
        raise UserError("decoding has no micro-batches")
    if workload.base == "none":
        leaves = tree.parameters(config)
    else:  # blocks that share a scale are fewer than the numbers
        leaves = tuple(leaf for leaf, _ in tree.packed(config, workload.base))
    if workload.lora is not None:
        leaves += tree.adapters(config, workload.lora)
    for leaf in leaves:
        tree.cuts(leaf.shape, leaf.axes, workload.sizes, not workload.trains)
