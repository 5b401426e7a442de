"""A model's card: Markdown as HTML, where nothing that its author wrote becomes a tag, a script, or a request to elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

from ..frontmatter import without_front

MOST = 64 * 1024  # letters of a card that are shown: what is hostile takes a second or two, once
_NESTED = 20  # that lists and quotes may be deep


class _Renderer(RendererHTML):
    """Pictures become links: a card must not make those who read it ask another server."""

    def image(self, tokens: Any, idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        words = Markup.escape(self.renderInlineAsText(token.children or [], options, env) or "picture")
        where = str(token.attrs.get("src", ""))
        if where.startswith("data:"):
            return words
        found = Token("link_open", "a", 1, attrs={"href": where, "rel": _REL})
        return f"{self.renderToken([found], 0, options, env)}{words}</a>"


_REL = "nofollow ugc noopener noreferrer"


def _make() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "maxNesting": _NESTED}, renderer_cls=_Renderer)
    return made.enable(["table", "strikethrough"])


_MARKDOWN = _make()


@lru_cache(maxsize=256)
def card(text: str, base: str = "") -> Markup:
    r"""The card as HTML; its headings stand below the page's own.

    Args:
        text: Markdown, without the YAML before it: see `body`.
        base: where files are that it names without a place.

    >>> card("# A <b>model</b>").strip()
    Markup('<h3>A &lt;b&gt;model&lt;/b&gt;</h3>')
    >>> card("[x](javascript:alert(1)) ![y](data:image/png;base64,)").strip()
    Markup('<p>[x](javascript:alert(1)) y</p>')
    >>> card("![cat](cat.png)", "/org/model/tree/main").strip()
    Markup('<p><a href="/org/model/tree/main/cat.png" rel="nofollow ugc noopener noreferrer">cat</a></p>')
    """
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        elif token.type == "table_open":
            token.attrs = {"class": "card-table"}
        elif token.attrs.pop("style", "") == "text-align:right":  # which the policy of content does not let through
            token.attrs["class"] = "number"
        for child in token.children or []:
            if child.type == "link_open":
                child.attrs |= {"rel": _REL, "href": _from(base, str(child.attrs.get("href", "")))}
            elif child.type == "image":
                child.attrs["src"] = _from(base, str(child.attrs.get("src", "")))
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    # A wide table scrolls in its own frame, which the keyboard reaches.
    html = html.replace(
        '<table class="card-table">', '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
    )
    return Markup(html.replace("</table>", "</table></div>"))  # noqa: S704 - html is off, attributes are escaped


def body(text: str) -> str:
    """What is shown of a card: what follows its first lines, as far as there is room."""
    return without_front(text)[:MOST]


def _from(base: str, where: str) -> str:
    """An address of a card; one that names a file beside it gets the place of that."""
    beside = base and where and not where.startswith(("/", "#")) and not urlsplit(where).scheme
    return f"{base}/{where.removeprefix('./')}" if beside else where


def facts(front: Mapping[str, Any]) -> dict[str, str]:
    """What a card says of itself in its first lines (licence, language, ...), as far as it is plain.

    >>> facts({"license": "apache-2.0", "tags": ["a", "b"], "model-index": [{}]})
    {'license': 'apache-2.0', 'tags': 'a, b'}
    """
    plain = {
        key: ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in front.items()
        if isinstance(value, str | int | float) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    }
    return {
        key: plain[key][:200] for key in ("license", "language", "pipeline_tag", "base_model", "tags") if key in plain
    }
