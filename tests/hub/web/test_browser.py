"""What people do here, in a real browser: as they would, with the keyboard alone, and on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from .conftest import Place
from .screenshots import pages
from .village import Village

Open = Callable[..., Page]


def test_looking_around_without_signing_in(open_page: Open, place: Place) -> None:
    page = open_page()
    page.goto("/")
    page.get_by_role("searchbox", name="Search models").fill("multilingual")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", name="Models that match")).to_be_visible()
    expect(page.get_by_role("link", name="open-lab/minilm-evolving")).to_have_count(0)
    page.goto("/")
    page.get_by_role("link", name="open-lab/minilm-evolving").click()
    expect(page.get_by_role("heading", name="Score over releases")).to_be_visible()
    expect(page.get_by_text('os.environ["HF_ENDPOINT"]')).to_be_visible()
    page.get_by_role("link", name="round 3, released, 4 of 5 contributions").click()
    expect(page.get_by_role("heading", name="What was left out, and why")).to_be_visible()
    page.get_by_role("navigation", name=place.village.name).get_by_role("link", name="Contributions").click()
    page.get_by_label("State").select_option("refused")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("not finite: 12 values")).to_be_visible()
    expect(page.get_by_text("in a round").filter(has_not=page.locator("option"))).to_have_count(1)  # the choice alone
    page.get_by_role("link", name="Entailment from support tickets").first.click()
    expect(page.get_by_role("heading", name="Checks")).to_be_visible()
    page.get_by_role("link", name="Sign in").last.click()
    expect(page.get_by_label("Token")).to_be_focused()
    assert "to=" in page.url


def test_signing_in_leads_back_and_signing_out_ends_it(open_page: Open, place: Place) -> None:
    page = open_page()
    page.goto("/settings")
    assert page.url.startswith(f"{place.url}/signin")
    page.get_by_label("Token").fill(place.village.tokens["ada"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{place.url}/settings")
    assert page.evaluate("document.cookie") == ""  # no script sees it
    page.get_by_text("ada", exact=True).first.click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_have_text("You are signed out.")
    page.goto("/settings")
    assert page.url.startswith(f"{place.url}/signin")


def test_a_wrong_token_is_told(open_page: Open) -> None:
    page = open_page(failing=True)
    page.goto("/signin")
    page.get_by_label("Token").fill("cofuse_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not good")


def test_commenting_labelling_accepting_and_refusing(open_page: Open, place: Place) -> None:
    page = open_page("ada")
    page.goto(f"{place.model}/contributions/39")
    page.get_by_label("Say something").fill("Good work <b>indeed</b>\nand a second line")
    page.get_by_role("button", name="Comment").click()
    expect(page.get_by_role("status")).to_have_text("Your comment is there.")
    expect(page.get_by_text("Good work <b>indeed</b>")).to_be_visible()
    page.get_by_label("With commas between them").fill("museum, art")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("museum", exact=True).first).to_be_visible()
    page.get_by_role("button", name="Accept").click()
    expect(page.get_by_role("status")).to_have_text("The contribution is accepted.")
    page.get_by_text("Refuse", exact=True).click()
    page.get_by_label("Why").fill("trained on the wrong base")
    page.get_by_role("button", name="Refuse it").click()
    expect(page.get_by_role("status")).to_have_text("The contribution is refused.")
    expect(page.get_by_text("Refused: trained on the wrong base")).to_be_visible()


def test_deciding_a_held_round(open_page: Open, place: Place) -> None:
    page = open_page("ada")
    page.goto(place.model)
    page.get_by_role("link", name="Round 9", exact=True).click()
    expect(page.get_by_role("heading", name="The gate has held it: decide")).to_be_visible()
    page.get_by_role("button", name="Give it up").click()
    expect(page.get_by_role("status")).to_contain_text("Your decision is recorded")
    expect(page.get_by_text("abandoned", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Give it up")).to_have_count(0)
    # What was in it is open again, and can be withdrawn by its author, but not by others.
    author = open_page("grace")
    author.goto(f"{place.model}/contributions/36")
    expect(author.get_by_role("heading", name="Decide")).to_have_count(0)
    author.goto(f"{place.model}/contributions/35")
    author.get_by_text("Withdraw", exact=True).click()
    author.get_by_role("button", name="Withdraw it").click()
    expect(author.get_by_role("status")).to_have_text("The contribution is withdrawn.")


def test_making_and_revoking_a_token(open_page: Open, place: Place) -> None:
    page = open_page("ada")
    page.goto("/settings")
    page.get_by_label("What it is for").fill("a test")
    page.get_by_label("What it may do").select_option("read")
    page.get_by_label("Days").fill("7")
    page.get_by_role("button", name="Make it").click()
    secret = page.locator("code.token").inner_text()
    with place.server.client(secret) as client:
        assert client.get("/api/v1/me").json() == {"name": "ada", "scope": "read", "role": "read"}
        page.goto("/settings")
        assert secret not in page.content()
        page.get_by_role("row", name="a test").get_by_role("button").click()
        expect(page.get_by_role("status")).to_contain_text("The token is revoked")
        assert client.get("/api/v1/me").status_code == 401


def test_settings_of_a_model(open_page: Open, place: Place) -> None:
    page = open_page("ada")
    page.goto(f"{place.model}/settings")
    page.get_by_label("Account", exact=True).fill("omar")
    page.get_by_label("Role", exact=True).select_option("contribute")
    page.get_by_role("button", name="Give it").click()
    expect(page.get_by_role("row", name="omar contribute")).to_be_visible()
    page.get_by_role("button", name="Take the role of omar away").click()
    expect(page.get_by_role("row", name="omar")).to_have_count(0)
    page.locator("#policy-1").fill("round: {contributions: 5}\n")
    page.locator("form", has=page.locator("#policy-1")).get_by_role("button").click()
    expect(page.locator("#policy-1")).to_have_value("round: {contributions: 5}")


def test_a_wrong_policy_is_told_with_its_line(open_page: Open, place: Place) -> None:
    page = open_page("ada", failing=True)
    page.goto(f"{place.model}/settings")
    page.locator("#policy-1").fill("round:\n  contribution: 5\n")
    page.locator("form", has=page.locator("#policy-1")).get_by_role("button").click()
    expect(page.get_by_text("contributions", exact=False).first).to_be_visible()
    expect(page.get_by_text("2", exact=False).first).to_be_visible()


def test_revoking_a_contribution_and_rolling_back(open_page: Open, place: Place) -> None:
    page = open_page("ada")
    page.goto(f"{place.model}/settings")
    page.get_by_label("Account, or #number of a contribution").fill("#40")
    page.get_by_label("Why").fill("made by mistake")
    page.get_by_role("button", name="Revoke").click()
    assert page.url.endswith("/settings")  # the box is not ticked: the browser does not send it
    page.locator("form", has_text="Account, or #number").get_by_label("I mean it").check()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status")).to_contain_text("revocation")
    page.goto(f"{place.model}/contributions/40")
    expect(page.get_by_text("Revoked: made by mistake")).to_be_visible()
    page.goto(f"{place.model}/settings")
    page.get_by_label("To", exact=True).select_option("v0.2.0")
    page.locator("form", has_text="Roll back").get_by_label("I mean it").check()
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("status")).to_contain_text("The rollback has begun")
    expect(page.get_by_text("publishing", exact=True)).to_be_visible()


def test_administering(open_page: Open, place: Place) -> None:
    page = open_page("root")
    page.goto("/admin")
    page.get_by_label("Name", exact=True).last.fill("newcomer")
    page.get_by_label("Quota, GiB").fill("2.5")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("status")).to_have_text("The account is made.")
    expect(page.get_by_label("Quota, GiB")).to_have_value("2.5")
    page.get_by_role("button", name="Make it").click()
    secret = page.locator("code.token").inner_text()
    with place.server.client(secret) as client:
        assert client.get("/api/v1/me").json()["name"] == "newcomer"
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_text("the folder of tasks cannot be read")).to_be_visible()
    page.get_by_role("button", name="Try evaluate").click()
    expect(page.get_by_role("status")).to_have_text("It is tried again.")
    page.get_by_role("link", name="Audit log").click()
    expect(page.get_by_text("job.retry")).to_be_visible()


def test_making_a_model(open_page: Open, place: Place) -> None:
    page = open_page("ada")
    page.goto("/new")
    page.get_by_label("Name").fill("brand-new")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("heading", name="Nothing is here yet")).to_be_visible()
    for tab in ("Files", "Commits", "Contributions", "Rounds", "Settings"):
        page.get_by_role("navigation", name="ada/brand-new").get_by_role("link", name=tab).click()
        expect(page.get_by_role("heading", name="brand-new")).to_be_visible()


def test_with_the_keyboard_alone(open_page: Open, place: Place) -> None:
    """From the first page to a comment, without a mouse; what has the focus can be seen."""
    page = open_page()
    page.goto("/signin")
    expect(page.locator("input[name=token]")).to_be_focused()
    page.keyboard.type(place.village.tokens["grace"])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{place.url}/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    tab_to(page, "open-lab/minilm-evolving")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{place.url}{place.model}")
    tab_to(page, "Contributions")
    page.keyboard.press("Enter")
    page.wait_for_url("**/contributions")
    tab_to(page, "Museum labels")
    page.keyboard.press("Enter")
    page.wait_for_url("**/contributions/*")
    page.get_by_label("Say something").focus()
    page.keyboard.type("typed")
    page.keyboard.press("Tab")
    outline = page.evaluate(
        "getComputedStyle(document.activeElement).outlineWidth + getComputedStyle(document.activeElement).outlineStyle"
    )
    assert outline == "2pxsolid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Your comment is there.")
    page.goto("/")
    tab_to(page, "grace")  # the menu
    page.keyboard.press("Enter")
    tab_to(page, "Sign out")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("You are signed out.")


def tab_to(page: Page, text: str, most: int = 80) -> None:
    """Press Tab until what has the focus says so."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").strip().startswith(text):
            return
    raise AssertionError(f"{text} is not reached")


@pytest.mark.parametrize("who", [None, "ada", "root"])
def test_nothing_is_wider_than_a_phone(open_page: Open, place: Place, who: str | None) -> None:
    page = open_page(who, width=360, failing=True)
    for name, (path, seen_by) in pages(Village()).items():
        if seen_by != who:
            continue
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        # What can be touched can be hit: at least 24 px, as WCAG 2.2 asks, but for links in running text.
        small = page.evaluate(
            "[...document.querySelectorAll('button, input:not([type=hidden]):not([type=checkbox]):not([hidden]), select, .tabs a, summary')]"
            ".filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.outerHTML.slice(0, 80))"
        )
        assert small == [], name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(open_page: Open, place: Place, scheme: str) -> None:
    """At least 4.5 to 1, as WCAG AA asks, for every piece of text on every page."""
    by_who: dict[str | None, Page] = {}
    for name, (path, who) in pages(Village()).items():
        page = by_who.get(who) or by_who.setdefault(who, open_page(who, failing=True))
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(path)
        assert page.evaluate(_CONTRAST) == [], name


_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 200) return c; }
    return rgba(getComputedStyle(document.documentElement).colorScheme.includes('dark') && matchMedia('(prefers-color-scheme: dark)').matches ? '#000' : '#fff'); };
  const weak = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ['TITLE', 'DESC', 'OPTION'].includes(e.tagName.toUpperCase()) || e.closest(':disabled') || e.classList.contains('unseen')) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const front = light(rgba(svg ? style.fill : style.color)), back = light(behind(svg || e));
    const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 90)}`);
  }
  return weak;
}"""
