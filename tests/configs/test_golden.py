"""Every resolved preset, as text: a changed default shows in review.

After an intended change: `python tests/configs/test_golden.py` writes the files anew.
"""

from pathlib import Path

import pytest

from configs import dpo, sft
from configs.schema import render, require

GOLDEN = Path(__file__).parent / "golden"
RESOLVED = {
    f"{task}-{name}": preset
    for task, presets in (("sft", sft.PRESETS), ("dpo", dpo.PRESETS))
    for name, preset in presets.items()
}


@pytest.mark.parametrize("name", RESOLVED)
def test_preset_is_as_recorded(name):
    assert render(RESOLVED[name]()) == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_file_is_left_over():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(RESOLVED)


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
    for name, preset in RESOLVED.items():
        (GOLDEN / f"{name}.txt").write_text(render(preset()))
