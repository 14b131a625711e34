"""Charts without a script or a file beside the page; colours are the page's own variables.

Labels are HTML and only shapes are SVG, stretched to the width there is, so that text keeps its size on
a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_SIDE = 1000.0  # of the plots' own coordinates


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from zero.

    Attributes:
        label: name on the left, or above on a phone.
        value: length.
        kind: CSS class of its colour: "fp32", "bf16", "int8".
        upper: end of a thin line beyond the bar, such as the 90th percentile; None for none.
        text: printed behind the bar instead of value and unit.
    """

    label: str
    value: float
    kind: str
    upper: float | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points with rising x.

    Attributes:
        label: for the legend; empty for none.
        points: (x, y).
        kind: CSS class of its colour.
        dashed: drawn as a reference.
    """

    label: str
    points: Sequence[tuple[float, float]]
    kind: str
    dashed: bool = False


def bars(rows: Sequence[Bar], unit: str, digits: int = 2) -> Markup:
    """Horizontal bars on one scale, each with its number."""
    top = max((max(row.value, row.upper or 0.0) for row in rows), default=1.0) or 1.0
    parts = []
    for row in rows:
        length = 100 * max(row.value, 0.0) / top
        fill = Markup('<i class="{}" style="width:{:.2f}%"></i>').format(row.kind, length)
        if row.upper is not None and row.upper > row.value:
            whisker = '<i class="whisker" style="left:{:.2f}%;width:{:.2f}%"></i>'
            fill += Markup(whisker).format(length, 100 * row.upper / top - length)
        text = row.text if row.text is not None else f"{row.value:.{digits}f} {unit}"
        parts.append(
            Markup('<div class="bar"><span class="label">{}</span><span class="track">{}</span>'
                   '<span class="value">{}</span></div>').format(row.label, fill, text)
        )  # fmt: skip
    return Markup('<div class="bars">{}</div>').format(Markup("").join(parts))


def widths(rows: Sequence[tuple[str, int, int]]) -> Markup:
    """What is left of each: (label, before, after); the removed part is pale."""
    top = max((before for _, before, _ in rows), default=1) or 1
    parts = []
    for label, before, after in rows:
        shapes = Markup(
            '<i class="gone" style="width:{:.2f}%"></i><i class="int8 over" style="width:{:.2f}%"></i>'
        ).format(100 * before / top, 100 * after / top)
        parts.append(
            Markup('<div class="bar slim"><span class="label">{}</span><span class="track">{}</span>'
                   '<span class="value">{}</span></div>').format(label, shapes, f"{before} → {after}")
        )  # fmt: skip
    return Markup('<div class="bars">{}</div>').format(Markup("").join(parts))


def columns(points: Sequence[tuple[str, float]], unit: str) -> Markup:
    """One column for each named value; the name shows when the column is pointed at."""
    top = max((value for _, value in points), default=1.0) or 1.0
    step = _SIDE / max(1, len(points))
    column = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="int8">{}</rect>')
    parts = []
    for index, (name, value) in enumerate(points):
        tall = _SIDE * max(value, 0.0) / top
        title = Markup("<title>{}</title>").format(f"{name}: {value:.1f} {unit}")
        parts.append(column.format((index + 0.1) * step, _SIDE - tall, 0.8 * step, tall, title))
    shapes = Markup("").join(parts)
    return _plot(shapes, [f"{top:.0f} {unit}", f"{top / 2:.0f}", "0"], ["first layer", "last layer"])


def lines(series: Sequence[Line], x_label: str, *, digits: int = 3, from_zero: bool = False) -> Markup:
    """Lines on common axes.

    Args:
        series: at least one line with a point.
        x_label: what the x axis counts.
        digits: of the numbers at the y axis.
        from_zero: the y axis starts at zero, else at the smallest value.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    span = (high - low) or 1.0
    width = (max(xs) - min(xs)) or 1.0
    shapes = Markup("").join(_path(line, min(xs), width, low, span) for line in series)
    ticks = [f"{high:.{digits}f}", f"{(low + high) / 2:.{digits}f}", f"{low:.{digits}f}"]
    legend = Markup("").join(
        Markup('<span class="key"><i class="{}"></i>{}</span>').format(line.kind, line.label)
        for line in series
        if line.label
    )
    ends = [f"{min(xs):g}", x_label, f"{max(xs):g}"]
    plot = _plot(shapes, ticks, ends)
    return plot + Markup('<p class="legend">{}</p>').format(legend) if legend else plot


def _path(line: Line, left: float, width: float, low: float, span: float) -> Markup:
    points = " ".join(
        f"{_SIDE * (x - left) / width:.1f},{_SIDE - _SIDE * (y - low) / span:.1f}" for x, y in line.points
    )
    dashes = Markup(' stroke-dasharray="5 4"') if line.dashed else Markup()
    return Markup('<polyline points="{}" class="line {}"{}/>').format(points, line.kind, dashes)


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a field.

    Attributes:
        x: to the right.
        y: up.
        kind: CSS class of its colour: "fp32", "bf16", "int8".
        title: shown when it is pointed at.
        label: written beside it; empty for none, and the dot is pale.
    """

    x: float
    y: float
    kind: str
    title: str
    label: str = ""


def field(dots: Sequence[Dot], x_label: str, *, floor: float, digits: int = 2) -> Markup:
    """Dots in a plane, with a stair through the labelled ones, and a dashed line at a height.

    Args:
        dots: at least one; the labelled ones, from left to right, rise.
        x_label: what the x axis counts; it starts at zero.
        floor: height of the dashed line.
        digits: of the numbers at the axes.
    """
    right = 1.05 * max(dot.x for dot in dots)
    low, high = min(floor, *(dot.y for dot in dots)), max(floor, *(dot.y for dot in dots))
    span = 1.1 * (high - low) or 1.0
    bottom = low - span / 22

    def place(x: float, y: float) -> tuple[float, float]:
        return _SIDE * x / right, _SIDE - _SIDE * (y - bottom) / span

    front = sorted((dot for dot in dots if dot.label), key=lambda dot: dot.x)
    stair = [
        place(dot.x, y) for last, dot in zip([front[0], *front], front, strict=False) for y in (last.y, dot.y)
    ]
    stair.append((_SIDE, stair[-1][1]))
    shapes = [
        Markup('<polyline points="{}" class="line int8"/>').format(
            " ".join(f"{x:.1f},{y:.1f}" for x, y in stair)
        ),
        Markup('<line x1="0" x2="1000" y1="{0:.1f}" y2="{0:.1f}" class="mark" stroke-dasharray="5 4"/>').format(
            place(0.0, floor)[1]
        ),
    ]
    dot_shape = Markup(
        '<line x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{1:.1f}" class="dot {2}"><title>{3}</title></line>'
    )
    names = []
    for dot in dots:
        x, y = place(dot.x, dot.y)
        shapes.append(dot_shape.format(x, y, dot.kind if dot.label else f"{dot.kind} pale", dot.title))
        if dot.label:
            at = '<span class="at" style="left:{:.1f}%;top:{:.1f}%">{}</span>'
            names.append(Markup(at).format(x / 10, y / 10, dot.label))
    top = bottom + span
    ticks = [f"{value:.{digits}f}" for value in (top, (top + bottom) / 2, bottom)]
    return _plot(Markup("").join(shapes), ticks, ["0", x_label, f"{right:.{digits}f}"], Markup("").join(names))


def curve(points: Sequence[tuple[float, float]], top: float, mark: float | None = None) -> Markup:
    """A small curve over shares 0..1 with square-root heights.

    Args:
        points: (share, height >= 0), share rising.
        top: height of the frame, common to all curves that are compared.
        mark: share to mark with an upright line.
    """
    path = " ".join(f"{200 * x:.1f},{58 - 54 * (max(y, 0.0) / top) ** 0.5:.1f}" for x, y in points)
    upright = Markup()
    if mark is not None:
        upright = Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="60" class="mark"/>').format(200 * mark)
    line = Markup('<polyline points="{}" class="line int8"/>').format(path)
    return Markup('<svg viewBox="0 0 200 60" role="img" class="frame">{}{}</svg>').format(upright, line)


def histogram(edges: Sequence[float], counts: Sequence[float], low: float, high: float) -> Markup:
    """Histogram with square-root heights; the range that is kept is shaded."""
    left, span = edges[0], (edges[-1] - edges[0]) or 1.0
    top = max(counts) ** 0.5 or 1.0

    def x(value: float) -> float:
        return 200 * min(max((value - left) / span, 0.0), 1.0)

    parts = [
        Markup(
            '<svg viewBox="0 0 200 60" role="img" class="frame">'
            '<rect x="{:.1f}" y="0" width="{:.1f}" height="60" class="kept"/>'
        ).format(x(low), x(high) - x(low))
    ]
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        tall = 56 * count**0.5 / top
        parts.append(
            Markup('<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" class="fp32"/>').format(
                x(start), 60 - tall, max(x(end) - x(start), 0.3), tall
            )
        )
    return Markup("").join(parts) + Markup("</svg>")


def _plot(
    shapes: Markup, y_ticks: Sequence[str], x_ticks: Sequence[str], names: Markup | None = None
) -> Markup:
    """Shapes in a frame with grid lines; ticks from top to bottom and from left to right; names over them."""
    grid = Markup("").join(
        Markup('<line x1="0" x2="1000" y1="{0:.1f}" y2="{0:.1f}" class="grid"/>').format(
            _SIDE * index / (len(y_ticks) - 1)
        )
        for index in range(len(y_ticks))
    )
    y_axis, x_axis = (
        Markup("").join(Markup("<span>{}</span>").format(tick) for tick in ticks)
        for ticks in (y_ticks, x_ticks)
    )
    return Markup(
        '<div class="plot"><div class="y">{}</div><div class="field"><svg viewBox="0 0 1000 1000" '
        'preserveAspectRatio="none" role="img">{}{}</svg>{}</div><div class="x">{}</div></div>'
    ).format(y_axis, grid, shapes, names or Markup(), x_axis)


def heatmap(
    rows: Mapping[str, Sequence[float]],
    columns: Sequence[float],
    dots: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
) -> Markup:
    """A file of its own: one row of cells for each name, from pale (0) to dark (1) on a logarithmic scale.

    Args:
        rows: shade of each cell, 0..1, by name.
        columns: place of each cell on the x axis, evenly spaced.
        dots: places on the x axis to mark, by name.
        title: above.
        x_label: what the x axis counts.
    """
    left, top, cell, tall = 8 + 6 * max(map(len, rows), default=1), 28, 24, 14
    step = columns[1] - columns[0] if len(columns) > 1 else 1.0
    width, height = left + cell * len(columns) + 12, top + tall * len(rows) + 36
    text = Markup('<text x="{}" y="{}" font-size="{}"{}>{}</text>')
    end = Markup(' text-anchor="end"')
    parts = [text.format(8, 18, 12, Markup(), title)]
    for row, (name, shades) in enumerate(rows.items()):
        y = top + tall * row
        parts.append(text.format(left - 4, y + 10, 10, end, name))
        parts += [
            Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>').format(
                left + cell * column, y, cell, tall, _shade(shade)
            )
            for column, shade in enumerate(shades)
        ]
        parts += [
            Markup('<circle cx="{:.1f}" cy="{}" r="2" fill="#d33"/>').format(
                left + cell * ((place - columns[0]) / step + 0.5), y + tall / 2
            )
            for place in dots.get(name, ())
        ]
    below = top + tall * len(rows)
    parts += [
        text.format(f"{left + cell * (column + 0.5) + 8:.0f}", below + 12, 9, end, f"{place:g}")
        for column, place in enumerate(columns)
        if column % 2
    ]
    parts.append(text.format(left, below + 28, 11, Markup(), x_label))
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" '
        'font-family="sans-serif"><rect width="{0}" height="{1}" fill="#fff"/>'
    ).format(width, height)
    return head + Markup("").join(parts) + Markup("</svg>\n")


def _shade(share: float) -> str:
    """Colour from pale yellow to dark blue."""
    pale, dark = (255, 250, 210), (20, 30, 90)
    return "#" + "".join(
        f"{round(a + min(max(share, 0), 1) * (b - a)):02x}" for a, b in zip(pale, dark, strict=True)
    )
