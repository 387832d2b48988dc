"""Charts of scores with their intervals, as inline SVG that follows a page's colours.

    whiskers(rows)     one line a score: a dot, its interval, and a mark where someone else's stands
    curves(lines)      scores against a number such as a checkpoint's step

Not here: pages (gemma4_jax/pages.py), numbers (results.py). The same numbers make the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from eval.stats import Interval

_WIDTH, _LEFT, _RIGHT, _LINE = 760, 210, 150, 26
_HEIGHT, _BOTTOM, _TOP = 320, 46, 16
# Told apart by the colour-blind too (Okabe and Ito), on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9")
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A score. mark: another to stand beside it, from 0 to 1; None for none."""

    name: str
    score: Interval
    mark: float | None = None


def whiskers(rows: Sequence[Row], mark: str = "") -> str:
    """Dots with intervals on a scale from 0 to 1. mark: what the marks are."""
    height = _TOP + _LINE * len(rows) + _BOTTOM
    drawn = []
    for tick in _TICKS:
        x = _across(tick)
        drawn.append(_line(x, _TOP, x, height - _BOTTOM, "grid"))
        drawn.append(_text(x, height - _BOTTOM + 16, f"{tick:.0%}", "middle"))
    for i, row in enumerate(rows):
        y = _TOP + _LINE * (i + 0.5)
        low, middle, high = map(_across, (row.score.low, row.score.estimate, row.score.high))
        drawn.append(_text(_LEFT - 10, y + 4, _short(row.name), "end"))
        drawn.append(_line(low, y, high, y, "whisker", _COLOURS[0]))
        drawn.append(f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="4" fill="{_COLOURS[0]}"/>')
        if row.mark is not None:
            x = _across(row.mark)
            drawn.append(_line(x, y - 9, x, y + 9, "whisker", _COLOURS[1]))
        drawn.append(_text(_WIDTH - _RIGHT + 12, y + 4, percent(row.score), "start"))
    if mark and any(row.mark is not None for row in rows):
        drawn.append(_line(_LEFT, height - 14, _LEFT, height - 2, "whisker", _COLOURS[1]))
        drawn.append(_text(_LEFT + 8, height - 4, mark, "start"))
    return _svg(height, drawn)


def curves(lines: Mapping[str, Sequence[tuple[float, Interval]]], across: str) -> str:
    """Scores with intervals over x, one colour a line; `across` says what x is. Every line needs a point."""
    xs = [x for points in lines.values() for x, _ in points]
    scores = [score for points in lines.values() for _, score in points]
    least, most = min(xs), max(xs)
    floor, ceiling = min(s.low for s in scores), max(s.high for s in scores)
    legend = 18 * len(lines)
    bottom = _HEIGHT - _BOTTOM
    span = (most - least) or 1.0
    rise = (ceiling - floor) or 1.0

    def place(x: float, score: float) -> tuple[float, float]:
        return (
            70 + (x - least) / span * (_WIDTH - 100),
            bottom - (score - floor) / rise * (bottom - _TOP),
        )

    drawn = []
    for i in range(5):
        level = floor + i / 4 * rise
        _, y = place(least, level)
        drawn.append(_line(70, y, _WIDTH - 30, y, "grid"))
        drawn.append(_text(60, y + 4, f"{level:.1%}", "end"))
    for x in _few(sorted(set(xs))):
        drawn.append(_text(place(x, floor)[0], bottom + 18, f"{x:g}", "middle"))
    drawn.append(_text(_WIDTH / 2, bottom + 36, across, "middle"))
    for number, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = sorted(points, key=lambda point: point[0])
        places = [place(x, score.estimate) for x, score in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for (x, score), (at, y) in zip(points, places, strict=True):
            drawn.append(
                _line(at, place(x, score.low)[1], at, place(x, score.high)[1], "whisker", colour)
            )
            drawn.append(f'<circle cx="{at:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        below = _HEIGHT + 18 * number
        drawn.append(f'<circle cx="76" cy="{below - 4}" r="4" fill="{colour}"/>')
        drawn.append(_text(86, below, name, "start"))
    return _svg(_HEIGHT + legend, drawn)


def percent(score: Interval) -> str:
    """An interval as people read it: 42.5% [31.0, 55.1]."""
    return f"{100 * score.estimate:.1f}% [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _few(values: Sequence[float]) -> Sequence[float]:
    """At most some ten of them, the first among them."""
    return values[:: -(-len(values) // 10)]


def _across(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _short(name: str) -> str:
    return name if len(name) <= 32 else name[:31] + "\N{HORIZONTAL ELLIPSIS}"


def _svg(height: int, drawn: Sequence[str]) -> str:
    body = "\n".join(drawn)
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    return f'<svg {size} role="img">\n{body}\n</svg>'


def _line(x: float, y: float, to_x: float, to_y: float, kind: str, colour: str = "") -> str:
    paint = f' stroke="{colour}"' if colour else ""
    return (
        f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"{paint}/>'
    )


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
