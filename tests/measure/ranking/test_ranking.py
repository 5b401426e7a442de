"""Ranking base models from records: gains are differences, no order matters, CSV and JSON say the same."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.pages import drawn_by_browser
from rich.console import Console
from scipy.stats import kendalltau
from tasks.tiny import bert, vit

from cofuse.errors import SuiteError
from cofuse.measure.evaluation.evaluating import Model
from cofuse.measure.evaluation.records import Record, Records
from cofuse.measure.evaluation.suite import OpenSuite
from cofuse.measure.outcomes import Outcomes
from cofuse.measure.ranking.agreement import agreements, kendall, regret, spearman
from cofuse.measure.ranking.ranking import Entry, Ranking, entries, rank
from cofuse.report.ranking import Rankings, ranking_csv, ranking_tables, write_rankings

from ..suites import SUITE
from ..suites import opened as open_document

N = 40


@dataclass
class Made:
    """A suite, records of made-up models, and the scores they were made from: [model][protocol, task][seed]."""

    suite: OpenSuite
    records: Records
    entered: tuple[Entry, ...]
    values: dict[str, dict[tuple[str, str], list[float]]]


def named(name: str) -> Model:
    return Model(name, vit, name.encode().hex().zfill(64), "f" * 64)


def made(folder: Path, skill: dict[str, dict[str, float]]) -> Made:
    """Models that are right on an example with a chance that depends on the protocol."""
    suite = open_document(SUITE)
    records = Records(folder)
    models = {name: named(name) for name in skill}
    values: dict[str, dict[tuple[str, str], list[float]]] = {}
    for i, (name, by_protocol) in enumerate(skill.items()):
        for measure in suite.measures:
            for seed in suite.seeds_of(measure):
                random = np.random.default_rng([i, seed, len(measure.task.name), len(measure.protocol)])
                right = random.random(N) < by_protocol[measure.protocol]
                labels = np.zeros(N, np.int64)
                said = {"task": measure.task.name, "task_id": measure.task.id, "protocol": measure.protocol}
                found = Outcomes.predicted(np.where(right, 0, 1), labels, model="", seed=seed, **said)
                record = Record(
                    id=f"{len(list(records.of(models[name].content))):064d}", content=models[name].content,
                    files=models[name].files, suite=suite.name, suite_hash=suite.hash, measure=measure.id,
                    settings={}, metric="accuracy", seed=seed, value=found.value, tested=N, outcomes="",
                    versions={}, seconds=2.0, **said,
                )  # fmt: skip
                records.add(record, found)
                key = (measure.protocol, measure.task.name)
                values.setdefault(name, {}).setdefault(key, []).append(found.value)
    base = models["base"]
    return Made(suite, records, tuple(Entry(models[n], base) for n in skill if n != "base"), values)


SKILL = {
    "base": {"probe": 0.5, "finetune": 0.5},
    "poor": {"probe": 0.3, "finetune": 0.2},
    "fair": {"probe": 0.6, "finetune": 0.6},
    "good": {"probe": 0.8, "finetune": 0.9},
}


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("records"), SKILL)


def of(rankings: tuple[Ranking, ...], protocol: str) -> Ranking:
    return next(r for r in rankings if r.protocol == protocol)


def test_a_gain_is_the_difference_of_the_scores(some: Made) -> None:
    rankings = rank(some.entered, some.suite, some.records)
    assert {r.protocol for r in rankings} == {"probe", "finetune"}
    for ranking in rankings:
        assert [r.model for r in ranking.ranked] == ["good", "fair", "poor"]
        assert ranking.best["base"].model == "good"
        for one in ranking.ranked:
            differences = []
            for t in one.tasks:
                mine, theirs = (some.values[m][ranking.protocol, t.task] for m in (one.model, "base"))
                assert t.gain == pytest.approx(np.mean(mine) - np.mean(theirs))
                assert t.score == pytest.approx(np.mean(mine))
                assert t.low <= t.gain <= t.high
                differences.append(t.gain)
            assert one.gain.mean == pytest.approx(np.mean(differences))
            assert one.gain.low <= one.gain.mean <= one.gain.high
            assert one.better == np.mean([d > 0 for d in differences])
            assert one.seconds == 2.0 * 2 * len(one.tasks)


def test_the_order_of_models_is_no_matter(some: Made) -> None:
    expected = rank(some.entered, some.suite, some.records)
    for order in ([2, 1, 0], [1, 0, 2]):
        assert rank([some.entered[i] for i in order], some.suite, some.records) == expected


def test_the_pretrained_model_gains_nothing_over_itself(some: Made) -> None:
    base = some.entered[0].pretrained
    ranking = of(rank([*some.entered, Entry(base, base)], some.suite, some.records), "probe")
    own = next(r for r in ranking.ranked if r.model == "base")
    assert (own.gain.mean, own.gain.low, own.gain.high) == (0, 0, 0)
    assert all((t.gain, t.low, t.high) == (0, 0, 0) for t in own.tasks)


def test_a_protocol_without_all_records_gives_no_ranking(some: Made, tmp_path: Path) -> None:
    again = made(tmp_path, SKILL)
    lost = next(r for r in again.records.of(again.entered[0].model.content) if r.protocol == "finetune")
    (found,) = (tmp_path / lost.content).glob(f"*/{lost.id}.json")
    found.unlink()
    assert [r.protocol for r in rank(again.entered, again.suite, again.records)] == ["probe"]
    assert agreements(rank(again.entered, again.suite, again.records)) == ()


def test_each_architecture_has_its_pretrained_model() -> None:
    models = {"v": vit(1), "b": bert(1), "v0": vit(0), "b0": bert(0), "wide": bert(0, hidden_size=32)}
    named = {name: Model.of(name, lambda m=m: m) for name, m in models.items()}
    found = entries([named["v"], named["b"]], [named["b0"], named["v0"]], models)
    assert [(e.model.name, e.pretrained.name) for e in found] == [("v", "v0"), ("b", "b0")]
    with pytest.raises(SuiteError, match="no pretrained model") as error:
        entries([named["wide"]], [named["b0"], named["v0"]], models)
    assert "wide" in str(error.value)
    with pytest.raises(SuiteError, match="several pretrained"):
        entries([named["b"]], [named["b0"], named["b"]], models)


# A cheap ranking for a dear one


def test_the_probe_tells_the_finetuning_here(some: Made) -> None:
    rankings = rank(some.entered, some.suite, some.records)
    (found,) = agreements(rankings)
    assert (found.spearman.value, found.kendall.value, found.regret) == (1, 1, {1: 0, 3: 0})
    assert found.spearman.low <= 1 == found.spearman.high
    assert found.seconds == (24.0, 24.0)
    assert (found.predictor, found.reference) == ("probe on even, small", "finetune on even, small")


numbers = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=8)


@given(numbers)
def test_correlations_against_others_code(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(v, np.float64) for v in zip(*pairs, strict=True))
    if np.ptp(x) and np.ptp(y):
        assert kendall(x, y) == pytest.approx(kendalltau(x, y).statistic)
        assert spearman(x, x) == kendall(x, x) == 1
        assert spearman(x, -x) == kendall(x, -x) == -1
    else:
        assert kendall(x, y) == spearman(x, y) == 0


@given(numbers, st.integers(1, 3))
def test_regret_is_what_the_first_lack(pairs: list[tuple[int, int]], first: int) -> None:
    x, y = (np.array(v, np.float64) for v in zip(*pairs, strict=True))
    cost = regret(x, y, first)
    assert cost >= 0
    assert regret(y, y, first) == 0
    assert regret(x, y, len(x)) == 0
    if len(set(x)) == len(x):
        top = sorted(zip(x, y, strict=True), reverse=True)[:first]
        assert cost == max(y) - max(v for _, v in top)


# What is shown


@pytest.fixture(scope="module")
def shown(some: Made) -> Rankings:
    rankings = rank(some.entered, some.suite, some.records)
    first = sorted(rankings, key=lambda r: r.protocol != "probe")
    return Rankings(some.suite, tuple(first), agreements(rankings))


def test_csv_and_json_agree(shown: Rankings, tmp_path: Path) -> None:
    page = write_rankings(tmp_path / "run", shown)
    said = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert said == json.loads(json.dumps(shown.document()))
    for name, ranking in (("ranking", said["rankings"][0]), ("ranking-finetune-2", said["rankings"][1])):
        rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / f"{name}.csv").read_text())))
        assert [r["model"] for r in rows] == [m["model"] for m in ranking["models"]]
        for row, model in zip(rows, ranking["models"], strict=True):
            assert float(row["gain"]) == model["gain"]["mean"]
            assert (float(row["low"]), float(row["high"])) == (model["gain"]["low"], model["gain"]["high"])
            assert {t["task"]: t["gain"] for t in model["tasks"]} == {t: float(row[t]) for t in ranking["tasks"]}
    text = page.read_text(encoding="utf-8")
    for ranking in said["rankings"]:
        for model in ranking["models"]:
            assert f"{model['gain']['mean']:.2f}" in text
    assert text.count("<svg") == 3  # two charts of gains, one of the two rankings
    assert "Spearman 1.00" in text
    assert not re.search(r"https?://|<script|url\(|@import", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_hostile_names_are_text(some: Made, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    entered = [
        Entry(Model(hostile, e.model.open, e.model.content, e.model.files), e.pretrained) for e in some.entered[:1]
    ]
    found = rank(entered, some.suite, some.records)
    page = write_rankings(tmp_path, Rankings(some.suite, found, ()))
    assert "<script" not in page.read_text(encoding="utf-8")
    assert hostile in ranking_csv(found[0])


@pytest.mark.parametrize("width", [60, 160])
def test_the_table_of_a_terminal(shown: Rankings, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    ranking_tables(shown, console)
    text = console.export_text()
    assert text.index("good") < text.index("fair") < text.index("poor")
    assert "best of base: good, +" in text
    assert ("even" in text.splitlines()[2]) == (width == 160)


@pytest.mark.slow
def test_the_page_in_a_browser(shown: Rankings, tmp_path: Path) -> None:
    dumped = drawn_by_browser(write_rankings(tmp_path / "run", shown), tmp_path / "profile")
    assert dumped.count("<svg") == 3
    for ranking in shown.rankings:
        for one in ranking.ranked:
            assert f"{one.gain.mean:.2f}" in dumped
