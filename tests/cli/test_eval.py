"""`cofuse eval` as somebody types it: what works says what it did, what does not says why."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from measure.suites import SUITE
from report.pages import Page, drawn_by_browser
from tasks.tiny import opinion_task, vit

from cofuse.cli.app import main
from cofuse.errors import SuiteError
from cofuse.measure.evaluation.evaluating import Model
from cofuse.measure.evaluation.harness import harness
from cofuse.measure.evaluation.records import Records
from cofuse.store import Store

QUICK = {**SUITE, "seeds": [0, 1], "protocols": {"probe": SUITE["protocols"]["probe"]}}


class Ran:
    """What a command said and how it ended; in this process, which has torch loaded already."""

    def __init__(self, *arguments: str | Path) -> None:
        self.arguments = ["cofuse", "eval", *map(str, arguments)]

    def __call__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", self.arguments)
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code
        return (0 if code is None else int(code)), said.out, said.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    vit().save(tmp_path / "one")
    vit(1).save(tmp_path / "two")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(QUICK, sort_keys=False))
    return tmp_path


def test_a_run_its_files_and_going_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("one", "two", "--suite", "s.yaml", "--out", "run", "--jobs", "1")
    code, out, err = Ran(*command)(capsys, monkeypatch)
    assert code == 0, err
    assert "8 measured now; records: run/evaluations" in out
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["what"] == "eval"
    keys = {"model", "commit", "suite", "task", "protocol", "metric", "mean", "low", "high", "n"}
    assert all(set(row) == keys and row["low"] <= row["mean"] <= row["high"] for row in summary["rows"])
    assert {(r["model"], r["task"], r["n"]) for r in summary["rows"]} == {
        (m, t, 2) for m in ("one", "two") for t in ("even", "small", "*")
    }
    for model in ("one", "two"):
        score = {r["task"]: r["mean"] for r in summary["rows"] if r["model"] == model}
        assert score["*"] == pytest.approx((score["even"] + score["small"]) / 2)
        assert f"{score['even']:.1f}" in out
    records = [json.loads(line) for line in (here / "run" / "records.jsonl").read_text().splitlines()]
    assert len(records) == len({r["id"] for r in records}) == 8
    page = Page((here / "run" / "report.html").read_text(encoding="utf-8"))
    assert not any(attributes.get(k) for _, attributes in page.elements for k in ("src", "href"))
    assert (len(page.all("circle")), page.all("script")) == (4, [])
    before = {p: p.stat().st_ino for p in (here / "run" / "evaluations").rglob("*") if p.is_file()}
    # The same again, and as JSON: the same numbers, nothing measured.
    code, out, _ = Ran(*command, "--json")(capsys, monkeypatch)
    assert (code, json.loads(out)) == (0, summary)
    assert {p: p.stat().st_ino for p in (here / "run" / "evaluations").rglob("*") if p.is_file()} == before
    # Scores of another suite never stand in the same folder.
    code, out, err = Ran("one", "--suite", "s.yaml", "--seeds", "1", "--out", "run")(capsys, monkeypatch)
    assert (code, out) == (1, "")
    assert "cannot be compared" in err
    assert "seeds: 0, 1 and 0" in err
    assert json.loads((here / "run" / "summary.json").read_text()) == summary


def test_records_are_the_stores_where_there_is_one(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.init(here)
    made = store.commit(here / "one", message="one")
    command = ("main", "--suite", "s.yaml", "--seeds", "1", "--task", "even", "--jobs", "1")
    code, out, err = Ran(*command)(capsys, monkeypatch)
    assert code == 0, err
    [row] = json.loads((here / "runs" / "eval-digits" / "summary.json").read_text())["rows"]
    assert (row["commit"], row["task"]) == (made.id, "even")
    records = Records(store.path / "evaluations")
    assert made.content is not None
    assert [r.value for r in records.of(made.content)] == [row["mean"]]
    store.gc(grace_days=0)
    assert store.fsck().ok
    monkeypatch.setattr(sys, "argv", ["cofuse", "show", "main"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert f"score {row['mean']:.2f} accuracy: even, probe, 1 seed, suite digits " in capsys.readouterr().out
    shutil.rmtree(here / "runs")
    code, out, _ = Ran("one", *command[1:])(capsys, monkeypatch)  # by another name, the same weights
    assert "0 measured now" in out
    assert code == 0


def test_a_task_that_fails_gives_a_status_and_the_others_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opinion_task(here / "opinions")
    (here / "s.yaml").write_text(yaml.safe_dump({**QUICK, "seeds": [0], "tasks": [*QUICK["tasks"], "opinions"]}))
    code, out, err = Ran("one", "--suite", "s.yaml", "--out", "run", "--jobs", "1")(capsys, monkeypatch)
    assert code == 1
    assert "1 of the measurements failed" in err
    assert "Traceback" not in err
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert [r["task"] for r in summary["rows"]] == ["even", "small"]  # no mean over what is not there
    assert [f["task"] for f in summary["failures"]] == ["opinions"]
    assert re.search(r"opinions +-", out)


def test_shared_texts_need_no_model(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = opinion_task(here / "tasks" / "opinions")
    test = task.examples("test").inputs["text"]
    pq.write_table(pa.table({"text": ["never seen before", test[5].upper() + "!"]}), here / "train.parquet")
    code, out, err = Ran("--suite", "tasks", "--against", "train.parquet", "--out", "run")(capsys, monkeypatch)
    assert code == 0, err
    [found] = json.loads((here / "run" / "summary.json").read_text())["contamination"]["tasks"]
    assert [5, 1] in found["rows"]
    assert found["counts"]["rows"] == len(found["rows"])
    assert "Test texts that stand in train.parquet (2 rows)" in out


WRONG: list[tuple[list[str], str]] = [
    (["one"], "say what to measure on"),
    (["one", "--suite", "s.yaml", "--harness", "x"], "say what to measure on"),
    (["--suite", "s.yaml"], "no model to measure"),
    (["one", "--suite", "cold63"], 'did you mean "cold36"?'),
    (["none/", "--suite", "s.yaml"], "no such file or folder"),
    (["one", "one", "--suite", "s.yaml"], "a model stands twice"),
    (["one", "--suite", "s.yaml", "--protocol", "porbe"], 'did you mean "probe"?'),
    (["one", "--suite", "s.yaml", "--protocol", "oldhead"], "old heads need the old model"),
    (["one", "--suite", "s.yaml", "--task", "evne"], 'did you mean "even"?'),
    (["one", "--suite", "s.yaml", "--set", "seed=3"], 'did you mean "seeds"?'),
    (["one", "--suite", "s.yaml", "--pin", "glue"], "not a pin"),
    (["one", "--suite", "cold36", "--task", "anli"], "--pin facebook/anli=COMMIT"),
    (["one", "--suite", "s.yaml", "--against", "train.parquet"], "unknown task"),
    (["one", "--harness", "hellaswag"], 'pip install "cofuse[harness]"'),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_arguments_are_told(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    code, out, err = Ran(*arguments)(capsys, monkeypatch)
    assert (code, out) == (1, "")
    assert said in err
    assert err.count("cofuse: ") == 1
    assert not (here / "runs").exists()


def test_without_the_harness_it_says_what_to_install(here: Path) -> None:
    model = Model.of("one", vit)
    with pytest.raises(SuiteError, match="not installed") as error:
        harness(model, ["hellaswag"], Records(here / "records"), here / "scratch")
    assert error.value.hint == 'pip install "cofuse[harness]"'
    assert not (here / "scratch").exists()


@pytest.mark.slow
def test_the_page_in_a_browser(here: Path) -> None:
    command = [sys.executable, "-m", "cofuse", "eval", "one", "two", "--suite", "s.yaml", "--out", "run"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    dumped = drawn_by_browser(here / "run" / "report.html", here / "profile")
    summary = json.loads((here / "run" / "summary.json").read_text())
    for row in summary["rows"]:
        assert f"{row['mean']:.2f}" in dumped
    assert summary["suite"]["hash"] in dumped
