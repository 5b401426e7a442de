"""Pictures of every page, with a page that shows them: `python -m tests.hub.web.screenshots docs/hub`."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from ..serving import HubServer, serving
from .village import Village, settle

CHROMIUM = Path("/usr/bin/chromium")
WIDE, PHONE, TALL = 1280, 360, 1700  # pixels; what is longer is cut off
_COLOURS = 96  # enough for pages, and a third of the bytes
_HEAD = """# The hub's pages

A village of nine people that evolves three models, as `tests/hub/web/village.py` makes it up. The pictures, and this page, are
made by

    python -m tests.hub.web.screenshots docs/hub

Pages are rendered on the server, have no script, ask nobody else for anything, follow the light or dark that the reader's
system asks for, and can be used with the keyboard alone and on a phone.
"""


@dataclass(frozen=True)
class Shown:
    """A page.

    Attributes:
        path: where it is.
        who: looks at it; None for somebody who is not signed in.
        caption: what is to be seen.
        also: in which other ways its picture is kept: dark, phone.
    """

    path: str
    who: str | None
    caption: str
    also: tuple[str, ...] = ()


def shown(village: Village) -> dict[str, Shown]:
    """Every page."""
    model = f"/{village.name}"
    return {
        "home": Shown(
            "/", None, "Home: the models, how their scores went over releases, the latest releases", ("phone",)
        ),
        "model": Shown(
            model,
            None,
            "A model: score over releases with intervals, how to load it, its card; its lineage, where releases, rounds, contributions and revocations are links",
            ("dark", "phone"),
        ),
        "files": Shown(f"{model}/tree/main", None, "The files of a version"),
        "commits": Shown(f"{model}/commits/main", None, "Commits"),
        "commit": Shown(f"{model}/commit/v0.8.0", None, "A commit, and the record from which it can be made again"),
        "contributions": Shown(f"{model}/contributions", None, "Contributions, with filters"),
        "contribution": Shown(
            f"{model}/contributions/38",
            "ada",
            "A contribution, as a maintainer sees it: checks with their figures, evaluation against the base, where it changed, discussion, deciding",
            ("dark", "phone"),
        ),
        "refused": Shown(
            f"{model}/contributions/31", None, "A contribution that was refused before anything was fused, and why"
        ),
        "rounds": Shown(f"{model}/rounds", "ada", "Rounds"),
        "round": Shown(
            f"{model}/rounds/main/3",
            None,
            "A round: what the gate said, what went in and what it weighed, what was left out and why",
        ),
        "held": Shown(
            f"{model}/rounds/main/{village.held}",
            "ada",
            "A round that the gate has held: a maintainer decides",
            ("dark",),
        ),
        "revocation": Shown(
            f"{model}/rounds/main/7", None, "A revocation: rounds fused anew without somebody's contributions"
        ),
        "leaderboard": Shown(
            "/leaderboard", None, "The leaderboard: only scores on the same suite stand beside each other", ("phone",)
        ),
        "account": Shown("/grace", None, "A contributor: credits, models, contributions"),
        "settings": Shown(
            f"{model}/settings",
            "ada",
            "Settings of a model, for its maintainers: visibility, roles, policies, suite, revoking, rolling back",
        ),
        "tokens": Shown("/settings", "ada", "One's own tokens"),
        "signin": Shown("/signin", None, "Signing in"),
        "new": Shown("/new", "ada", "A new model"),
        "admin": Shown("/admin", "root", "Administration: accounts, roles, quotas"),
        "admin-account": Shown("/admin/accounts/ada", "root", "An account and its tokens"),
        "admin-jobs": Shown("/admin/jobs", "root", "Jobs that failed, why, and trying them again"),
        "admin-audit": Shown("/admin/audit", "root", "The audit log"),
        "missing": Shown("/nobody/nothing", None, "What is not there, or not for everybody to see"),
    }


def pages(village: Village) -> dict[str, tuple[str, str | None]]:
    """Every page: its path, and who looks at it."""
    return {name: (one.path, one.who) for name, one in shown(village).items()}


@contextmanager
def village_server(folder: Path) -> Iterator[tuple[HubServer, Village]]:
    """A hub with the village in it."""
    with serving(folder / "data", {"limits.requests": 1_000_000}) as server:
        yield server, settle(server.hub, folder)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


def sign_in(page: Page, url: str, token: str) -> None:
    """As a person does."""
    page.goto(f"{url}/signin")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


def take(browser: Browser, url: str, village: Village, out: Path, how: str, names: list[str]) -> None:
    """Pictures of some pages in one way: light, dark or phone (which is dark)."""
    size = {"width": PHONE if how == "phone" else WIDE, "height": 700}
    opened: dict[str | None, Page] = {}
    for name in names:
        one = shown(village)[name]
        if one.who not in opened:
            scheme = "light" if how == "light" else "dark"
            context = browser.new_context(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
            opened[one.who] = context.new_page()
            if one.who:
                sign_in(opened[one.who], url, village.tokens[one.who])
        page = opened[one.who]
        page.goto(url + one.path)
        picture = page.screenshot(full_page=True)
        (out / _file(name, how)).write_bytes(_small(picture))


def _file(name: str, how: str) -> str:
    return f"{name}.png" if how == "light" else f"{name}-{how}.png"


def _small(picture: bytes) -> bytes:
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, TALL)))
    out = io.BytesIO()
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return out.getvalue()


def take_all(browser: Browser, url: str, village: Village, out: Path) -> None:
    """All pictures, and the page that shows them."""
    out.mkdir(parents=True, exist_ok=True)
    every = shown(village)
    for how in ("light", "dark", "phone"):
        take(browser, url, village, out, how, [n for n, one in every.items() if how == "light" or how in one.also])
    text = [_HEAD]
    for name, one in every.items():
        text.append(f"{one.caption}:\n\n![{name}]({_file(name, 'light')})\n")
        for how in one.also:
            words = "on a phone, in dark" if how == "phone" else "in dark"
            text.append(f"The same {words}:\n\n![{name}, {words}]({_file(name, how)})\n")
    (out / "README.md").write_text("\n".join(text))


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        village_server(Path(folder)) as (server, village),
        chromium() as browser,
    ):
        take_all(browser, server.url, village, Path(sys.argv[1]))
