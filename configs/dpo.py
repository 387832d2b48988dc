"""Presets of direct preference optimisation: functions that return a whole configuration.

With a precomputed reference (what `auto` takes unless a run visits a small part of its data) a run holds
one copy of the model: 16 bytes a parameter in float32 with AdamW, before activations, as for SFT. A live
one adds 4 bytes a parameter, and nothing where adapters are trained: the reference is then the model
without them. The plain presets are here; hardware.py fits them to named hardware.
"""

from collections.abc import Callable
from dataclasses import replace

from configs import hardware
from configs.adapters import LoRAConfig
from configs.losses import PreferenceConfig
from configs.mesh import MeshConfig
from configs.schema import BatchConfig, DataConfig, DPOConfig, ModelSource, OptimConfig, RunConfig


def tiny() -> DPOConfig:
    """A tiny twin of E2B from random weights, for trying the machinery out; any laptop.

    Command: `python -m train.dpo tiny --data.path pairs.jsonl --run.workdir runs/tiny-dpo`
    After the tiny SFT run: add `--model.architecture "" --model.path runs/tiny/huggingface`.
    Expect: a loss of ln 2 = 0.6931 at the first step, then falling; margins above 0.
    """
    return DPOConfig(
        model=ModelSource(architecture="tiny-ple"),
        data=DataConfig(max_length=256),
        batch=BatchConfig(rows=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_fraction=0.1, b2=0.95),
        mesh=MeshConfig(fsdp=1),
        run=RunConfig(steps=50, log_every=5, save_every=50, export_huggingface=True),
    )


def _full(peak_lr: float) -> DPOConfig:
    """Full-parameter DPO as practised in public: beta 0.1, one epoch, a rate far below SFT's."""
    return DPOConfig(
        model=ModelSource(compute_dtype="bfloat16", remat="full"),
        data=DataConfig(max_length=2048, overlong="drop"),
        batch=BatchConfig(rows=64, accumulation=64),
        optim=OptimConfig(peak_lr=peak_lr, schedule="linear", warmup_fraction=0.1),
        run=RunConfig(export_huggingface=True),
        loss=PreferenceConfig(beta=0.1),
    )


def e2b() -> DPOConfig:
    """All 4.63 B text parameters of E2B: 74 GB of state, so one device of 96 GB or more.

    Command: `python -m train.dpo e2b --model.path DIR --data.path pairs.jsonl --run.workdir RUN`
    Expect: ln 2 at the first step; accuracies of rewards between 0.6 and 0.8 at the end on usual
    preference data. Not yet run on real weights.
    """
    return _full(1e-6)


def e4b() -> DPOConfig:
    """All 7.46 B text parameters of E4B: 119 GB of state, so one device of 141 GB or more.

    Command: `python -m train.dpo e4b --model.path DIR --data.path pairs.jsonl --run.workdir RUN`
    Expect: as for e2b. Not yet run on real weights.
    """
    return _full(1e-6)


def full_12b() -> DPOConfig:
    """All 11.9 B text parameters of 12B: 191 GB of state.

    Command: `python -m train.dpo 12b --model.path DIR --data.path pairs.jsonl --run.workdir RUN`
    Expect: as for e2b. Not yet run on real weights.
    """
    return _full(5e-7)


def full_26b_a4b() -> DPOConfig:
    """All 25.2 B text parameters of 26B-A4B: 404 GB of state.

    Command: `python -m train.dpo 26b-a4b --model.path DIR --data.path FILE --run.workdir RUN`
    Expect: as for e2b. Not yet run on real weights.
    """
    return _full(5e-7)


def full_31b() -> DPOConfig:
    """All 30.7 B text parameters of 31B: 491 GB of state.

    Command: `python -m train.dpo 31b --model.path DIR --data.path pairs.jsonl --run.workdir RUN`
    Expect: as for e2b. Not yet run on real weights.
    """
    return _full(3e-7)


def _lora(lora: LoRAConfig) -> DPOConfig:
    """Adapters at a rate twenty times that of full DPO on E2B, 16 pairs a step."""
    return DPOConfig(
        model=ModelSource(param_dtype="bfloat16", compute_dtype="bfloat16", remat="full"),
        data=DataConfig(max_length=2048, overlong="drop"),
        batch=BatchConfig(rows=16, accumulation=16),
        optim=OptimConfig(peak_lr=2e-5, schedule="linear", warmup_fraction=0.1),
        lora=lora,
        run=RunConfig(export_huggingface=True),
    )


def e2b_lora() -> DPOConfig:
    """Adapters of rank 16 on E2B, beta 0.1: 9.3 GB of weights, reference included, so one device of 24 GB.

    Command: `python -m train.dpo e2b-lora --model.path DIR --data.path pairs.jsonl --run.workdir RUN`
    Expect: ln 2 at the first step, as adapters start as nothing; then as for e2b. Not yet run on real weights.
    """
    return _lora(hardware.SIZES["e2b"].adapters)


PRESETS: dict[str, Callable[[], DPOConfig]] = {
    "tiny": tiny,
    "e2b": e2b,
    "e4b": e4b,
    "12b": full_12b,
    "26b-a4b": full_26b_a4b,
    "31b": full_31b,
    "e2b-lora": e2b_lora,
}


def _plain(offer: hardware.Offer) -> DPOConfig:
    """What an offer's model is trained with wherever it runs."""
    if offer.trains_adapters:
        return _lora(offer.lora)
    config = PRESETS[offer.size]()
    # The sum of memory has no second copy of the model: a short run must not choose one either.
    return replace(config, loss=replace(config.loss, reference="precomputed"))


PRESETS |= hardware.presets("dpo", _plain)
