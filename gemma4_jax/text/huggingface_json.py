"""A SentencePiece vocabulary as Hugging Face's `tokenizer.json`.

Here: the merges, which SentencePiece implies by its scores and Hugging Face lists, and the rest of the
file. For Gemma 4's vocabulary the 514 906 merges come out as Google's own list, in its order.
"""

import json
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError
from gemma4_jax.text import control
from gemma4_jax.text.sentencepiece_backend import SentencePieceBackend, parse_model
from gemma4_jax.text.tokenizer import Tokenizer


def save_huggingface_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a tokenizer so that transformers and `tokenizers` read it, beside its own files.

    A tokenizer that came as `tokenizer.json` is written as it was. For a SentencePiece one,
    `tokenizer.json` and `tokenizer_config.json` are made (some seconds for Gemma 4's vocabulary).
    """
    tokenizer.save(folder)
    if isinstance(tokenizer.backend, SentencePieceBackend):
        names = {"pad_token": control.PAD, "eos_token": control.EOS, "bos_token": control.BOS}
        names["unk_token"] = control.UNK
        controls = _controls(tokenizer.backend)
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        # tokenizer.json calls them special too, but converters (llama.cpp's) ask transformers, which goes by
        # this list: without it "<|turn>" is spelt out in letters there.
        config["additional_special_tokens"] = [n for n in controls if n not in names.values()]
        text = json.dumps(config | {"padding_side": "left"}, indent=2) + "\n"
        (Path(folder) / "tokenizer.json").write_text(huggingface_json(tokenizer), "utf-8")
        (Path(folder) / "tokenizer_config.json").write_text(text, "utf-8")


def huggingface_json(tokenizer: Tokenizer) -> str:
    """The text of the `tokenizer.json` that encodes as `tokenizer` does; UserError if it has one."""
    backend = tokenizer.backend
    if not isinstance(backend, SentencePieceBackend):
        raise UserError("this tokenizer was read from a tokenizer.json already; use save")
    scores = [
        piece.score
        for piece in parse_model(tokenizer.files["tokenizer.model"], where="tokenizer.model").pieces
    ]
    spec: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for name, i in _controls(backend).items()
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": control.UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": backend.ids,
            "merges": _merges(backend.ids, scores),
        },
    }
    return json.dumps(spec, ensure_ascii=False)


def _merges(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others; better pieces first, then longer left parts."""
    found = sorted(
        (-scores[index], -cut, -len(piece), index, piece)
        for piece, index in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    )
    return [(piece[:-cut], piece[-cut:]) for _, cut, _, _, piece in found]


def _controls(backend: SentencePieceBackend) -> dict[str, int]:
    """Control tokens in the order of their ids."""
    return dict(sorted(backend.controls.items(), key=lambda item: item[1]))
