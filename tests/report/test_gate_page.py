"""The page of a gate: what it says is what was decided, it asks for nothing from outside, and a browser shows it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from measure.gate.made import cells, trial
from rich.console import Console

from cofuse.measure.evaluation.suite import OpenSuite
from cofuse.measure.gate import Policy
from cofuse.measure.gate.document import document
from cofuse.measure.gate.gated import Gated
from cofuse.report.gate import draw_gate, gate_table, write_gate
from cofuse.report.words import signed

from .pages import HOSTILE, Page, browse, check_alone, check_readable, drawn_by_browser

SIDES = {
    "sst2": cells(9000, 10, 50, 940),
    "hurt": cells(8000, 420, 90, 1490),
    "small": cells(160, 5, 6, 29),
}


def gated(sides: dict[str, Any], *, rapid: bool = False) -> Gated:
    done = trial(sides, Policy(), rapid=rapid)
    suite = OpenSuite("mine", (0,), ())
    return Gated(done.verdict, done.comparison, Policy(), suite, rapid, done.taken, done.planned, done.saved)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    write_gate(folder / "run", gated(SIDES))
    return folder / "run"


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    found = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert found.open == []
    return found


def test_a_gate_is_three_files(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["records.jsonl", "report.html", "summary.json"]


def test_the_page_says_what_was_decided(folder: Path, page: Page) -> None:
    said = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert said["verdict"]["state"] == "block"
    assert "Blocked · major version" in page.text
    for reason in said["verdict"]["reasons"]:
        assert reason in page.text
    for finding in said["verdict"]["findings"]:
        assert finding["words"] in page.text
    for task in said["tasks"]:
        d = task["difference"]
        assert f"{d['mean']:.2f} {d['low']:.2f} to {d['high']:.2f}" in page.text
        assert f"{task['n']:,} of {task['available']:,}" in page.text
        # The drawings, for somebody who cannot see them.
        assert (
            f"{task['task']}: {signed(d['mean'])} ({signed(d['low'])} to {signed(d['high'])}), may lose 1" in page.text
        )
        assert f"{task['negative']['mean']:.2f} % right before and wrong now" in page.text


def test_the_drawings_show_every_task_with_its_margin(page: Page) -> None:
    assert len(page.all("svg")) == 2
    circles = [str(a["class"]) for a in page.all("circle")]
    assert circles == ["block", "undecided", "pass", "total"]  # hurt, small, sst2; the mean
    lines = [str(a["class"]) for a in page.all("line")]
    assert lines.count("margin") == 3
    assert lines.count("whisker") == 6
    bars = [a for a in page.all("line") if str(a["class"]).startswith("bar")]
    dots = page.all("circle")
    for bar, dot in zip(bars, dots, strict=True):
        assert float(str(bar["x1"])) <= float(str(dot["cx"])) <= float(str(bar["x2"]))
    # What is blocked has its whole interval to the left of its margin.
    margins = [a for a in page.all("line") if a["class"] == "margin"]
    assert float(str(bars[0]["x2"])) < float(str(margins[0]["x1"]))


def test_the_page_asks_for_nothing_from_outside(folder: Path, page: Page) -> None:
    check_alone((folder / "report.html").read_text(encoding="utf-8"), page)


def test_tables_and_drawings_can_be_read_without_eyes(page: Page) -> None:
    check_readable(page)


def test_hostile_names_are_text() -> None:
    page = Page(draw_gate(document(gated({HOSTILE: cells(900, 3, 4, 93), "b": cells(100, 0, 0, 10)}))))
    assert page.all("script") == []
    assert page.text.count(HOSTILE) > 3


def test_rapid_says_what_it_saved() -> None:
    found = gated({t: cells(30_000, 0, 0, 3000) for t in "ab"}, rapid=True)
    said = document(found)
    assert found.saved > 0.3
    assert f"saved {100 * found.saved:.0f} % of its cost" in Page(draw_gate(said)).text


@pytest.mark.parametrize("width", [120, 80])
def test_the_table_of_a_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    gate_table(document(gated(SIDES)), console)
    text = console.export_text()
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["hurt"])
    assert row[-1] == "block"
    assert "Blocked (major version)" in text
    assert ("lost %" in text) == (width == 120)


def test_a_browser_shows_it(folder: Path, tmp_path: Path) -> None:
    dumped = drawn_by_browser(folder / "report.html", tmp_path / "profile")
    drawn = Page(dumped[dumped.index("<html") :])
    assert len(drawn.all("svg")) == 2
    assert "Blocked" in drawn.text
    picture = tmp_path / "page.png"
    browse(folder / "report.html", tmp_path / "profile", "--window-size=1000,1800", f"--screenshot={picture}")
    from PIL import Image

    with Image.open(picture) as image:
        colours = {c for _, c in image.convert("RGB").getcolors(1 << 20) or []}
    assert {
        (0x9A, 0x34, 0x12),
        (0x0B, 0x5C, 0xAD),
    } <= colours  # what blocks is drawn in one colour, what passes in another
