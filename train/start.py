"""What a run starts from: model configuration, tokenizer, module and initial parameters.

Here: weights from a folder, or fresh ones for a preset. Not here: reading checkpoints
(gemma4_jax/checkpoint), the model itself.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from configs.schema import ModelSource
from gemma4_jax import checkpoint
from gemma4_jax.build import dtype_named, transformer
from gemma4_jax.checkpoint.load import Finish, finish_leaves
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.hf_config import config_from_hf
from gemma4_jax.model.transformer import Transformer, init_params, logical_axes
from gemma4_jax.presets import PRESETS, preset
from gemma4_jax.sharding import make_mesh, shardings
from gemma4_jax.text.tokenizer import Tokenizer
from train.placement import put_tree


@dataclass(frozen=True, kw_only=True)
class Start:
    """config, tokenizer, module: of the model; mesh: of the run; load: makes the initial parameters, placed on
    the mesh, anew at each call.

    load(finish=...): what is kept of each leaf, as `checkpoint.load_params` has it. Leaves of a checkpoint are
    on the mesh when `finish` gets them, fresh ones on the default device.
    chat_template: the checkpoint's own, to be written back with it.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    module: Transformer
    mesh: Mesh
    load: Callable[..., dict[str, Any]]
    chat_template: str | None = None


def open_start(source: ModelSource, seed: int, max_length: int, mesh: Mesh | None = None) -> Start:
    """Resolve `source`; parameters are not made yet.

    seed: of fresh parameters. mesh: where they go; None: one device. max_length: longest sequence
    that will be trained on, in tokens.
    Raises UserError for what does not exist or does not fit together.
    """
    mesh = mesh or make_mesh({})
    if source.path:
        start = _from_folder(source, mesh)
    else:
        start = _from_scratch(source, seed, mesh)
    if max_length > start.config.max_position:
        raise UserError(
            f"data.max_length is {max_length}, more than the {start.config.max_position} positions "
            f"that {start.config.name} was made for"
        )
    if start.tokenizer.vocab_size > start.config.vocab_size:
        raise UserError(
            f"the tokenizer has {start.tokenizer.vocab_size} tokens and the model's embedding "
            f"{start.config.vocab_size} rows; set model.tokenizer to the one this model was made with"
        )
    return start


def _from_folder(source: ModelSource, mesh: Mesh) -> Start:
    """Weights from a Hugging Face folder or one of ours."""
    about = checkpoint.describe(source.path)
    tokenizer = Tokenizer.load(source.tokenizer) if source.tokenizer else about.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{source.path} has no tokenizer; give --model.tokenizer FILE (or a folder with one)"
        )
    return Start(
        config=about.config,
        tokenizer=tokenizer,
        module=_module(about.config, source, mesh),
        mesh=mesh,
        load=_placed(
            functools.partial(
                checkpoint.load_params, source.path, about.config, source.param_dtype, mesh=mesh
            ),
            about.config,
            mesh,
        ),
        chat_template=about.chat_template,
    )


def _module(config: ModelConfig, source: ModelSource, mesh: Mesh) -> Transformer:
    """Of the mesh's devices, which need not be this machine's."""
    platform = mesh.devices.flat[0].platform
    return transformer(
        config, source.compute_dtype, source.remat, platform, gpu_kernels=source.gpu_kernels
    )


def _placed(
    load: Callable[[Finish], dict[str, Any]], config: ModelConfig, mesh: Mesh
) -> Callable[..., dict[str, Any]]:
    """`load` whose leaves go to the mesh one by one, if they are not there, after what else is to be done with
    them."""

    def placed(finish: Finish = lambda path, leaf: leaf) -> dict[str, Any]:
        axes = logical_axes(config)

        def last(path: tuple[str, ...], leaf: Any) -> Any:
            kept = finish(path, leaf)
            names = functools.reduce(lambda tree, key: tree[key], path, axes)
            return put_tree(kept, shardings(names, kept, mesh))

        return load(last)

    return placed


def _from_scratch(source: ModelSource, seed: int, mesh: Mesh) -> Start:
    """Fresh weights for a named architecture or a config.json, as wide as the tokenizer is."""
    tokenizer = Tokenizer.load(source.tokenizer) if source.tokenizer else Tokenizer.builtin()
    config = _architecture(source.architecture)
    config = replace(
        config,
        vocab_size=tokenizer.vocab_size,
        per_layer_vocab_size=tokenizer.vocab_size if config.per_layer_input_width else 0,
        token_ids=replace(
            config.token_ids, pad=tokenizer.pad_id, bos=tokenizer.bos_id, eos=tokenizer.stop_ids
        ),
    )

    def load(finish: Finish) -> dict[str, Any]:
        params = init_params(config, jax.random.key(seed), dtype_named(source.param_dtype))
        return finish_leaves(params, finish)

    return Start(
        config=config,
        tokenizer=tokenizer,
        module=_module(config, source, mesh),
        mesh=mesh,
        load=_placed(load, config, mesh),
    )


def _architecture(name: str) -> ModelConfig:
    if name in PRESETS or not name.endswith(".json"):
        return preset(name)
    try:
        raw = json.loads(Path(name).read_text())
    except OSError as error:
        raise UserError(f"cannot read model.architecture {name}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"model.architecture {name} is not JSON: {error.msg}") from None
    return config_from_hf(raw)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Digest of the files that a tokenizer was read from."""
    digest = hashlib.blake2b(digest_size=12)
    for name, data in sorted(tokenizer.files.items()):
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()


def check_same_tokens(start: Start, other: Start, path: str) -> None:
    """UserError unless the model in `path` reads the tokens that `start` reads."""
    if tokenizer_fingerprint(start.tokenizer) != tokenizer_fingerprint(other.tokenizer):
        raise UserError(
            f"the tokenizer of loss.reference_path {path} is not that of the run: their log-probabilities "
            "are of different tokens; take a reference with the same tokenizer"
        )
