"""Charts as inline SVG: no script, no file beside the page, colours from the page's own variables."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape


def bars(rows: Sequence[tuple[str, float, str]], unit: str) -> Markup:
    """Horizontal bars from zero.

    Args:
        rows: (label, value, CSS class) of each bar.
        unit: printed behind the value.
    """
    top = max((value for _, value, _ in rows), default=1.0) or 1.0
    step, width = 30, 640
    parts = [f'<svg viewBox="0 0 {width} {step * len(rows)}" role="img" class="chart">']
    for index, (label, value, kind) in enumerate(rows):
        y, length = index * step, 380 * value / top
        parts.append(
            f'<text x="120" y="{y + 19}" class="label" text-anchor="end">{escape(label)}</text>'
            f'<rect x="130" y="{y + 5}" width="{max(length, 1):.1f}" height="20" class="{escape(kind)}"/>'
            f'<text x="{138 + length:.1f}" y="{y + 19}" class="value">{value:.2f} {escape(unit)}</text>'
        )
    return Markup("".join(parts) + "</svg>")


def curve(points: Sequence[tuple[str, float]], unit: str) -> Markup:
    """One column for each named value; the name shows when the column is pointed at."""
    width, height, base, left = 640.0, 160.0, 150.0, 46.0
    top = max((value for _, value in points), default=1.0) or 1.0
    step = (width - left) / max(1, len(points))
    parts = [f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" class="chart">']
    for share in (0.0, 0.5, 1.0):
        y = base - 130 * share
        parts.append(f'<line x1="{left:.0f}" x2="{width:.0f}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="2" y="{y + 4:.1f}" class="tick">{top * share:.0f} {escape(unit)}</text>')
    for index, (name, value) in enumerate(points):
        tall = 130 * max(value, 0.0) / top
        parts.append(
            f'<rect x="{left + (index + 0.1) * step:.2f}" y="{base - tall:.2f}" width="{0.8 * step:.2f}" '
            f'height="{tall:.2f}" class="int8"><title>{escape(name)}: {value:.1f} {escape(unit)}</title></rect>'
        )
    return Markup("".join(parts) + "</svg>")


def histogram(edges: Sequence[float], counts: Sequence[float], low: float, high: float) -> Markup:
    """Histogram with square-root heights; the range that is kept is shaded."""
    left, span = edges[0], (edges[-1] - edges[0]) or 1.0
    top = max(counts) ** 0.5 or 1.0

    def x(value: float) -> float:
        return 200 * min(max((value - left) / span, 0.0), 1.0)

    parts = [
        '<svg viewBox="0 0 200 60" role="img" class="chart">'
        f'<rect x="{x(low):.1f}" y="0" width="{x(high) - x(low):.1f}" height="60" class="kept"/>'
    ]
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        tall = 56 * count**0.5 / top
        parts.append(
            f'<rect x="{x(start):.2f}" y="{60 - tall:.2f}" width="{max(x(end) - x(start), 0.3):.2f}" '
            f'height="{tall:.2f}" class="fp32"/>'
        )
    return Markup("".join(parts) + "</svg>")
