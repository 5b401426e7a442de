"""A village, a browser, and people who are signed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from ..serving import HubServer
from .screenshots import CHROMIUM, chromium, sign_in, village_server
from .village import Village

HTML = {"Accept": "text/html"}


@dataclass(frozen=True)
class Place:
    """The village's hub."""

    server: HubServer
    village: Village

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def model(self) -> str:
        return f"/{self.village.name}"

    @contextmanager
    def visitor(self, who: str | None = None) -> Iterator[httpx.Client]:
        """A browser without a screen: cookies, and pages."""
        with httpx.Client(base_url=self.url, headers=HTML, timeout=60) as client:
            if who is not None:
                answer = sign_in_with(client, self.village.tokens[who])
                assert answer.status_code == 303, answer.text
            yield client


def sign_in_with(client: httpx.Client, token: str, **more: str) -> httpx.Response:
    """Fill in the form to sign in."""
    form = field(client.get("/signin").text, "form")
    return client.post("/signin", data={"token": token, "form": form, "to": "/", **more})


def field(page: str, name: str) -> str:
    """The value of a hidden field."""
    return page.partition(f'name="{name}" value="')[2].partition('"')[0]


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with village_server(tmp_path_factory.mktemp("village")) as (server, village):
        yield Place(server, village)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    expect.set_options(timeout=20_000)  # a machine with much to do is slow, not wrong
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(place: Place, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages as somebody sees them; nothing may go wrong in them, and nothing be asked of anybody else."""
    wrong: list[str] = []
    contexts = []

    def make(who: str | None = None, *, width: int = 1280, failing: bool = False) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, base_url=place.url)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith((place.url, "data:")) else wrong.append(f"asked {r.url}"))
        page.on("pageerror", lambda error: wrong.append(f"error {error}"))
        if not failing:  # a browser says on the console that a page was answered 404, say
            page.on("console", lambda m: wrong.append(f"console {m.text}") if m.type in ("error", "warning") else None)
        if who:
            sign_in(page, place.url, place.village.tokens[who])
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []
