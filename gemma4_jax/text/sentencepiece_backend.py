"""A SentencePiece `tokenizer.model`, read so that it encodes as Hugging Face's `tokenizer.json`
does.

Here: the change of piece types that makes the two agree, and pieces as bytes. Splitting a text at
control tokens is not here: `tokenizer.py` does that alike for both kinds of file.

SentencePiece cuts a text at its user-defined pieces before it merges anything. For runs of
newlines, tabs and spaces that equals what merging gives. For control tokens it is unwanted
(ordinary text must not become one), and for 71 strings (HTML tags, `[multimodal]`) and `<unusedN>`
it differs from Hugging Face, where they are not matched. Those pieces are retyped CONTROL:
SentencePiece then neither matches nor forms them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from gemma4_jax.errors import UserError
from gemma4_jax.text import control

_MARKUP = re.compile(r"</?[a-z]+[0-9]?>|\[multimodal\]|<unused[0-9]+>")
_proto: Any = sentencepiece_model_pb2  # generated: type checkers cannot see inside
_Type: Any = _proto.ModelProto.SentencePiece


@dataclass(frozen=True, kw_only=True)
class SentencePieceBackend:
    """Ordinary text to ids, ids to bytes; `controls` has the ids of the control tokens."""

    processor: SentencePieceProcessor
    pieces: tuple[str, ...]
    byte_ids: Mapping[int, int]
    controls: Mapping[str, int]

    @classmethod
    def load(cls, data: bytes, *, where: str, markup: bool) -> "SentencePieceBackend":
        """Read a serialised model; `markup=True` keeps the 71 strings whole."""
        model = parse_model(data, where=where)
        names = [piece.piece for piece in model.pieces]
        ids = {name: i for i, name in enumerate(names)}
        controls = {name: ids[name] for name in control.ALL if name in ids}
        if control.VIDEO not in controls and control.VIDEO_ALIAS in ids:
            controls[control.VIDEO] = ids[control.VIDEO_ALIAS]
        hidden = set(controls.values()) - {ids.get(control.UNK, -1)}
        for i, piece in enumerate(model.pieces):
            is_whole = piece.type == _Type.USER_DEFINED and is_markup(piece.piece)
            if i in hidden or (is_whole and not markup):
                piece.type = _Type.CONTROL
        processor = SentencePieceProcessor()
        processor.LoadFromSerializedProto(model.SerializeToString())
        byte_ids = {
            i: int(piece.piece[3:5], 16)
            for i, piece in enumerate(model.pieces)
            if piece.type == _Type.BYTE
        }
        for name, i in controls.items():
            names[i] = name
        return cls(processor=processor, pieces=tuple(names), byte_ids=byte_ids, controls=controls)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece to id."""
        return {name: i for i, name in enumerate(self.pieces)}

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never the id of a control token."""
        ids: list[int] = self.processor.EncodeAsIds(text)
        return ids

    def token_bytes(self, index: int) -> bytes:
        """What one ordinary token adds to the decoded text."""
        if index in self.byte_ids:
            return bytes([self.byte_ids[index]])
        return self.pieces[index].replace("\u2581", " ").encode()

    def find(self, piece: str) -> int | None:
        """Id of a piece as the vocabulary spells it, or None."""
        return self.ids.get(piece)


def is_markup(piece: str) -> bool:
    """Whether SentencePiece keeps this string whole and Hugging Face's file does not."""
    return _MARKUP.fullmatch(piece) is not None


def parse_model(data: bytes, *, where: str) -> Any:
    """Parse and check a serialised SentencePiece model; `where` names it in errors."""
    try:
        SentencePieceProcessor().LoadFromSerializedProto(data)
    except RuntimeError:
        raise UserError(
            f"{where}: not a SentencePiece model, or a damaged one ({len(data)} bytes); "
            "fetch the file again"
        ) from None
    model = _proto.ModelProto.FromString(data)
    spec = model.normalizer_spec
    if spec.add_dummy_prefix or spec.remove_extra_whitespaces or spec.precompiled_charsmap:
        raise UserError(
            f"{where}: this SentencePiece model rewrites its text (dummy prefix, whitespace "
            "removal or normalisation); Gemma 4 vocabularies do not, so use one made without them"
        )
    return model
