"""The pieces of the page: sections, tables, notes. Text is escaped; Markup passes through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Text = str | Markup


@dataclass(frozen=True, slots=True)
class Section:
    """A card of the page.

    Attributes:
        title: heading.
        body: content.
        wide: over both columns of a wide screen.
    """

    title: str
    body: Markup
    wide: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """One result as people see it.

    Attributes:
        headline: the sentence that matters most, the bad news first.
        sections: cards in reading order.
    """

    headline: str
    sections: tuple[Section, ...]


def joined(*parts: Text | None) -> Markup:
    """Parts one behind the other; None is left out."""
    return Markup("").join(part for part in parts if part is not None)


def paragraph(text: Text, kind: str = "soft") -> Markup:
    """A paragraph of class "soft", "headline" or "warn"."""
    return Markup('<p class="{}">{}</p>').format(kind, text)


def bullets(texts: Iterable[Text]) -> Markup:
    """A list."""
    return Markup("<ul>") + Markup("").join(Markup("<li>{}</li>").format(t) for t in texts) + Markup("</ul>")


def table(head: Sequence[str], rows: Iterable[Sequence[Text]], left: int = 1) -> Markup:
    """A table that scrolls by itself where it is too wide.

    Args:
        head: titles of the columns.
        rows: cells.
        left: so many columns hold text; the others hold numbers, aligned on the right.
    """

    def line(tag: str, cells: Sequence[Text]) -> Markup:
        kinds = ["t" if index < left else "n" for index in range(len(cells))]
        pairs = zip(kinds, cells, strict=True)
        return Markup("").join(Markup('<{0} class="{1}">{2}</{0}>').format(tag, k, c) for k, c in pairs)

    body = Markup("").join(Markup("<tr>{}</tr>").format(line("td", row)) for row in rows)
    return Markup(
        '<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(line("th", head), body)


def facts(pairs: Iterable[tuple[str, Text]]) -> Markup:
    """Named values side by side, as many a row as fit."""
    items = (Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in pairs)
    return Markup('<dl class="facts">{}</dl>').format(Markup("").join(items))


def folded(summary: str, body: Markup) -> Markup:
    """Content that shows when it is clicked."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def tile(body: Markup, caption: Text) -> Markup:
    """A small figure among others."""
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(body, caption)


def tiles(figures: Iterable[Markup]) -> Markup:
    """Small figures side by side."""
    return Markup('<div class="tiles">{}</div>').format(Markup("").join(figures))


def png(content_base64: str, alt: str) -> Markup:
    """A picture inside the page."""
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(escape(alt), content_base64)


def percent(share: float, digits: int = 1) -> str:
    """``0.123`` as ``12.3 %``, which doesn't break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
