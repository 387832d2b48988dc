"""A Hugging Face `tokenizer.json`, run by the `tokenizers` library on ordinary text.

Here: which added tokens are control tokens, and tokens as bytes for the two schemes in use
(SentencePiece style with byte fallback, as Gemma has it, and byte-level). Splitting a text at
control tokens is not here:
`tokenizer.py` does that. The control tokens are taken out of the file's list of added tokens before
the library sees it, so that it cannot match them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers

from gemma4_jax.errors import UserError
from gemma4_jax.text import control

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_KNOWN_DECODERS = {"Sequence", "Replace", "ByteFallback", "Fuse", "ByteLevel"}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceBackend:
    """Ordinary text to ids, ids to bytes; `controls` has the ids of the control tokens."""

    tokenizer: tokenizers.Tokenizer
    pieces: Mapping[int, str]
    literal: frozenset[int]
    byte_level: bool
    controls: Mapping[str, int]

    @classmethod
    def load(
        cls, data: bytes, *, where: str, markup: Sequence[str] = (), extra: Sequence[str] = ()
    ) -> "HuggingFaceBackend":
        """Read the file's bytes.

        `markup` are strings to keep whole where the vocabulary has them; `extra` are further names
        to treat as control tokens (`tokenizer_config.json` lists some).
        """
        try:
            spec = json.loads(data)
            vocab, added = dict(spec["model"]["vocab"]), list(spec.get("added_tokens") or ())
            pieces = {i: name for name, i in vocab.items()}
            pieces.update({token["id"]: token["content"] for token in added})
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{where}: not a tokenizer.json with a vocabulary, or a damaged one "
                f"({len(data)} bytes); fetch the file again"
            ) from None
        if (kind := spec["model"].get("type", "BPE")) != "BPE":
            raise UserError(f"{where}: a {kind} tokenizer is not supported; Gemma 4 uses BPE")
        decoders = set(_types(spec.get("decoder")))
        if unknown := decoders - _KNOWN_DECODERS:
            raise UserError(
                f"{where}: decoder {', '.join(sorted(unknown))} is not supported "
                f"(known: {', '.join(sorted(_KNOWN_DECODERS))})"
            )
        ids = {name: i for i, name in pieces.items()}
        names = {token["content"] for token in added if token.get("special")}
        names.update(name for name in (*control.ALL, *extra) if name in ids)
        controls = {name: ids[name] for name in names}
        rest = [token for token in added if token["content"] not in names]
        spec.update(added_tokens=rest, post_processor=None, truncation=None, padding=None)
        try:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{where}: the tokenizers library rejects it: {error}") from None
        whole = [s for s in markup if s in vocab and s not in names]
        tokenizer.add_tokens([tokenizers.AddedToken(s, normalized=False) for s in whole])
        return cls(
            tokenizer=tokenizer,
            pieces=pieces,
            literal=frozenset(token["id"] for token in added),
            byte_level="ByteLevel" in decoders,
            controls=controls,
        )

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece to id."""
        return {name: i for i, name in self.pieces.items()}

    @cached_property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return max(self.pieces) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, index: int) -> bytes:
        """What one ordinary token adds to the decoded text; nothing for an unused id."""
        piece = self.pieces.get(index, "")
        if index in self.literal:
            return piece.encode()
        if self.byte_level:
            return b"".join(_BYTE_OF.get(char, char.encode()) for char in piece)
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def find(self, piece: str) -> int | None:
        """Id of a piece as the vocabulary spells it, or None."""
        return self.ids.get(piece)


def _types(node: Any) -> Iterator[str]:
    """The types of a decoder and of the decoders inside it."""
    if isinstance(node, dict):
        yield str(node.get("type"))
        for child in node.get("decoders") or ():
            yield from _types(child)


def _byte_alphabet() -> dict[str, bytes]:
    """Byte-level alphabet: printable Latin-1 is itself, other bytes are U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    table = {chr(b): bytes([b]) for b in printable}
    return table | {chr(0x100 + i): bytes([b]) for i, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
