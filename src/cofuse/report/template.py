"""Pages from templates: one file of HTML each, no script, no outside request."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from ..errors import CofuseError
from .words import duration, score, short, signed


def rendered(template: str, *styles: str, **values: Any) -> str:
    """A page.

    Args:
        template: the name of a template of this package, escaped but for what is `Markup`.
        styles: names of style sheets of this package, on top of `page.css`.
        values: what the template shows.

    Raises:
        CofuseError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise CofuseError("a page needs jinja2", hint='pip install "cofuse[report]"') from None
    here = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": score, "signed": signed, "short": short, "duration": duration}
    style = "".join((here / name).read_text(encoding="utf-8") for name in ("page.css", *styles))
    text = (here / f"{template}.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(style=drawn(style), **values)


def drawn(html: str) -> Any:
    """HTML or SVG of our own making, which a page takes as it is: names in it are escaped where it is made.

    Raises:
        CofuseError: jinja2 is not installed.
    """
    try:
        from markupsafe import Markup
    except ImportError:
        raise CofuseError("a page needs jinja2", hint='pip install "cofuse[report]"') from None
    return Markup(html)  # noqa: S704 - our own
