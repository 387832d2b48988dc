"""Presets of verifiable preferences: functions that return a whole configuration.

Each is a preset of DPO (dpo.py) with rounds around it, so its memory is that of DPO, or that of decoding
`sampling.max_slots` answers (`gemma4 plan`), whichever is more: the two never run at once.
"""

from collections.abc import Callable
from dataclasses import fields, replace

from configs import dpo
from configs.schema import DPOConfig
from configs.verifiable import RLAIFConfig, RoundsConfig, SamplingConfig


def _rounds(plain: DPOConfig, sampling: SamplingConfig, rounds: RoundsConfig) -> RLAIFConfig:
    """Rounds around a preset of DPO."""
    own = {field.name: getattr(plain, field.name) for field in fields(DPOConfig)}
    return RLAIFConfig(**own, sampling=sampling, rounds=rounds)


def tiny() -> RLAIFConfig:
    """A tiny twin of E2B, for trying the machinery out; any laptop.

    Command: `python -m train.rlaif tiny --model.path DIR --data.path prompts.jsonl --run.workdir RUN`
    Expect: rounds that end at once with no pairs, unless DIR holds a model that is right sometimes:
    `make demo-loop` makes one.
    """
    plain = dpo.tiny()
    return _rounds(
        replace(
            plain,
            model=replace(plain.model, architecture=""),
            run=replace(plain.run, steps=None, epochs=1.0),
        ),
        SamplingConfig(samples=4, max_new_tokens=96),
        RoundsConfig(),
    )


_LONG = SamplingConfig(max_new_tokens=1024, thinking=True)


def e2b() -> RLAIFConfig:
    """All 4.63 B text parameters of E2B: 74 GB of state in DPO, so one device of 96 GB or more.

    Command: `python -m train.rlaif e2b --model.path DIR --data.path prompts.jsonl --run.workdir RUN`
    Expect: accuracy on held-out prompts that rises from round to round, and less each time. Not yet run on
    real weights.
    """
    return _rounds(dpo.e2b(), _LONG, RoundsConfig(prompts=2000))


def e2b_lora() -> RLAIFConfig:
    """Adapters of rank 16 on E2B, merged after every round: 9.3 GB of weights, so one device of 24 GB.

    Command: `python -m train.rlaif e2b-lora --model.path DIR --data.path FILE --run.workdir RUN`
    Expect: as for e2b. Not yet run on real weights.
    """
    return _rounds(dpo.e2b_lora(), _LONG, RoundsConfig(prompts=2000))


PRESETS: dict[str, Callable[[], RLAIFConfig]] = {"tiny": tiny, "e2b": e2b, "e2b-lora": e2b_lora}
