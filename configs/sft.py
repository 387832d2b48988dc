"""Presets of supervised fine-tuning. A preset is a function that returns a whole configuration.

The plain ones are here, on whatever device there is; hardware.py fits them to named hardware.

Memory figures are arithmetic, not measurements: full fine-tuning with float32 parameters and AdamW
holds 16 bytes a parameter (weights 4, gradient 4, two moments 8) before activations. With adapters
that is so for them alone; the model takes 2 bytes a parameter, or about 0.6 in 4 bits (tables: 2).
"""

from collections.abc import Callable
from dataclasses import replace

from configs import hardware
from configs.adapters import LoRAConfig
from configs.mesh import MeshConfig
from configs.schema import BatchConfig, DataConfig, ModelSource, OptimConfig, RunConfig, SFTConfig


def tiny() -> SFTConfig:
    """A tiny twin of E2B from scratch, for trying the machinery out; any laptop.

    Command: `python -m train.sft tiny --data.path rows.jsonl --run.workdir runs/tiny`
    Expect: a loss that falls from ln(vocabulary) below that of the data's unigrams in 100 steps.
    """
    return SFTConfig(
        model=ModelSource(architecture="tiny-ple"),
        data=DataConfig(max_length=256),
        batch=BatchConfig(rows=8),
        optim=OptimConfig(peak_lr=2e-3, warmup_fraction=0.1, b2=0.95),
        mesh=MeshConfig(fsdp=1),
        run=RunConfig(steps=100, log_every=5, save_every=50, export_huggingface=True),
    )


def _full(peak_lr: float) -> SFTConfig:
    """Full fine-tuning as practised in public for models of these sizes: 64 packed rows of 4096."""
    return SFTConfig(
        model=ModelSource(compute_dtype="bfloat16", remat="full"),
        data=DataConfig(max_length=4096, packing=True),
        batch=BatchConfig(rows=64, accumulation=64),
        optim=OptimConfig(peak_lr=peak_lr, final_lr_fraction=0.1),
        run=RunConfig(epochs=2.0, export_huggingface=True),
    )


def e2b() -> SFTConfig:
    """All 4.63 B text parameters of E2B: 74 GB of state, so one device of 96 GB or more.

    Command: `python -m train.sft e2b --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: a first loss of 1 to 3 on ordinary chat data with the instruction-tuned weights; a
    first loss above 5 means wrong weights or a wrong chat format. Not yet run on real weights.
    """
    return _full(1e-5)


def e4b() -> SFTConfig:
    """All 7.46 B text parameters of E4B: 119 GB of state, so one device of 141 GB or more.

    Command: `python -m train.sft e4b --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: as for e2b. Not yet run on real weights.
    """
    return _full(1e-5)


def full_12b() -> SFTConfig:
    """All 11.9 B text parameters of 12B: 191 GB of state.

    Command: `python -m train.sft 12b --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: as for e2b, with a lower loss. Not yet run on real weights.
    """
    return _full(5e-6)


def full_26b_a4b() -> SFTConfig:
    """All 25.2 B text parameters of 26B-A4B (128 experts): 404 GB of state.

    Command: `python -m train.sft 26b-a4b --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: as for 12b. No balance loss, as in the released configuration. Not yet run on real
    weights.
    """
    return _full(5e-6)


def full_31b() -> SFTConfig:
    """All 30.7 B text parameters of 31B: 491 GB of state.

    Command: `python -m train.sft 31b --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: as for 12b; others report gradient norms of hundreds before clipping on this size, so
    the rate is low and clipping stays on. Not yet run on real weights.
    """
    return _full(3e-6)


def _lora(lora: LoRAConfig) -> SFTConfig:
    """Adapters as practised in public: a rate twenty times that of full fine-tuning, 16 packed rows of 4096."""
    return SFTConfig(
        model=ModelSource(param_dtype="bfloat16", compute_dtype="bfloat16", remat="full"),
        data=DataConfig(max_length=4096, packing=True),
        batch=BatchConfig(rows=16, accumulation=16),
        optim=OptimConfig(peak_lr=2e-4, final_lr_fraction=0.1),
        lora=lora,
        run=RunConfig(epochs=2.0, export_huggingface=True),
    )


def e2b_lora() -> SFTConfig:
    """Adapters of rank 16 on E2B's attention and MLPs: 9.3 GB of weights, so one device of 24 GB.

    Command: `python -m train.sft e2b-lora --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: the first loss of e2b to the last digits bfloat16 has (adapters start as nothing), then falling.
    Leaves `adapter` for PEFT and merged weights in `huggingface`. Not yet run on real weights.
    """
    return _lora(hardware.SIZES["e2b"].adapters)


def lora_26b_a4b() -> SFTConfig:
    """Adapters of rank 8 on attention, MLPs and every expert of 26B-A4B: 50 GB of weights, one device of 80 GB.

    Command: `python -m train.sft 26b-a4b-lora --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: as for e2b-lora. The router stays as it is. Not yet run on real weights.
    """
    return _lora(hardware.SIZES["26b-a4b"].adapters)


def qlora_31b() -> SFTConfig:
    """QLoRA of rank 16 on 31B, its matrices in 4 bits: 19 GB of weights, so one device of 40 GB or more.

    Command: `python -m train.sft 31b-qlora --model.path DIR --data.path rows.jsonl --run.workdir RUN`
    Expect: a first loss a few hundredths above 31b's, from rounding to 4 bits. Not yet run on real weights.
    """
    return _lora(replace(hardware.SIZES["31b"].adapters, base_quantization="nf4"))


PRESETS: dict[str, Callable[[], SFTConfig]] = {
    "tiny": tiny,
    "e2b": e2b,
    "e4b": e4b,
    "12b": full_12b,
    "26b-a4b": full_26b_a4b,
    "31b": full_31b,
    "e2b-lora": e2b_lora,
    "26b-a4b-lora": lora_26b_a4b,
    "31b-qlora": qlora_31b,
}


def _plain(offer: hardware.Offer) -> SFTConfig:
    """What an offer's model is trained with wherever it runs."""
    return _lora(offer.lora) if offer.trains_adapters else PRESETS[offer.size]()


PRESETS |= hardware.presets("sft", _plain)
