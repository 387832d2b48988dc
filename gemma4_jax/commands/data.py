"""Show what training would see of a data set: `gemma4 data inspect FILE`.

FILE is a file (.jsonl, .parquet, .array_record), a folder of them, or a quoted glob. The first rows are
written out as the model reads them, with what is trained on in colour (between [[ and ]] where there is no
terminal); then token counts, a histogram of lengths, what is too long, and every kind of rejected row.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gemma4_jax.errors import UserError, unknown

if TYPE_CHECKING:
    from gemma4_jax.data.encode import Encode, Encoded, Sequence
    from gemma4_jax.data.files import Rows
    from gemma4_jax.text.tokenizer import Tokenizer

_TASKS = ("sft", "dpo")
_THOUGHTS = ("keep", "drop")
_TRAINED, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_BINS, _BAR = 12, 40
_SHOWN = 20  # rejected rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gemma4 data` takes."""
    parser.add_argument("action", metavar="inspect", choices=("inspect",), help="what to do")
    parser.add_argument("file", metavar="FILE", help="file, folder or quoted glob")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer file or model folder (default: Gemma 4's)"
    )
    parser.add_argument(
        "--family", default="large", metavar="NAME", help="chat format: large (default) or small"
    )
    parser.add_argument(
        "--task", metavar="NAME", help="sft or dpo (default: what the first row is made for)"
    )
    parser.add_argument(
        "--thoughts",
        default="keep",
        metavar="NAME",
        help="keep (default) or drop, as data.thoughts",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        default=2048,
        metavar="N",
        help="limit in tokens, as data.max_length (default: 2048)",
    )
    parser.add_argument(
        "--rows", type=int, default=3, metavar="N", help="rows to write out (default: 3)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read everything, write the first rows out, then say what there is."""
    for name, known in (("task", _TASKS), ("thoughts", _THOUGHTS)):
        value = getattr(arguments, name)
        if value is not None and value not in known:
            raise unknown(name, value, known)
    for name, least in (("max_length", 2), ("rows", 0)):
        if getattr(arguments, name) < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {getattr(arguments, name)}; it must be at least {least}")

    from gemma4_jax.commands.display import colours
    from gemma4_jax.data.encode import dpo_encoder, sft_encoder
    from gemma4_jax.data.files import Rows, find_files
    from gemma4_jax.text import chat
    from gemma4_jax.text.tokenizer import Tokenizer

    if arguments.family not in chat.FAMILIES:
        raise unknown("family", arguments.family, chat.FAMILIES)
    rows = Rows(find_files(arguments.file))
    try:
        path = arguments.tokenizer
        tokenizer = Tokenizer.load(path) if path else Tokenizer.builtin()
        task = arguments.task or _task(rows)
        make = dpo_encoder if task == "dpo" else sft_encoder
        encode = make(tokenizer, arguments.family, arguments.thoughts)
        counts = _inspect(
            rows, encode, tokenizer, arguments.rows, arguments.max_length, colours(sys.stdout)
        )
    finally:
        rows.close()
    print("\n".join(counts.report(task, arguments.max_length)))


def _task(rows: Rows) -> str:
    """What the first readable row is made for."""
    from gemma4_jax.data.formats import is_pair

    for index in range(len(rows)):
        try:
            return "dpo" if is_pair(rows[index]) else "sft"
        except UserError:
            continue
    return "sft"


@dataclass
class _Counts:
    """What was seen so far. lengths: of examples, of a pair's longer side."""

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    cut: int = 0
    dropped: int = 0
    lengths: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)

    def add(self, encoded: Encoded, max_length: int) -> None:
        """Count a row."""
        self.formats[encoded.format] += 1
        for example in encoded.examples:
            self.tokens += sum(len(side.tokens) for side in example)
            self.trained += sum(int(side.loss_mask[1:].sum()) for side in example)
            self.lengths.append(max(len(side.tokens) for side in example))
            if self.lengths[-1] > max_length:
                left = all(side.loss_mask[1:max_length].any() for side in example)
                self.cut, self.dropped = self.cut + left, self.dropped + (not left)

    def report(self, task: str, max_length: int) -> list[str]:
        """Lines for people."""
        read = self.rows - len(self.rejected)
        formats = ", ".join(f"{name} {count}" for name, count in self.formats.most_common())
        lines = [f"{read} of {self.rows} rows can be read as {task}: {formats or 'none'}"]
        if self.lengths:
            share = self.trained / self.tokens
            kind = "pairs" if task == "dpo" else "examples"
            lines.append(
                f"{len(self.lengths)} {kind}, {self.tokens} tokens, {self.trained} of them trained on "
                f"({share:.1%})"
            )
            lines += ["", *_histogram(self.lengths, max_length), ""]
            over = self.cut + self.dropped
            lines.append(
                f"longer than {max_length} tokens: {over} of {len(self.lengths)}"
                + (
                    f"; data.overlong drop leaves them out; truncate cuts {self.cut} and leaves out "
                    f"{self.dropped}, whose targets are all beyond"
                    if over
                    else ""
                )
            )
        if self.rejected:
            lines.append(f"rejected rows: {len(self.rejected)}")
            lines += [f"  {complaint}" for complaint in self.rejected[:_SHOWN]]
            if len(self.rejected) > _SHOWN:
                lines.append(f"  and {len(self.rejected) - _SHOWN} more")
        return lines


def _inspect(
    rows: Rows, encode: Encode, tokenizer: Tokenizer, shown: int, max_length: int, colour: bool
) -> _Counts:
    """Go through all rows; the first `shown` that can be read are written out."""
    counts = _Counts(rows=len(rows))
    for index in range(len(rows)):
        where = rows.where(index)
        try:
            encoded = encode(rows[index])
            for example in encoded.examples:
                if not all(side.loss_mask[1:].any() for side in example):
                    raise UserError("no token to learn from in this row")
        except UserError as error:
            counts.rejected.append(f"{where}: {str(error).removeprefix(f'{where}: ')}")
            continue
        counts.add(encoded, max_length)
        if shown:
            shown -= 1
            for line in _written_out(encoded, where, tokenizer, colour):
                print(line)
    return counts


def _written_out(encoded: Encoded, where: str, tokenizer: Tokenizer, colour: bool) -> list[str]:
    """A row as the model reads it."""
    lines = []
    for number, example in enumerate(encoded.examples, start=1):
        part = f", example {number} of {len(encoded.examples)}" if len(encoded.examples) > 1 else ""
        sides = ("chosen", "rejected") if len(example) == 2 else ("",)
        for side, sequence in zip(sides, example, strict=True):
            trained = int(sequence.loss_mask[1:].sum())
            title = (
                f"{where}: {encoded.format}{part}{side and ', '}{side}, {len(sequence.tokens)} tokens, "
                f"{trained} trained on"
            )
            lines.append(f"{_DIM}--- {title}{_PLAIN}" if colour else f"--- {title}")
            lines += [_marked(sequence, tokenizer, colour), ""]
    return lines


def _marked(sequence: Sequence, tokenizer: Tokenizer, colour: bool) -> str:
    """Text of a sequence; the stretches that are trained on stand out."""
    import numpy as np

    # The first token is never a target: nothing before it could predict it.
    mask = sequence.loss_mask.copy()
    mask[:1] = False
    borders = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(mask)]
    begin, end = (_TRAINED, _PLAIN) if colour else ("[[", "]]")
    text = ""
    for start, stop in itertools.pairwise(borders):
        # Data must not steer the terminal they are shown on.
        piece = tokenizer.decode(sequence.tokens[start:stop].tolist()).replace(
            "\x1b", "\N{SYMBOL FOR ESCAPE}"
        )
        text += f"{begin}{piece}{end}" if mask[start] else piece
    return text


def _histogram(lengths: list[int], max_length: int) -> list[str]:
    """Lengths in tokens: quantiles, and a bar for each of some equal ranges."""
    import numpy as np

    values = np.asarray(lengths)
    quantiles = np.quantile(values, (0.5, 0.9, 0.99), method="higher").astype(int)
    lines = [
        f"length: mean {values.mean():.0f}, median {quantiles[0]}, 90 % within {quantiles[1]}, "
        f"99 % within {quantiles[2]}, longest {values.max()}"
    ]
    low, high = int(values.min()), int(values.max())
    step = max(1, -(-(high + 1 - low) // _BINS))
    edges = np.arange(low, high + step + 1, step)
    found, _ = np.histogram(values, edges)
    width = len(str(int(edges[-1])))
    for start, stop, count in zip(edges, edges[1:], found, strict=False):
        if start > high:
            break
        bar = "#" * -(-int(count) * _BAR // int(found.max()))
        mark = " <- max length" if start <= max_length < stop - 1 and max_length < high else ""
        lines.append(f"  {start:>{width}}-{stop - 1:<{width}} {bar:<{_BAR}} {count}{mark}")
    return lines
