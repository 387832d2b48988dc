"""A conversation as marked pieces of text, and those pieces as tokens.

Here: `Segment`, the writer that collects them, and their encoding. Which pieces a conversation has
is decided in `turns.py`. A segment knows two things about its text: whether control tokens in it
count (text of the format) or not (text of users, tools and models), and whether a model is trained
to write it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from gemma4_jax.text import control
from gemma4_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Segment:
    """Text of a prompt, whether control tokens in it count, and whether it is a target."""

    text: str
    control: bool
    target: bool = False


class SegmentWriter:
    """Collects segments; `target` says whether the model is trained to write what comes next."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.target = False

    def markup(self, text: str) -> None:
        """Text of the format: control tokens in it are control tokens."""
        self.segments.append(Segment(text, True, self.target))

    def text(self, text: str) -> None:
        """Text from elsewhere: whatever it spells, it is encoded as ordinary text."""
        if text:
            self.segments.append(Segment(text, False, self.target))

    def quoted(self, text: str) -> None:
        """A string value between its delimiters, without any escaping."""
        self.markup(control.QUOTE)
        self.text(text)
        self.markup(control.QUOTE)


def join(segments: Iterable[Segment]) -> str:
    """The text of all segments."""
    return "".join(segment.text for segment in segments)


def encode_segments(
    tokenizer: Tokenizer, segments: Sequence[Segment], *, control_in_content: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it is a target.

    Neighbouring segments are encoded together up to the next control token, so the ids are those of
    the whole text. A change of target is a border as well: a prompt's tokens do not depend on its
    completion.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for target, group in groupby(segments, key=lambda segment: segment.target):
        before = len(ids)
        pending = ""
        for segment in _merged(group, control_in_content):
            if not segment.control:
                pending += segment.text
                continue
            for part, token in tokenizer.split_control(segment.text):
                if token is None:
                    pending += part
                else:
                    ids += [*tokenizer.encode(pending, control=False), token]
                    pending = ""
        ids += tokenizer.encode(pending, control=False)
        mask += [target] * (len(ids) - before)
    return ids, mask


def _merged(segments: Iterable[Segment], control_in_content: bool) -> Iterable[Segment]:
    """With `control_in_content`, one segment of everything, so that content counts too."""
    return [Segment(join(segments), True)] if control_in_content else segments
