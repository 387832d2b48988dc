"""Text to token ids and back, from `tokenizer.json` or `tokenizer.model`.

Here: finding the files, control tokens, decoding. Not here: how ordinary text is cut (the two
backends), and the chat format (`chat.py`). Control tokens are recognised or not at the caller's
choice: text from users and tools is encoded with `control=False` and can then never open or close a
turn.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError, unknown
from gemma4_jax.text import control
from gemma4_jax.text.huggingface_backend import HuggingFaceBackend
from gemma4_jax.text.sentencepiece_backend import SentencePieceBackend, is_markup
from gemma4_jax.text.streaming import StreamDecoder

#: Files that belong to a tokenizer and travel with it.
_COMPANIONS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A vocabulary with its control tokens. Make one with `load` or `builtin`."""

    backend: SentencePieceBackend | HuggingFaceBackend
    files: Mapping[str, bytes]
    special: Mapping[str, str]

    @classmethod
    def load(cls, path: str | Path, *, sentencepiece_markup: bool = False) -> "Tokenizer":
        """Read a tokenizer from a file, or from a folder (`tokenizer.json` before
        `tokenizer.model`).

        Args:
          path: `tokenizer.json`, a SentencePiece model, or a folder with one of them.
          sentencepiece_markup: keep the HTML tags, `[multimodal]` and `<unusedN>` whole, as
          Google's
            SentencePiece file does. Off, they are cut like any text, as in Hugging Face's files.

        Raises:
          UserError: no such path, no tokenizer in the folder, or a damaged file.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder to read a tokenizer from")
        if path.is_dir():
            main = next(
                (path / n for n in ("tokenizer.json", "tokenizer.model") if (path / n).is_file()),
                None,
            )
            if main is None:
                raise UserError(
                    f"{path}: no tokenizer here; expected tokenizer.json or tokenizer.model in it"
                )
            names = [name for name in _COMPANIONS if (path / name).is_file()]
            files = {name: (path / name).read_bytes() for name in names}
        else:
            main = path
            files = {_standard_name(path): path.read_bytes()}
        return cls._from_files(files, str(main), sentencepiece_markup)

    @classmethod
    def builtin(cls) -> "Tokenizer":
        """The Gemma 4 vocabulary that comes with this package (262144 pieces)."""
        return _builtin()

    @classmethod
    def _from_files(cls, files: Mapping[str, bytes], where: str, markup: bool) -> "Tokenizer":
        config = _read_config(files.get("tokenizer_config.json"), where)
        special = {
            kind: name
            for kind in ("bos", "eos", "pad")
            if (name := _token_name(config.get(f"{kind}_token")))
        }
        backend: SentencePieceBackend | HuggingFaceBackend
        if "tokenizer.json" in files:
            listed = config.get("extra_special_tokens")
            values = listed.values() if isinstance(listed, dict) else listed or ()
            extra = [name for value in values if (name := _token_name(value))]
            backend = HuggingFaceBackend.load(
                files["tokenizer.json"],
                where=where,
                markup=_builtin_markup() if markup else (),
                extra=[*extra, *special.values()],
            )
        else:
            backend = SentencePieceBackend.load(
                files["tokenizer.model"], where=where, markup=markup
            )
        return cls(backend, dict(files), special)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, {len(self.control_tokens)} of them control)"

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        return self.backend.vocab_size

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Name to id of the control tokens that this vocabulary has."""
        return self.backend.controls

    @property
    def bos_id(self) -> int:
        """Id of the token that begins every document."""
        return self._special_id("bos", control.BOS)

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a document (a turn ends with `<turn|>`)."""
        return self._special_id("eos", control.EOS)

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return self._special_id("pad", control.PAD)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a model's output: `<eos>`, `<turn|>`, `<|tool_response>` if present."""
        present = [self.control_tokens[n] for n in control.STOPS if n in self.control_tokens]
        return tuple(dict.fromkeys([self.eos_id, *present]))

    def token_id(self, name: str) -> int:
        """Id of a token by its exact spelling; UserError if the vocabulary lacks it."""
        found = self.control_tokens.get(name, self.backend.find(name))
        if found is None:
            raise unknown("token", name, self.control_tokens)
        return found

    def encode(self, text: str, *, control: bool = True) -> list[int]:
        """Ids of `text`. Never adds `<bos>`.

        Args:
          text: any string; lone surrogates, which have no UTF-8 form, become U+FFFD. control:
          whether the names of control tokens in the text stand for those tokens. With False
            they are encoded as ordinary text: no id of the result is a control token's, whatever
            the text.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not control:
            return self._encode_plain(text)
        ids: list[int] = []
        for part in self._control_pattern.split(text):
            if part in self.control_tokens:
                ids.append(self.control_tokens[part])
            elif part:
                ids.extend(self._encode_plain(part))
        return ids

    def decode(self, ids: Iterable[int], *, skip_control: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. `skip_control` leaves control
        tokens out."""
        token_bytes = functools.partial(self._token_bytes, skip_control)
        return b"".join(map(token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """What one id adds to the decoded text; a control token's name for that token."""
        return self._token_bytes(False, token)

    def stream(self, *, skip_control: bool = False) -> StreamDecoder:
        """A decoder for tokens that come one at a time."""
        return StreamDecoder(functools.partial(self._token_bytes, skip_control))

    def save(self, folder: str | Path) -> None:
        """Write the files that this tokenizer was read from into `folder`, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    def split_control(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut `text` at control tokens: (part, id), the id being None for ordinary text."""
        for part in self._control_pattern.split(text):
            if part:
                yield part, self.control_tokens.get(part)

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        names = sorted(self.control_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})" if names else r"(?!)")

    @functools.cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control_tokens.values())

    def _encode_plain(self, text: str) -> list[int]:
        ids = self.backend.encode(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # Some merge spelled out a control token. Cut inside every such name: a token decodes to
        # exactly its text, so a part that does not contain the name cannot yield its id.
        parts: list[str] = []
        begin = 0
        for match in self._control_pattern.finditer(text):
            parts.append(text[begin : match.start() + 1])
            begin = match.start() + 1
        parts.append(text[begin:])
        return [i for part in parts for i in self.backend.encode(part)]

    def _token_bytes(self, skip_control: bool, token: int) -> bytes:
        token = int(token)
        if not 0 <= token < self.vocab_size:
            raise UserError(
                f"token id {token} is outside this vocabulary (0 to {self.vocab_size - 1}); "
                "the model and the tokenizer do not belong together"
            )
        if token in self._control_ids:
            return b"" if skip_control else self._control_names[token].encode()
        return self.backend.token_bytes(token)

    @functools.cached_property
    def _control_names(self) -> dict[int, str]:
        return {i: name for name, i in self.control_tokens.items()}

    def _special_id(self, kind: str, default: str) -> int:
        if default in self.control_tokens:
            return self.control_tokens[default]
        return self.token_id(self.special.get(kind, default))


@functools.cache
def _builtin() -> Tokenizer:
    asset = resources.files("gemma4_jax.text") / "assets" / "tokenizer_gemma4.model"
    return Tokenizer._from_files({"tokenizer.model": asset.read_bytes()}, str(asset), markup=False)


@functools.cache
def _builtin_markup() -> tuple[str, ...]:
    """The strings that Google's SentencePiece file keeps whole and Hugging Face's does not."""
    pieces = _builtin().backend.ids
    return tuple(piece for piece in pieces if piece[0] in "<[" and is_markup(piece))


def _standard_name(path: Path) -> str:
    return "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"


def _read_config(data: bytes | None, where: str) -> dict[str, Any]:
    try:
        config = json.loads(data or b"{}")
    except ValueError:
        raise UserError(f"tokenizer_config.json beside {where} is not JSON") from None
    return config if isinstance(config, dict) else {}


def _token_name(value: object) -> str | None:
    """A token as `tokenizer_config.json` writes it: its text, or a mapping with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
