"""How a model came to be: releases on a line, newest first; the rounds between them, and what went into each. All can be clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from markupsafe import Markup

from .svg import cut, line, linked, text

WIDTH, SPINE, ASIDE, DOTS = 350, 40, 64, 154
STEP, PER_LINE = 16, 12
RELEASE, ROUND, LINE, TOP = 36, 38, 17, 20
_MOST_DOTS = 36


@dataclass(frozen=True, slots=True)
class Part:
    """A contribution in a round; `state` is in, dropped or revoked."""

    href: str
    said: str
    state: str


@dataclass(frozen=True, slots=True)
class Node:
    """A release or a round.

    Attributes:
        kind: release, round, revocation or rollback.
        name: what stands beside it.
        note: what stands beside that, in grey.
        state: of a round; see `Stage`.
        parts: what went in.
        back: the place in the list of the release that it goes back to.
    """

    kind: str
    href: str
    name: str
    note: str
    said: str
    state: str = "published"
    parts: Sequence[Part] = field(default=())
    back: int | None = None

    @property
    def passed(self) -> bool:
        """Whether the branch went on through it."""
        return self.kind == "release" or self.state == "published"

    @property
    def lines(self) -> int:
        """Lines of dots."""
        return max(1, -(-min(len(self.parts), _MOST_DOTS) // PER_LINE))

    @property
    def height(self) -> float:
        """Room that it takes."""
        return RELEASE if self.kind == "release" else ROUND + LINE * (self.lines - 1)


def draw_lineage(nodes: Sequence[Node], name: str) -> Markup:
    """The drawing.

    Args:
        nodes: the newest first, each round just below the release that came of it.
        name: unique in the page.
    """
    if not nodes:
        return Markup("")
    tops = [TOP + sum(n.height for n in nodes[:i]) for i in range(len(nodes) + 1)]
    middle = [tops[i] + (RELEASE / 2 if n.kind == "release" else ROUND / 2) for i, n in enumerate(nodes)]
    parts = [
        f'<svg class="chart lineage" viewBox="0 0 {WIDTH} {tops[-1] + 8:g}" role="group" aria-labelledby="{name}-title">',
        f'<title id="{name}-title">Releases, rounds and what went into them, newest first; each leads to its page</title>',
    ]
    on_spine = [middle[i] for i, n in enumerate(nodes) if n.passed]
    if len(on_spine) > 1:
        parts.append(line(SPINE, on_spine[0], SPINE, on_spine[-1], "spine"))
    for i, node in enumerate(nodes):
        if not node.passed:
            below = next((middle[k] for k in range(i + 1, len(nodes)) if nodes[k].kind == "release"), tops[-1])
            bend = min(below, middle[i] + 26)
            if below > on_spine[-1] if on_spine else True:
                bend = below = middle[i] + 18
            parts.append(
                f'<path class="aside" d="M{SPINE} {bend:.1f} C{SPINE} {middle[i]:.1f} {SPINE + 6} {middle[i]:.1f} {ASIDE} {middle[i]:.1f}"/>'
            )
        if node.back is not None and node.back > i:
            y, to = middle[i], middle[node.back]
            parts.append(f'<path class="back" d="M{SPINE - 9} {y:.1f} C4 {y:.1f} 4 {to:.1f} {SPINE - 11} {to:.1f}"/>')
            parts.append(f'<path class="arrow" d="M{SPINE - 17} {to - 5:.1f} l7 5 l-7 5"/>')
        parts.append(_node(node, middle[i]))
    return Markup("\n".join([*parts, "</svg>"]))  # noqa: S704 - escaped where it is made


def _node(node: Node, y: float) -> str:
    if node.kind == "release":
        drawn = f'<circle class="release" cx="{SPINE}" cy="{y:.1f}" r="8"/>'
        drawn += f'<rect class="hit" x="{SPINE - 14}" y="{y - 14:.1f}" width="{WIDTH - SPINE}" height="28"/>'
        drawn += text(SPINE + 20, y + 5, cut(node.name, 12), "version") + text(DOTS, y + 5, node.note, "tick")
        return linked(node.href, node.said, drawn)
    x = SPINE if node.passed else ASIDE
    shape = f'<path class="round {escape(node.kind)} {escape(node.state)}" d="M{x} {y - 7:.1f} l7 7 l-7 7 l-7 -7 z"/>'
    shape += f'<rect class="hit" x="{x - 10}" y="{y - 12:.1f}" width="{DOTS - x - 2}" height="24"/>'
    parts = [linked(node.href, node.said, shape + text(x + 14, y + 4.5, cut(node.name, 14), "label"))]
    for k, part in enumerate(node.parts[:_MOST_DOTS]):
        at_x, at_y = DOTS + 6 + STEP * (k % PER_LINE), y + LINE * (k // PER_LINE)
        drawn = f'<circle class="part {escape(part.state)}" cx="{at_x}" cy="{at_y:.1f}" r="5.5"/>'
        parts.append(linked(part.href, part.said, drawn))
    if len(node.parts) > _MOST_DOTS:
        at = y + LINE * (node.lines - 1) + 4.5
        parts.append(text(DOTS + STEP * PER_LINE, at, f"+{len(node.parts) - _MOST_DOTS}", "tick end"))
    if not node.parts and node.note:
        parts.append(text(DOTS, y + 4.5, cut(node.note, 28), "tick"))
    return "\n".join(parts)
