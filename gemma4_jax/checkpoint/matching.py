"""What a Hugging Face folder holds against what its config implies, before anything is read.

Towers, unused K/V and a tied output head are left out with a word; whatever else is missing, extra
or of the wrong shape is an error that names it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from gemma4_jax.checkpoint.huggingface import text_tensors, unused_kv
from gemma4_jax.checkpoint.safetensors import DTYPES, StoredTensor
from gemma4_jax.config import ModelConfig
from gemma4_jax.distributed import is_main
from gemma4_jax.errors import UserError

log = logging.getLogger("gemma4_jax")

# Where the text model's names begin: released and multimodal saves, text-only saves, older layouts.
PREFIXES = ("model.language_model.", "model.", "language_model.model.", "language_model.", "")
TOWERS = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.", "vision_embedder.")
_COMPARE_BYTES = 1 << 20


def match(
    folder: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The stored tensor of every name in the table; complains of missing and left-over ones."""
    prefix = next((p for p in PREFIXES if p + "embed_tokens.weight" in stored), None)
    if prefix is None:
        raise UserError(f"{folder}: no embed_tokens.weight under any of the prefixes {PREFIXES}")
    wanted = {tensor.name: tensor for tensor in text_tensors(config)}
    if missing := [name for name in wanted if prefix + name not in stored]:
        raise UserError(
            f"{folder}: {len(missing)} tensors are missing that config.json implies: "
            + ", ".join(f"{prefix}{name} {list(wanted[name].shape)}" for name in missing[:3])
            + (", ..." if len(missing) > 3 else "")
        )
    sources = {name: stored[prefix + name] for name in wanted}
    for name, source in sources.items():
        if source.shape != wanted[name].shape:
            raise UserError(
                f"{source.file}: {source.name} has shape {list(source.shape)}, "
                f"config.json implies {list(wanted[name].shape)}"
            )
        if source.dtype not in DTYPES:
            raise UserError(
                f"{source.file}: {source.name} is stored as {source.dtype}; supported are "
                f"{', '.join(DTYPES)} (quantised checkpoints: use the bfloat16 release)"
            )
    used = {source.name for source in sources.values()}
    rest = {name: s for name, s in stored.items() if name not in used}
    _sort_out_the_rest(folder, config, prefix, rest, sources["embed_tokens.weight"])
    return sources


def _sort_out_the_rest(
    folder: Path,
    config: ModelConfig,
    prefix: str,
    rest: dict[str, StoredTensor],
    table: StoredTensor,
) -> None:
    """Skip, with a word, what need not be read; refuse what is not known."""
    towers = [s for name, s in rest.items() if name.removeprefix("model.").startswith(TOWERS)]
    shared = [rest[prefix + name] for name in unused_kv(config) if prefix + name in rest]
    heads = [s for name, s in rest.items() if name.endswith("lm_head.weight")]
    known = {s.name for s in (*towers, *shared, *heads)}
    if unexpected := [name for name in rest if name not in known]:
        raise UserError(
            f"{folder}: {len(unexpected)} tensors do not belong to this model: "
            + ", ".join(unexpected[:3])
            + (", ..." if len(unexpected) > 3 else "")
        )
    if towers:
        kinds = sorted({t for t in TOWERS for s in towers if t in s.name})
        names = ", ".join(kind.rstrip(".") for kind in kinds)
        log.warning("%s: text only, skipped %s: %s", folder, names, _amount(towers))
    if shared:
        log.info("%s: ignored unused K/V of layers that share: %s", folder, _amount(shared))
    for head in heads:
        # Two of the biggest tensors, read whole for a word: one process does it.
        if is_main() and not _same_bytes(head, table):
            log.warning(
                "%s: %s differs from the embedding table and is ignored; Gemma 4 ties the two",
                folder,
                head.name,
            )


def _amount(tensors: list[StoredTensor]) -> str:
    return f"{len(tensors)} tensors, {sum(s.nbytes for s in tensors) / 1e6:.1f} MB"


def _same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with a.file.open("rb") as left, b.file.open("rb") as right:
        left.seek(a.offset)
        right.seek(b.offset)
        for start in range(0, a.nbytes, _COMPARE_BYTES):
            size = min(_COMPARE_BYTES, a.nbytes - start)
            if left.read(size) != right.read(size):
                return False
    return True
