"""What pages hold: nothing that others wrote as HTML, nothing that is private to others, and not too much."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from cofuse.hub.access.tokens import find_account
from cofuse.hub.app import make_app
from cofuse.hub.database import Check, Comment, Contribution, Release, Repository, Round
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import store_folder
from cofuse.hub.settings import Settings
from cofuse.hub.web.markdown import card
from cofuse.store import Store

from ..postgres import postgres
from .conftest import HTML, Place, field, sign_in_with
from .measured import weights
from .screenshots import pages
from .village import Village, settle

MOST = 200_000
NAMES = sorted(pages(Village()))
EVIL = """<script>alert(1)</script><img src=x onerror=alert(1)>"'><svg/onload=alert(1)>{{31337*3}}</textarea></title>"""


class Tags(HTMLParser):
    """Tags and attributes of a page, and whether they are closed in order."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def read(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


def check(html: str) -> Tags:
    """What must hold of every page."""
    tags = read(html)
    assert tags.wrong == []
    assert tags.open == []
    assert "<script" not in html
    assert "Undefined" not in html
    assert len(tags.ids) == len(set(tags.ids)), sorted(i for i in tags.ids if tags.ids.count(i) > 1)
    for tag, key, value in tags.attributes:
        assert not key.startswith("on"), (tag, key)
        assert key != "style", tag  # the policy of content does not let it through
        assert not value.lower().startswith(("javascript:", "data:", "vbscript:")), (tag, key, value)
        if key in ("src", "action") or (tag == "link" and key == "href"):
            assert re.match(r"/(?!/)", value), (tag, key, value)
    labelled = {value for tag, key, value in tags.attributes if tag == "label" and key == "for"}
    wanted = re.findall(r'<(?:input(?![^>]*type="(?:hidden|checkbox)")|select|textarea)\b[^>]*?\bid="([^"]+)"', html)
    assert set(wanted) <= labelled
    return tags


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_small_whole_and_without_scripts(place: Place, name: str) -> None:
    path, who = pages(place.village)[name]
    with place.visitor(who) as client:
        answer = client.get(path)
    assert answer.status_code == (404 if name == "missing" else 200), answer.text
    assert len(re.sub(r"<svg.*?</svg>", "", answer.text, flags=re.DOTALL).encode()) < MOST
    assert len(answer.content) < MOST
    policy = answer.headers["content-security-policy"]
    for part in (
        "default-src 'none'",
        "style-src 'self'",
        "img-src 'self' data:",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ):
        assert part in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ("no-store" if who or name == "signin" else "private") in answer.headers["cache-control"]
    check(answer.text)


def test_every_link_of_the_village_leads_somewhere(place: Place) -> None:
    """Those of every page that stay on the hub, as its administrator sees them."""
    seen: dict[str, int] = {}
    with place.visitor("root") as client:
        for path, _ in pages(place.village).values():
            for tag, key, value in read(client.get(path).text).attributes:
                if tag == "a" and key == "href" and value.startswith("/") and "/download/" not in value:
                    seen.setdefault(value.partition("#")[0], 0)
        for link in seen:
            seen[link] = client.get(link, follow_redirects=True).status_code
    assert {link: status for link, status in seen.items() if status != 200} == {}
    assert len(seen) > 100


def test_a_file_is_downloaded_by_who_is_signed_in(place: Place) -> None:
    with place.visitor() as client:
        answer = client.get(f"{place.model}/download/main/config.json")
        assert answer.status_code == 200
        assert answer.json()["model_type"] == "bert"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert client.get(f"{place.model}/download/main/../../../../etc/passwd").status_code == 404
        assert client.get(f"{place.model}/download/main/%2e%2e/%2e%2e/hub.sqlite").status_code == 404


def test_the_style_sheet_is_kept_for_ever_under_the_name_of_its_hash(place: Place) -> None:
    with place.visitor() as client:
        style = re.search(r'href="(/static/hub\.[0-9a-f]{16}\.css)"', client.get("/").text)
        assert style is not None
        answer = client.get(style[1])
        assert answer.headers["content-type"].startswith("text/css")
        assert "immutable" in answer.headers["cache-control"]
        assert client.get("/static/hub.0000000000000000.css").status_code == 404


# What others wrote


def test_what_people_write_is_text_on_every_page(place: Place) -> None:
    """Every field that somebody can fill, filled with HTML, script, and a template; the rows as the API would have them."""
    database = place.server.hub.database
    with database.writing() as change:
        root = find_account(change, "root")
        assert root is not None
        home = change.scalars(select(Repository).where(Repository.name == "minilm-evolving")).one()
        row = Repository(
            owner_id=root.id,
            name="evil",
            key="e" * 32,
            description=EVIL,
            suite=EVIL,
            suite_hash="d" * 64,
            created=1.0,
            updated=9e9,
        )
        change.add(row)
        change.flush()
        store = Store.init(store_folder(place.server.hub.repositories, row.key))
        folder = place.server.data.parent / "evil"
        weights(
            folder,
            1,
            f"---\nlicense: {EVIL!r}\n---\n# {EVIL}\n\n{EVIL}\n\n[a]({EVIL})\n\n![{EVIL}](javascript:alert(1))\n",
        )
        (folder / "a'\"><b>.json").write_text("{}")
        made = store.commit(folder, message=EVIL, author=EVIL, record={"round": EVIL})
        offered = Contribution(
            repository_id=row.id,
            number=1,
            account_id=root.id,
            branch="main",
            base=made.id,
            source="weights",
            sent={},
            nonce="n",
            state="open",
            reason=EVIL,
            commit=made.id,
            title=EVIL,
            message=EVIL,
            data=EVIL,
            licence=EVIL[:100],
            metrics={EVIL: EVIL},
            labels=[EVIL],
            created=1.0,
            updated=1.0,
        )
        change.add(offered)
        change.flush()
        detail = {"tensors": [{"name": EVIL, "part": EVIL, "layer": 1, "relative": 0.5}]}
        change.add(Check(contribution_id=offered.id, name="norms", place=0, state="warn", figure=EVIL, detail=detail))
        change.add(Comment(contribution_id=offered.id, account_id=root.id, event="", body=EVIL, created=1.0))
        change.add(Comment(contribution_id=offered.id, account_id=None, event="refused", body=EVIL, created=1.0))
        task = {
            "task": EVIL,
            "metric": "m",
            "old": 1.0,
            "new": 1.0,
            "mean": 0.1,
            "low": 0.0,
            "high": 0.2,
            "margin": 1.0,
        }
        verdict = {"state": EVIL, "step": EVIL, "reasons": [EVIL], "tasks": [task]}
        held = Round(
            repository_id=row.id,
            branch="main",
            number=1,
            kind="round",
            state="held",
            base=made.id,
            policy=EVIL,
            plan={EVIL: EVIL, "attempt": 1},
            verdict=verdict,
            figures={EVIL: EVIL},
            reason=EVIL,
            created=1.0,
            updated=1.0,
        )
        change.add(held)
        change.add(Release(repository_id=row.id, branch="main", version="v0.1.0", commit=made.id, created=1.0))
        assert home.id != row.id
    model = "/root/evil"
    paths = [
        "/",
        f"/?q={EVIL[:100]}",
        model,
        f"{model}/tree/main",
        f"{model}/commits",
        f"{model}/commit/main",
        f"{model}/contributions",
        f"{model}/contributions/1",
        f"{model}/rounds",
        f"{model}/rounds/main/1",
        f"{model}/settings",
        "/root",
        "/leaderboard",
        "/admin/audit",
        f"/admin?q={EVIL[:90]}",
        f"/{EVIL[:20]}/x",
        f"/signin?to={EVIL}",
        "/leaderboard?suite=" + "d" * 64,
    ]
    with place.visitor("root") as client:
        for path in paths:
            answer = client.get(path)
            assert answer.status_code in (200, 404), (path, answer.text)
            check(answer.text)
            assert "<img src=x" not in answer.text, path
            assert "<svg/onload" not in answer.text, path
            assert "94011" not in answer.text, path
    with database.writing() as change:
        change.get_one(Repository, row.id).private = True  # out of the way of the other tests


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>",
        "<a href='javascript:x'>y</a>",
        "[y](javascript:x)",
        "[y](JaVaScRiPt:x)",
        "[y](&#106;avascript:x)",
        "[y](data:text/html,x)",
        "[y](vbscript:x)",
        "![y](javascript:x)",
        "<javascript:x>",
        "[y]: javascript:x\n\n[y]",
        "[y](/x \"onmouseover='alert(1)'\")",
        '[y](</x" onclick="z>)',
        "```<script>\nx\n```",
        "| <script> |\n|---|\n| <img src=x onerror=y> |",
        "<!-- --!> <script>x</script> -->",
        "<iframe src=//elsewhere.example></iframe>",
        "[" * 5000,
        "> " * 3000 + "x",
    ],
)
def test_a_card_has_no_tags_of_its_authors(text: str) -> None:
    tags = read(str(card(text)))
    assert tags.wrong == []
    for tag, key, value in tags.attributes:
        assert (tag, key) in {
            ("a", "href"),
            ("a", "rel"),
            ("a", "title"),
            ("code", "class"),
            ("div", "class"),
            ("div", "tabindex"),
            ("div", "role"),
            ("div", "aria-label"),
        }
        assert key != "href" or not re.match(r"\s*(javascript|data|vbscript):", value, re.IGNORECASE)


def test_a_card_asks_nobody_for_pictures() -> None:
    assert "<img" not in card("![cat](https://elsewhere.example/cat.png)")
    assert "https://elsewhere.example/cat.png" in card("![cat](https://elsewhere.example/cat.png)")


def test_every_commit_is_on_some_page(place: Place, tmp_path: Path) -> None:
    """Also those of lines that ran beside each other for longer than a page, and were merged."""
    name = place.server.repository(place.village.tokens["root"], "merged")
    hub = place.server.hub
    with hub.database.reading() as look:
        row = look.scalars(select(Repository).where(Repository.name == "merged")).one()
    store, tips, made = hub.store(row), {"main": [], "beside": []}, []
    for n in range(50):
        branch = ("main", "beside")[n % 2]
        (tmp_path / "n.txt").write_text(str(n))
        tips[branch] = [store.commit(tmp_path, message=f"the {n}", branch=branch, parents=tips[branch]).id]
        made += tips[branch]
    made.append(store.commit(tmp_path, message="merged", branch="main", parents=tips["main"] + tips["beside"]).id)
    with place.visitor("root") as client:
        path, seen = f"/{name}/commits/main", []
        while path:
            text = client.get(path).text
            seen += re.findall(rf'class="strong" href="/{name}/commit/([0-9a-f]+)"', text)
            older = re.search(r'href="([^"]*)" rel="next"', text)
            path = older[1] if older else ""
    assert seen == made[::-1]


# What is private


def test_what_is_private_is_not_there_for_others(place: Place) -> None:
    with place.visitor() as nobody, place.visitor("ada") as ada, place.visitor("root") as root:
        for client in (nobody, ada):
            for path in ("/", "/?q=emotion", "/leaderboard", "/yuki", "/yuki?before=2147483647"):
                assert "emotion-tiny" not in client.get(path).text, path
            for path in (
                "",
                "/tree/main",
                "/commits",
                "/contributions",
                "/rounds",
                "/settings",
                "/download/main/config.json",
            ):
                private, none = (client.get(f"/yuki/{name}{path}") for name in ("emotion-tiny", "there-is-none"))
                assert private.status_code == none.status_code == 404
                assert private.text.replace("emotion-tiny", "there-is-none") == none.text
        assert "emotion-tiny" in root.get("/yuki").text


def test_pages_of_maintainers_and_administrators_are_for_them(place: Place) -> None:
    with place.visitor() as nobody, place.visitor("grace") as grace, place.visitor("ada") as ada:
        assert nobody.get(f"{place.model}/settings").status_code == 303
        assert grace.get(f"{place.model}/settings").status_code == 403
        assert "Sign in first" not in grace.get(f"{place.model}/settings").text
        for path in ("/admin", "/admin/jobs", "/admin/audit", "/admin/accounts/ada"):
            assert nobody.get(path).status_code == 303
            assert grace.get(path).status_code == ada.get(path).status_code == 403
        csrf = field(grace.get("/settings").text, "csrf")
        for path in (
            "settings",
            "settings/policy",
            "settings/suite",
            "settings/revoke",
            "settings/rollback",
            "settings/grants",
            "rounds",
            "rounds/main/9",
        ):
            answer = grace.post(f"{place.model}/{path}", data={"csrf": csrf, "confirm": "on", "decision": "publish"})
            assert answer.status_code == 403, path
        for act in ("accept", "refuse", "withdraw", "retry", "label"):  # of somebody else's
            answer = grace.post(
                f"{place.model}/contributions/38/{act}", data={"csrf": csrf, "reason": "x", "labels": "x"}
            )
            assert answer.status_code == 403, act
        assert 'name="reason"' not in grace.get(f"{place.model}/contributions/38").text


def test_what_changes_much_has_to_be_meant(place: Place) -> None:
    with place.visitor("ada") as client:
        csrf = field(client.get("/settings").text, "csrf")
        for path, data in (("revoke", {"what": "grace"}), ("rollback", {"version": "v0.2.0"})):
            answer = client.post(f"{place.model}/settings/{path}", data={"csrf": csrf, **data})
            assert answer.status_code == 400
            assert "not confirmed" in answer.text.lower()


def test_nobody_gives_themselves_more(place: Place) -> None:
    with place.visitor("grace") as client:
        csrf = field(client.get("/settings").text, "csrf")
        answer = client.post("/settings/tokens", data={"csrf": csrf, "scope": "admin"})
        assert answer.status_code == 403
        assert "<option>admin" not in client.get("/settings").text


# Errors


def test_errors_are_pages_for_browsers_and_json_for_programs(place: Place) -> None:
    with place.visitor() as client:
        page = client.get("/nobody/nothing")
        assert page.headers["content-type"].startswith("text/html")
        check(page.text)
        program = client.get("/nobody/nothing", headers={"Accept": "*/*"})
        assert program.status_code == 404
        assert program.json()["error"] == "no such repository"
        assert client.get("/api/v1/me", headers=HTML).headers["content-type"] == "application/json"
        assert client.get(f"{place.model}/contributions/0").status_code == 422
        assert client.get(f"{place.model}/contributions?state=none").status_code == 400
        assert client.get(f"{place.model}/tree/no-such").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/%00",
        "/a/%00",
        "/open-lab/minilm-evolving/tree/%00",
        "/open-lab/minilm-evolving/tree/main/%ff",
        "/open-lab/minilm-evolving/commits/%2e%2e%2f",
        "/?before=nan~1",
        "/?before=inf~99999999999999999999",
        "/admin/jobs?before=x~y",
        "/open-lab/minilm-evolving/commits/main?after=%F0%9F%92%A9",
        "/open-lab/minilm-evolving/rounds/../../x/1",
        "/?q=%25%5C_",
    ],
)
def test_strange_addresses_are_no_failures_of_the_hub(place: Place, path: str) -> None:
    with place.visitor("root") as client:
        answer = client.get(path)
        assert answer.status_code < 500, answer.text


@pytest.mark.slow
def test_pages_are_there_on_postgresql(tmp_path: Path) -> None:
    with postgres() as url:
        hub = Hub(Settings(data=tmp_path / "data", database=url))
        hub.database.migrate()
        village, app = settle(hub, tmp_path), make_app(hub)
        for name, (path, who) in pages(village).items():
            client = TestClient(app, headers=HTML)
            if who is not None:
                assert sign_in_with(client, village.tokens[who]).status_code == 200  # home, where it leads
            assert client.get(path).status_code == (404 if name == "missing" else 200), name
        hub.close()
