"""Tables of plain text, and numbers as people read them."""

from collections.abc import Sequence

_GIB = 2**30


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; the first to the left, the others to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def gib(size: int | float) -> str:
    """Bytes in GiB."""
    number = size / _GIB
    return f"{number:.3f}" if number >= 0.001 else f"{number:.1e}"


def grouped(count: int) -> str:
    """A whole number with a space between thousands."""
    return f"{count:,}".replace(",", " ")


def seconds(time: float) -> str:
    """Of a step."""
    return f"{time:.2f} s" if time >= 1 else f"{time * 1e3:.1f} ms"
