"""Scores of the five models as Google printed them, to stand beside ours. Goals, with protocols unknown."""

from eval.task import Published

_MODELS = ("31b", "26b-a4b", "12b", "e4b", "e2b")
_SOURCE = "Gemma 4 model card and technical report (arXiv 2607.02770v2, table 5), thinking"


def of_gemma(*values: float, note: str = "") -> tuple[Published, ...]:
    """A row of the table. values: of 31B, 26B-A4B, 12B, E4B and E2B. note: what else is said of that row."""
    source = f"{_SOURCE}, {note}" if note else _SOURCE
    return tuple(
        Published(model=model, value=value, source=source)
        for model, value in zip(_MODELS, values, strict=True)
    )
