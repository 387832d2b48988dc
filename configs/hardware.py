"""Presets by hardware: which model is trained how on what, and what the hardware decides in a preset.

Hardware decides how many rows a device takes at a time, the mesh, and the form of parameters and optimiser
state; what makes training good (rates, schedule, adapters) is that of the plain presets (sft.py, dpo.py).
The offers are those that fit into 90 % of a device's memory by arithmetic: docs/presets.md has the sum
of each, tests/configs/test_presets_fit.py makes it from the real trees. None was run on its hardware.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeVar

from configs.adapters import LoRAConfig
from configs.mesh import MeshConfig
from configs.schema import AnyConfig, BatchConfig

Config = TypeVar("Config", bound=AnyConfig)

# lora: adapters over bfloat16. qlora: over matrices in 4 bits. full: all parameters, float32 with AdamW.
# lean: all parameters, bfloat16 rounded at random, with Adafactor.
Method = Literal["lora", "qlora", "full", "lean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """devices: as JAX counts them. memory: of one, in bytes."""

    name: str
    text: str
    devices: int
    memory: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """parameters: of the text model. tables: those of them in embedding tables, never quantised.
    adapters: what LoRA trains."""

    name: str
    title: str
    parameters: float
    tables: float
    adapters: LoRAConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """A model, trained in one way on one kind of hardware."""

    size: str
    method: Method
    hardware: str

    @property
    def name(self) -> str:
        """Of the preset: adapters are named, how all parameters are held is not."""
        parts = (self.size, self.method if self.trains_adapters else "", self.hardware)
        return "-".join(part for part in parts if part)

    @property
    def trains_adapters(self) -> bool:
        """Whether the model itself stays as it is."""
        return self.method in ("lora", "qlora")

    @property
    def lora(self) -> LoRAConfig:
        """Adapters over the base in its form."""
        form: Literal["none", "nf4"] = "nf4" if self.method == "qlora" else "none"
        return dataclasses.replace(SIZES[self.size].adapters, base_quantization=form)

    @property
    def state(self) -> float:
        """Bytes a device holds between steps, and gradients; of adapters, their base alone."""
        size, devices = SIZES[self.size], HARDWARE[self.hardware].devices
        if self.method == "qlora":  # 4 bits, and a float32 scale for 64 numbers
            matrices = size.parameters - size.tables
            return (0.5625 * matrices + 2 * size.tables) / devices
        each = {"lora": 2, "full": 4 + 4 + 8, "lean": 2 + 4}[self.method]
        return each * size.parameters / devices


_GIB = 2**30
HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware(name="24gb", text="one GPU of 24 GB", devices=1, memory=24 * 10**9),
        Hardware(name="80gb", text="one GPU of 80 GB", devices=1, memory=80 * 10**9),
        Hardware(name="v5e-8", text="a TPU v5e-8 (8 chips)", devices=8, memory=16 * _GIB),
        # The number in v5p-64 counts TensorCores, two to a chip that JAX sees as one device.
        Hardware(name="v5p-64", text="a TPU v5p-64 (32 chips)", devices=32, memory=95 * _GIB),
        # Here it counts chips (4 x 4 x 4): each is two devices to JAX, with half of its 192 GiB each.
        Hardware(name="tpu7x-64", text="64 chips of TPU7x", devices=128, memory=96 * _GIB),
    )
}

_SMALL = LoRAConfig(rank=16, alpha=32.0, targets=("attention", "mlp", "per_layer_input"))
_DENSE = LoRAConfig(rank=16, alpha=32.0)
_EXPERTS = LoRAConfig(rank=8, alpha=16.0)
SIZES = {
    size.name: size
    for size in (
        Size(name="e2b", title="E2B", parameters=4.629e9, tables=2.751e9, adapters=_SMALL),
        Size(name="e4b", title="E4B", parameters=7.463e9, tables=3.490e9, adapters=_SMALL),
        Size(name="12b", title="12B", parameters=11.907e9, tables=1.007e9, adapters=_DENSE),
        Size(
            name="26b-a4b", title="26B-A4B", parameters=25.233e9, tables=0.738e9, adapters=_EXPERTS
        ),
        Size(name="31b", title="31B", parameters=30.697e9, tables=1.409e9, adapters=_DENSE),
    )
}

OFFERS = (
    Offer(size="e2b", method="lora", hardware="24gb"),
    Offer(size="e4b", method="lora", hardware="24gb"),
    Offer(size="12b", method="qlora", hardware="24gb"),
    Offer(size="e2b", method="lora", hardware="80gb"),
    Offer(size="e4b", method="lora", hardware="80gb"),
    Offer(size="12b", method="lora", hardware="80gb"),
    Offer(size="26b-a4b", method="lora", hardware="80gb"),
    Offer(size="31b", method="qlora", hardware="80gb"),
    Offer(size="e2b", method="lean", hardware="80gb"),
    Offer(size="e4b", method="lean", hardware="80gb"),
    Offer(size="e2b", method="lora", hardware="v5e-8"),
    Offer(size="e4b", method="lora", hardware="v5e-8"),
    Offer(size="12b", method="lora", hardware="v5e-8"),
    Offer(size="e2b", method="lean", hardware="v5e-8"),
    # Adapters of the small models need no machine of this kind.
    *(Offer(size=s, method="lora", hardware="v5p-64") for s in ("12b", "26b-a4b", "31b")),
    *(Offer(size=s, method="full", hardware="v5p-64") for s in SIZES),
    *(Offer(size=s, method="lora", hardware="tpu7x-64") for s in ("12b", "26b-a4b", "31b")),
    *(Offer(size=s, method="full", hardware="tpu7x-64") for s in SIZES),
)


def presets(
    task: Literal["sft", "dpo"], plain: Callable[[Offer], Config]
) -> dict[str, Callable[[], Config]]:
    """All offers by name. plain: what an offer's model is trained with wherever it runs."""
    return {offer.name: _preset(task, plain, offer) for offer in OFFERS}


def fitted(config: Config, offer: Offer) -> Config:
    """`config` on an offer's hardware: one row (DPO: one pair) on each device at a time."""
    devices = HARDWARE[offer.hardware].devices
    rows = max(config.batch.rows, devices)
    model, optim = config.model, config.optim
    if offer.method == "lean":
        model = dataclasses.replace(model, param_dtype="bfloat16")
        optim = dataclasses.replace(optim, name="adafactor", stochastic_rounding=True)
    return dataclasses.replace(
        config,
        model=model,
        optim=optim,
        batch=BatchConfig(rows=rows, accumulation=rows // devices),
        mesh=MeshConfig(fsdp=-1),
    )


def _preset(
    task: Literal["sft", "dpo"], plain: Callable[[Offer], Config], offer: Offer
) -> Callable[[], Config]:
    def preset() -> Config:
        return fitted(plain(offer), offer)

    preset.__name__ = preset.__qualname__ = offer.name.replace("-", "_")
    preset.__doc__ = _description(task, offer)
    return preset


def _description(task: Literal["sft", "dpo"], offer: Offer) -> str:
    size, hardware = SIZES[offer.size], HARDWARE[offer.hardware]
    what, held, expected = {
        "lora": ("Adapters on {}", "weights", "e2b-lora"),
        "qlora": ("Adapters on {} in 4 bits", "weights", "e2b-lora"),
        "full": ("All parameters of {}", "weights, gradients and AdamW's moments", size.name),
        "lean": (
            "All parameters of {}, bfloat16 with Adafactor",
            "weights and gradients",
            size.name,
        ),
    }[offer.method]
    needs = f"{offer.state / 1e9:.1f} of {hardware.memory / 1e9:.0f} GB"
    data = {"sft": "rows", "dpo": "pairs"}[task]
    first = {"sft": "", "dpo": "ln 2 at the first step; then "}[task]
    return f"""{what.format(size.title)} on {hardware.text}.

    {needs} a device are {held}; the whole sum is in docs/presets.md.
    Command: `python -m train.{task} {offer.name} --model.path DIR --data.path {data}.jsonl --run.workdir RUN`
    Expect: {first}as for {expected}. Memory is calculated, not measured: not yet run on this hardware.
    """
