"""The files of a report, as a reader or a program gets them."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cofuse.errors import CofuseError
from cofuse.evolve.records import Refused
from cofuse.report import Summary, summarize, write_report
from cofuse.report.words import score, signed

from .pages import HOSTILE, Page, check_alone, check_readable
from .studies import commit, content, study


def written(folder: Path, records: list[Any]) -> Page:
    page = Page(write_report(folder, records).read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def records() -> list[Any]:
    return study()


@pytest.fixture(scope="module")
def summary(records: list[Any]) -> Summary:
    return summarize(records)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_report(folder, records)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_report_is_three_files_and_nothing_else(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.png", "summary.json"]


def test_summary_json_is_the_document(folder: Path, summary: Summary) -> None:
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == summary.document()


def test_the_same_records_give_the_same_bytes(
    folder: Path, records: list[Any], summary: Summary, tmp_path: Path
) -> None:
    write_report(tmp_path, records, summary=summary)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_page_asks_for_nothing_from_outside(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    check_alone(text, page)
    assert len(text.encode()) < 500_000


def test_figures_of_the_summary_are_in_the_page(folder: Path, page: Page) -> None:
    document = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    text = page.text
    drawn = {"pretrained", "round 6", "multitask", "fuse once"}
    for row in document["rows"]:
        if row["model"] in drawn or row["task"] == "*":
            assert score(row["mean"]) in text
    for d in document["differences"]:
        if d["task"] == "*" or (d["model"] == "round 6" and d["minus"] == "pretrained"):
            assert f"{signed(d['mean'])} {signed(d['low'])} to {signed(d['high'])}" in text


def test_the_headline_says_what_the_figures_say(page: Page, summary: Summary) -> None:
    for protocol in ("probe", "fewshot", "finetune"):
        d = summary.difference("round 6", "pretrained", "unseen", "*", protocol)
        assert d is not None
        said = f"{signed(d.mean)} points over the pretrained base after round 6"
        at = page.text.index(said)
        sentence = page.text[at : at + 260]
        assert f"{signed(d.low)} to {signed(d.high)}" in sentence
        includes = "The interval includes zero" in sentence.split("On 6 unseen")[0]
        assert includes == (d.low <= 0 <= d.high)
    # The fixture holds both kinds, so that neither branch goes untested.
    assert page.text.count("The interval includes zero") == 1


def test_a_cell_is_tinted_only_where_the_interval_does_not_include_zero(page: Page, summary: Summary) -> None:
    classes = [str(a.get("class")).split()[-1] for a in page.all("td") if "difference" in str(a.get("class"))]
    shown = [
        d.clear
        for d in summary.differences
        if d.model == "round 6" and d.minus == "pretrained"
        for _ in range(1 if d.task != "*" else 3)  # a mean stands in the comparison, by task and by model
    ]
    shown += [d.clear for d in summary.differences if d.task == "*" and d.minus != "pretrained"]
    shown += [
        d.clear for d in summary.differences if d.task == "*" and d.minus == "pretrained" and d.model != "round 6"
    ]
    assert len(classes) == len(shown)
    assert classes.count("level") == shown.count(False) > 0


def test_rounds_refusals_and_lineage_are_told(page: Page) -> None:
    assert "offer broken" in page.text
    assert "a value is not finite, in w.weight, got nan at element 7" in page.text
    assert "8 fused, 1 refused" in page.text
    for seed in (0, 1, 2):
        for number in range(1, 7):
            assert commit(f"round {number}", seed)[:10] in page.text
        assert commit("fuse once", seed)[:10] in page.text


def test_what_made_it_is_told(page: Page) -> None:
    assert "learning_rate: 0.00015" in page.text
    assert "2.13.0" in page.text
    # 3 seeds, 6 rounds, 8 contributors, 9.5 s each.
    assert re.search(r"contributions to rounds\s*144\s*22 min 48 s", page.text)


def test_tables_and_drawings_can_be_read_without_eyes(page: Page) -> None:
    check_readable(page)
    assert len(page.all("svg")) == 6
    assert all(a.get("role") == "img" and a.get("aria-labelledby") for a in page.all("svg"))
    assert page.elements[1][1] == {"lang": "en"} or ("html", {"lang": "en"}) in page.elements


def test_the_picture_is_a_png_of_the_right_size(folder: Path) -> None:
    data = (folder / "report.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    # 12 inches wide; 0.9 and 3.6 for each row of two charts; 120 dots an inch.
    assert struct.unpack(">II", data[16:24]) == (1440, 1404)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = study(seeds=(0, 1), rounds=1, seen=(HOSTILE, "b"), unseen=("$x$", f"</style>{HOSTILE}"))
    hostile = [
        r.model_copy(update={"refused": (Refused(who=HOSTILE, reason=f'"><svg onload=1>{HOSTILE}'),)})
        if r.kind == "round"
        else r
        for r in hostile
    ]
    page = written(tmp_path, hostile)
    assert page.all("script") == []
    assert not any(k.startswith("on") for _, a in page.elements for k in a)
    assert page.text.count(HOSTILE) > 5
    assert "$x$" in page.text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    page = written(tmp_path, study()[:1])
    assert "Nothing is measured yet." in page.text
    assert "Not finished: 18 rounds still to be fused." in page.text


def test_a_run_half_way(tmp_path: Path) -> None:
    records = study(seeds=(0, 1), rounds=3, seen=("a", "b"))
    late = [r for r in records if not (r.kind == "round" and (r.seed, r.number) == (1, 3))]
    late = [r for r in late if r.kind != "score" or r.content != content("round 3", 1)]
    page = written(tmp_path, late)
    assert "Not finished: 1 round still to be fused." in page.text
    assert "over the pretrained base after round 2" in page.text


def test_a_base_that_is_not_measured_yet(tmp_path: Path) -> None:
    records = [
        r for r in study(rounds=1, seen=("a", "b")) if r.kind != "score" or r.content != content("pretrained", r.seed)
    ]
    assert "nothing to compare yet" in written(tmp_path, records).text


def test_one_seed_measured_once_claims_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, study(seeds=(0,), rounds=1, unseen=("only",), protocols={"finetune": 1}))
    assert "measured once, so there is no interval" in page.text
    assert "One seed: no interval here" in page.text
    assert "One unseen task: the intervals say nothing about other tasks." in page.text


def test_few_seeds_are_said_to_be_few(page: Page, tmp_path: Path) -> None:
    assert "With 3 seeds, intervals are narrower than they should be" in page.text
    assert "in about 75 of 100 cases, not in 95" in page.text
    many = written(tmp_path, study(seeds=range(6), rounds=1, seen=("a",), unseen=("b",), protocols={"probe": 1}))
    assert "narrower than they should be" not in many.text


def test_only_seen_tasks(tmp_path: Path) -> None:
    page = written(tmp_path, study(rounds=1, unseen=()))
    assert "No unseen tasks are measured" in page.text
    assert "On 8 seen tasks" in page.text


def test_records_without_a_beginning_have_a_page(tmp_path: Path) -> None:
    page = written(tmp_path, study(rounds=2, seen=("a", "b"), begun=False))
    assert "a run: 2 rounds, 3 seeds" in page.text


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(CofuseError, match="cannot write a report") as raised:
        write_report(tmp_path / "missing", study(rounds=1, seen=("a", "b")))
    assert "summary.json" in str(raised.value)
    (tmp_path / "report.png").mkdir()  # a folder in the way: the replacement fails after the file was written
    with pytest.raises(CofuseError, match="cannot write a report"):
        write_report(tmp_path, study(rounds=1, seen=("a", "b")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.png", "summary.json"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ["matplotlib", "jinja2", "torch", "plotly", "rich.table"]
    done = python(f"import sys, cofuse.report; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(tmp_path: Path, missing: str) -> None:
    done = python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from pathlib import Path\n"
        "from cofuse.errors import CofuseError\n"
        "from cofuse.report import write_report\n"
        f"try: write_report(Path({str(tmp_path)!r}), [])\n"
        "except CofuseError as error: print(error)\n"
    )
    assert missing in done.stdout, done.stderr
    assert 'pip install "cofuse[report]"' in done.stdout
    assert (tmp_path / "summary.json").exists()
