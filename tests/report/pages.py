"""A page as a reader, a program and a browser get it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Elements of a page, its text, and whether every element is closed in order."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.said))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check_alone(text: str, page: Page) -> None:
    """A page runs nothing and asks for nothing from outside."""
    assert not re.search(r"https?://|//[a-z]|url\(|@import", text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use", "base", "form"} & {
        t for t, _ in page.elements
    }
    assert not any(k in {"src", "href", "srcset", "style"} or k.startswith("on") for _, a in page.elements for k in a)


def check_readable(page: Page) -> None:
    """Tables say what their heads are of, and what names a part of the page is there, once."""
    assert all(a.get("scope") in {"col", "row"} for a in page.all("th"))
    ids = [str(a["id"]) for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in str(attributes.get("aria-labelledby") or "").split():
            assert name in ids


def browse(page: Path, profile: Path, *flags: str) -> str:
    """What a headless Chromium says of a page; the test is skipped where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here: apt install chromium")
    always = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command = [browser, *always, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def drawn_by_browser(page: Path, profile: Path) -> str:
    """The page's document once it has been laid out."""
    return browse(page, profile, "--virtual-time-budget=2000", "--dump-dom")
