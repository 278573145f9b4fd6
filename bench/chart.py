"""The chart: one mark a contender, one line a workload, on a logarithmic scale, as plain SVG.

What is drawn is the speed beside that of the host file in the same round: 1 is no loss.  Marks
differ in shape as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from statistics import median

from bench.contenders import Contender
from bench.report import Row, rows
from bench.rounds import Results
from bench.workload import Workload

REFERENCE = "host"

_WIDTH = 920
_LEFT, _RIGHT = 250, 30  # Room for the workloads' names, and a margin.
_ROW = 26
_PLACE_HEAD = 34
_PLACE_FOOT = 30
_TOP = 84
_FOOT = 30
_SCALE_MIN = 0.001

_STYLE = """
  text { font-family: system-ui, sans-serif; font-size: 13px; fill: #24292f; }
  .title { font-size: 16px; font-weight: 600; }
  .place { font-weight: 600; }
  .faint { fill: #6e7781; font-size: 12px; }
  .grid { stroke: #d0d7de; stroke-width: 1; }
  .one { stroke: #6e7781; stroke-width: 1; stroke-dasharray: 4 3; }
  .spread { stroke-width: 2; stroke-opacity: 0.45; }
""".strip("\n")

_Shape = Callable[[float, float, str], str]


def _circle(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>'


def _polygon(corners: Sequence[tuple[float, float]]) -> _Shape:
    def draw(x: float, y: float, colour: str) -> str:
        points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
        return f'<polygon points="{points}" fill="{colour}"/>'

    return draw


# Colours that people who see no red or no green still tell apart (Okabe and Ito's set).
_MARKS: dict[str, tuple[str, _Shape]] = {
    "vdisk": ("#0072b2", _circle),
    "qsd": ("#d55e00", _polygon([(-5, -5), (5, -5), (5, 5), (-5, 5)])),
    "nbdfuse": ("#009e73", _polygon([(0, -6), (6, 5), (-6, 5)])),
    "loop": ("#9a6fb0", _polygon([(0, -7), (7, 0), (0, 7), (-7, 0)])),
}


def shares(row: Row) -> dict[str, tuple[float, float, float]]:
    """(least, median, greatest) speed beside the host file's, by contender, over the rounds."""
    base = row.figures.get(REFERENCE, {})
    found = {}
    for name in _MARKS:
        values = row.figures.get(name, {})
        beside = [value / base[number] for number, value in values.items() if base.get(number)]
        if beside:
            found[name] = (min(beside), median(beside), max(beside))
    return found


class _Scale:
    """From a share to an x: whole decades, enough for all that is drawn."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low = math.floor(math.log10(max(min(values), _SCALE_MIN)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)

    def x(self, share: float) -> float:
        part = (math.log10(max(share, 10.0**self.low)) - self.low) / (self.high - self.low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def ticks(self) -> Iterator[float]:
        """1, 2 and 5 of each decade, and the last decade's end."""
        for power in range(self.low, self.high):
            for step in (1, 2, 5):
                yield step * 10.0**power
        yield 10.0**self.high


def chart(
    all_results: Sequence[Results], workloads: Sequence[Workload], contenders: Sequence[Contender],
    caption: str,
) -> str | None:
    """The SVG file's text; None where there is nothing to draw (the host file was left out)."""
    panels = [(results.place.label, rows(results, workloads)) for results in all_results]
    values = [v for _, panel in panels for row in panel for share in shares(row).values()
              for v in share]
    if not values:
        return None
    scale = _Scale([*values, 1.0])
    parts = [*_heading(contenders, panels, caption)]
    y = float(_TOP)
    for label, panel in panels:
        parts += _panel(label, panel, scale, y)
        y += _PLACE_HEAD + len(panel) * _ROW + _PLACE_FOOT
    height = y + _FOOT - _PLACE_FOOT
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}" role="img">\n<style>\n{_STYLE}\n</style>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _heading(
    contenders: Sequence[Contender], panels: Sequence[tuple[str, Sequence[Row]]], caption: str
) -> Iterator[str]:
    yield _text(20, 26, "Speed beside the host file's (1 = no loss)", "title")
    yield _text(20, 46, caption, "faint")
    x = 20.0
    drawn = {name for _, panel in panels for row in panel for name in shares(row)}
    for contender in contenders:
        if contender.name in drawn:
            colour, shape = _MARKS[contender.name]
            yield shape(x + 7, 64, colour)
            yield _text(x + 20, 69, contender.label)
            x += 50 + 7.5 * len(contender.label)


def _panel(label: str, panel: Sequence[Row], scale: _Scale, y: float) -> Iterator[str]:
    top, bottom = y + _PLACE_HEAD, y + _PLACE_HEAD + len(panel) * _ROW
    yield _text(20, y + 22, label[:1].upper() + label[1:], "place")
    for tick in scale.ticks():
        x = scale.x(tick)
        kind = "one" if tick == 1.0 else "grid"
        yield (f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" '
               f'class="{kind}"/>')
        yield _text(x, bottom + 15, f"{tick:g}", "faint", anchor="middle")
    for at, row in enumerate(panel):
        middle = top + (at + 0.5) * _ROW
        yield _text(_LEFT - 12, middle + 4, row.workload.label, anchor="end")
        yield from _marks(row, scale, middle)


def _marks(row: Row, scale: _Scale, y: float) -> Iterator[str]:
    found = shares(row)
    # The subject is drawn last, so that no mark hides it.
    for name in reversed(_MARKS):
        if name in found:
            least, middle, greatest = found[name]
            colour, shape = _MARKS[name]
            yield (f'<line x1="{scale.x(least):.1f}" y1="{y:.1f}" x2="{scale.x(greatest):.1f}" '
                   f'y2="{y:.1f}" class="spread" stroke="{colour}"/>')
            yield shape(scale.x(middle), y, colour)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'
