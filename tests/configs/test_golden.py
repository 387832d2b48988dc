"""Every resolved preset, as text: a changed default shows in review.

Of the presets by hardware one file a task, with what differs from a plain configuration of it. After an
intended change: `python tests/configs/test_golden.py` writes the files anew.
"""

from pathlib import Path

import pytest

from configs import dpo, evals, hardware, rlaif, sft
from configs.schema import AnyConfig, DPOConfig, SFTConfig, render, require
from configs.verifiable import RLAIFConfig

GOLDEN = Path(__file__).parent / "golden"
RESOLVED = {
    f"{task}-{name}": preset
    for task, presets in (
        ("sft", sft.PRESETS),
        ("dpo", dpo.PRESETS),
        ("rlaif", rlaif.PRESETS),
    )
    for name, preset in presets.items()
}
BY_HARDWARE = {f"{task}-{offer.name}" for task in ("sft", "dpo") for offer in hardware.OFFERS}


def changes(config: AnyConfig) -> str:
    """The lines of a configuration that are not those of its type's defaults."""
    usual = render(type(config)()).splitlines()
    lines = render(config).splitlines()
    return "".join(f"{new}\n" for new, old in zip(lines, usual, strict=True) if new != old)


def golden() -> dict[str, str]:
    """Texts by name of their file."""
    plain = {name: render(RESOLVED[name]()) for name in RESOLVED.keys() - BY_HARDWARE}
    plain |= {f"eval-{name}": render(preset()) for name, preset in evals.PRESETS.items()}
    for task in ("sft", "dpo"):
        names = [name for name in RESOLVED if name in BY_HARDWARE and name.startswith(task)]
        texts = [f"# {name}\n{changes(RESOLVED[name]())}" for name in names]
        plain[f"{task}-by-hardware"] = "\n".join(texts)
    return plain


@pytest.mark.parametrize("name", sorted(golden()))
def test_preset_is_as_recorded(name):
    assert golden()[name] == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_file_is_left_over():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(golden())


def test_a_plain_name_is_never_that_of_an_offer():
    assert len({offer.name for offer in hardware.OFFERS}) == len(hardware.OFFERS)
    assert set(RESOLVED) > BY_HARDWARE
    assert {"e2b-lora", "26b-a4b-lora", "31b-qlora", "31b"} <= set(sft.PRESETS)
    assert changes(SFTConfig()) == changes(DPOConfig()) == changes(RLAIFConfig()) == ""


@pytest.mark.parametrize("name", RESOLVED)
def test_docstring_names_hardware_command_and_result(name):
    text = RESOLVED[name].__doc__
    task, _, preset = name.partition("-")
    assert f"python -m train.{task} {preset} " in text
    assert "Expect: " in text
    assert any(word in text for word in ("GB", "laptop"))


@pytest.mark.parametrize("name", RESOLVED)
def test_preset_runs_once_the_user_named_his_things(name):
    from dataclasses import replace

    config = RESOLVED[name]()
    model = config.model if config.model.architecture else replace(config.model, path="m")
    require(
        replace(
            config,
            model=model,
            data=replace(config.data, path="d"),
            run=replace(config.run, workdir="w"),
        )
    )


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, text in golden().items():
        (GOLDEN / f"{name}.txt").write_text(text)
