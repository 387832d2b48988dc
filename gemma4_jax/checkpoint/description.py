"""What a model folder says about itself beside its weights: config, tokenizer, chat template.

The same files in a Hugging Face folder and in one of ours, so that one reader serves both, and so
that the shapes of a checkpoint can be asked for without reading it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_jax.build import Model
from gemma4_jax.checkpoint.safetensors import read_json
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.hf_config import config_from_hf, config_to_hf, generation_to_hf
from gemma4_jax.model.apart import is_taken_apart
from gemma4_jax.text.template import find_source
from gemma4_jax.text.tokenizer import Tokenizer

CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True)
class Description:
    """A checkpoint without its weights; tokenizer and chat_template are None where it has none."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    chat_template: str | None


def describe(path: str | Path) -> Description:
    """Read what is beside the weights in the model folder `path`.

    Raises UserError if there is no such folder, it is no model folder, its architecture is unknown,
    or one of its files is damaged.
    """
    folder = Path(path)
    raw = _config(folder)
    generation = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else None
    try:
        config = config_from_hf(raw, generation)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    known = ("tokenizer.json", "tokenizer.model")
    has_tokenizer = any((folder / name).is_file() for name in known)
    source = find_source(folder)
    return Description(
        config,
        Tokenizer.load(folder) if has_tokenizer else None,
        None if source is None else source[0],
    )


def _config(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise UserError(
            f"{folder}: no such folder; give a local one that holds {CONFIG} and the weights "
            "(nothing is downloaded)"
        )
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder that holds {CONFIG} and the weights")
    has_config = (folder / CONFIG).is_file()
    raw = read_json(folder / CONFIG) if has_config else {}
    if "model_type" not in raw and (folder / "huggingface" / CONFIG).is_file():
        raise UserError(
            f"{folder} is the folder of a training run; its model is in {folder / 'huggingface'}"
        )
    if "model_type" not in raw and (folder / "checkpoints").is_dir():
        raise UserError(
            f"{folder} is the folder of a training run that has exported no model yet; finish it "
            "with run.export_huggingface on"
        )
    if not has_config:
        raise UserError(f"{folder}: no {CONFIG} here, so this is no model folder")
    return raw


def refuse_taken_apart(model: Model) -> None:
    """UserError for a model that cannot be saved as it is laid out."""
    if is_taken_apart(model.params):
        raise UserError(
            "a model laid out for decoding (Model.for_decoding) cannot be saved; load it again and save that"
        )


def write_description(folder: Path, model: Model, dtype: str) -> None:
    """Write the files that `describe` reads. dtype: what the weights beside them are stored in."""
    write_json(folder / CONFIG, config_to_hf(model.config, dtype))
    write_json(folder / GENERATION, generation_to_hf(model.config))
    if model.tokenizer is not None:
        model.tokenizer.save(folder)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that people may read."""
    file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
