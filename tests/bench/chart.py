"""The ratios as an SVG chart: a row for each line, a mark for each file system, on a logarithmic scale. Pure.

Its colours follow the reader's light or dark mode, and every system has a shape of its own as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tests.bench.figures import Figure
from tests.bench.report import Report, Row, as_ratio

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 900, 30, 220, 40, 96, 48
LOWEST, HIGHEST = 0.001, 1.6
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SIZE = 6.0

STYLE = """
svg { font: 13px system-ui, sans-serif; }
.page { fill: #ffffff; } .text { fill: #1f2328; } .dim { fill: #59636e; } .grid { stroke: #d8dee4; }
.band { fill: #f6f8fa; } .native { stroke: #1f2328; } .range { stroke-width: 2; opacity: .45; }
.s0 { fill: #0550ae; stroke: #0550ae; } .s1 { fill: #bc4c00; stroke: #bc4c00; } .s2 { fill: #6e7781; stroke: #6e7781; }
.s3 { fill: #8250df; stroke: #8250df; } .s4 { fill: #1a7f37; stroke: #1a7f37; } .s5 { fill: #bf3989; stroke: #bf3989; }
.target { fill: none; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; } .text { fill: #e6edf3; } .dim { fill: #9198a1; } .grid { stroke: #30363d; }
.band { fill: #151b23; } .native { stroke: #e6edf3; }
.s0 { fill: #58a6ff; stroke: #58a6ff; } .s1 { fill: #f0883e; stroke: #f0883e; } .s2 { fill: #9198a1; stroke: #9198a1; }
.s3 { fill: #bc8cff; stroke: #bc8cff; } .s4 { fill: #3fb950; stroke: #3fb950; } .s5 { fill: #f778ba; stroke: #f778ba; }
}
"""
STYLES = 6


def svg(report: Report) -> str:
    """The chart as a whole file."""
    rows = report.rows()
    height = TOP + ROW * len(rows) + BOTTOM
    systems = [system.title for system in report.compared]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title">',
        '<title id="title">Speed of cachefs and its peers as a share of the native folder\'s</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
        '<text class="text" x="20" y="30" font-size="16" font-weight="600">Speed as a share of the native folder\'s'
        "</text>",
        *_legend(systems),
        *_bands(rows),
        *_scale(height),
        *(mark for number, row in enumerate(rows) for mark in _row(report, row, TOP + ROW * number + ROW / 2)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def x_of(ratio: float) -> float:
    """Where a ratio stands; what lies outside of the scale stands at its end."""
    shown = min(max(ratio, LOWEST), HIGHEST)
    share = math.log(shown / LOWEST) / math.log(HIGHEST / LOWEST)
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _legend(systems: Sequence[str]) -> list[str]:
    parts, x = [], 26.0
    for number, title in enumerate(systems):
        parts += [_shape(number, x, 56), f'<text class="text" x="{x + 12:g}" y="60">{escape(title)}</text>']
        x += 38 + 7.2 * len(title)
    parts.append(
        f'<path class="native target" d="M{x:g} 48v16"/><text class="text" x="{x + 10:g}" y="60">target</text>'
    )
    return parts


def _bands(rows: Sequence[Row]) -> list[str]:
    return [
        f'<rect class="band" x="10" y="{TOP + ROW * number}" width="{WIDTH - 20}" height="{ROW}"/>'
        for number in range(0, len(rows), 2)
    ]


def _scale(height: int) -> list[str]:
    parts = []
    for ratio in GRID:
        x, kind = x_of(ratio), "native" if ratio == 1 else "grid"
        label = "1 = native" if ratio == 1 else f"{ratio:g}"
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts += [
            f'<text class="dim" x="{x}" y="{y}" text-anchor="middle">{label}</text>'
            for y in (TOP - 8, height - BOTTOM + 20)
        ]
    return parts


def _row(report: Report, row: Row, y: float) -> list[str]:
    """The spread of the rounds as a bar, the median as a mark; the peers first, so that cachefs lies on top."""
    parts = [f'<text class="text" x="20" y="{y + 4:g}">{escape(row.line.title)}</text>']
    for number, system in enumerate(report.compared):
        target = row.line.targets.get(system.kind)
        if target is not None:
            parts.append(f'<path class="s{number % STYLES} target" d="M{x_of(target)} {y - 12:g}v24"/>')
    for number, (system, figure) in reversed([*enumerate(zip(report.compared, row.ratios, strict=True))]):
        if figure is not None:
            parts += _mark(number, system.title, figure, y)
    return parts


def _mark(number: int, title: str, figure: Figure, y: float) -> list[str]:
    low, high, style = x_of(figure.low), x_of(figure.high), number % STYLES
    told = f"{title}: {as_ratio(figure.median)} ({as_ratio(figure.low)} to {as_ratio(figure.high)})"
    return [
        f'<line class="s{style} range" x1="{low}" x2="{high}" y1="{y:g}" y2="{y:g}"/>',
        f"<g><title>{escape(told)}</title>{_shape(number, x_of(figure.median), y)}</g>",
    ]


def _shape(number: int, x: float, y: float) -> str:
    """A circle, diamond, square, triangle, its reverse, or a cross."""
    style = number % STYLES
    if style == 0:
        return f'<circle class="s0" cx="{x:g}" cy="{y:g}" r="{SIZE:g}"/>'
    r = SIZE
    path = (
        f"M{x:g} {y - r:g}l{r:g} {r:g}l{-r:g} {r:g}l{-r:g} {-r:g}z",
        f"M{x - r + 1:g} {y - r + 1:g}h{2 * r - 2:g}v{2 * r - 2:g}h{2 - 2 * r:g}z",
        f"M{x:g} {y - r:g}l{r:g} {2 * r - 1:g}h{-2 * r:g}z",
        f"M{x:g} {y + r:g}l{r:g} {1 - 2 * r:g}h{-2 * r:g}z",
        f"M{x - 2:g} {y - r:g}h4v{r - 2:g}h{r - 2:g}v4h{2 - r:g}v{r - 2:g}h-4v{2 - r:g}h{2 - r:g}v-4h{r - 2:g}z",
    )[style - 1]
    return f'<path class="s{style}" d="{path}"/>'
