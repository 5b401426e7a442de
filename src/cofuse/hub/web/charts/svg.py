"""What pictures are made of."""

from __future__ import annotations

from html import escape

MINUS = "\N{MINUS SIGN}"


def opened(name: str, title: str, words: str, width: float, height: float, style: str = "chart") -> list[str]:
    """The beginning of a picture that is looked at; `words` are for those who cannot.

    Args:
        name: unique in the page.
        title: what it shows.
        words: the same as the picture, in words.
        width: in units of the drawing, about a pixel of a phone.
        height: the same.
        style: classes.
    """
    return [
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-title {name}-words">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-words">{escape(words)}</desc>',
    ]


def text(x: float, y: float, said: str, style: str = "") -> str:
    """Words at a place."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(said)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def dot(x: float, y: float, radius: float, said: str, style: str = "") -> str:
    """A dot that says what it is."""
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{escape(said)}</title></circle>'


def linked(href: str, said: str, drawing: str) -> str:
    """A drawing that leads somewhere."""
    return f'<a href="{escape(href)}" aria-label="{escape(said)}"><title>{escape(said)}</title>{drawing}</a>'


def figure(value: float) -> str:
    """A number beside an axis."""
    return f"{value:g}".replace("-", MINUS)


def cut(name: str, most: int) -> str:
    """A name that fits; the middle is what goes."""
    if len(name) <= most:
        return name
    left = (most - 1) // 2
    return f"{name[:left]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (most - 1 - left) :]}"
