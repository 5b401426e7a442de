"""The numbers of a report, held to a slow twin that reads records in nested loops."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cofuse.errors import StudyError
from cofuse.evolve.records import ModelRecord, ScoreRecord
from cofuse.measure.intervals import interval
from cofuse.report import Summary, summarize

from .studies import commit, content, study

SMALL: dict[str, Any] = {
    "seeds": (1, 2),
    "rounds": 2,
    "seen": ("s1", "s2"),
    "unseen": ("u1", "u2", "u3"),
    "protocols": {"probe": 2, "finetune": 1},
}
ROW_KEYS = ["model", "commit", "suite", "task", "protocol", "metric", "mean", "low", "high", "n"]


def without(records: list[Any], **wanted: Any) -> list[Any]:
    """Records, less the scores that have all the wanted values."""
    return [r for r in records if r.kind != "score" or any(getattr(r, k) != v for k, v in wanted.items())]


def slow_scores(records: list[Any], model: str, suite: str, task: str, protocol: str, seed: int) -> tuple[float, ...]:
    """Draws of one measurement, found by looking at everything."""
    for m in records:
        if m.kind == "model" and m.name == model and m.seed == seed:
            for s in records:
                same = s.kind == "score" and (s.content, s.seed) == (m.content, seed)
                if same and (s.suite, s.task, s.protocol) == (suite, task, protocol):
                    return tuple(s.values)
    raise AssertionError("not measured")


def slow_values(records: list[Any], model: str, suite: str, tasks: tuple[str, ...], protocol: str) -> Any:
    """[task, seed, draw]; of `intertrain mean` the mean over the models that are."""
    if model == "intertrain mean":
        return np.mean([slow_values(records, f"intertrain:{t}", suite, tasks, protocol) for t in ("s1", "s2")], axis=0)
    return np.array([[slow_scores(records, model, suite, t, protocol, s) for s in (1, 2)] for t in tasks])


def tasks_of(suite: str, task: str) -> tuple[str, ...]:
    return tuple(SMALL[suite]) if task == "*" else (task,)


@pytest.fixture(scope="module")
def records() -> list[Any]:
    return study(**SMALL)


@pytest.fixture(scope="module")
def summary(records: list[Any]) -> Summary:
    return summarize(records)


def test_rows_are_those_of_the_slow_twin(records: list[Any], summary: Summary) -> None:
    for row in summary.rows:
        values = slow_values(records, row.model, row.suite, tasks_of(row.suite, row.task), row.protocol)
        wanted = interval(values)
        assert (row.mean, row.low, row.high) == pytest.approx((wanted.mean, wanted.low, wanted.high), abs=1e-6)
        assert row.n == values.shape[1] * values.shape[2] == wanted.n


def test_there_is_a_row_for_everything_that_is_measured(summary: Summary) -> None:
    models = ["pretrained", "round 1", "round 2", "multitask", "fuse once", "intertrain:s1", "intertrain:s2"]
    wanted = {
        (m, suite, task, p)
        for m in models
        for suite in ("seen", "unseen")
        for task in (*SMALL[suite], "*")
        for p in SMALL["protocols"]
    }
    found = [(r.model, r.suite, r.task, r.protocol) for r in summary.rows]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert list(dict.fromkeys(r.model for r in summary.rows)) == models


def test_differences_are_paired(records: list[Any], summary: Summary) -> None:
    for d in summary.differences:
        tasks = tasks_of(d.suite, d.task)
        ours, theirs = (slow_values(records, m, d.suite, tasks, d.protocol) for m in (d.model, d.minus))
        wanted = interval(ours - theirs)
        assert (d.mean, d.low, d.high) == pytest.approx((wanted.mean, wanted.low, wanted.high), abs=1e-6)
        assert d.n == wanted.n


def test_every_model_is_compared_with_the_base_and_the_last_round_with_the_baselines(summary: Summary) -> None:
    pairs = list(dict.fromkeys((d.model, d.minus) for d in summary.differences))
    models = ["round 1", "round 2", "multitask", "fuse once", "intertrain:s1", "intertrain:s2"]
    assert pairs == [
        *((m, "pretrained") for m in models),
        *(("round 2", baseline) for baseline in ("multitask", "fuse once", "intertrain mean")),
    ]


def test_pairing_takes_out_what_models_share() -> None:
    """Seeds that differ by 40 points leave no trace in a difference that is the same for each."""
    records: list[Any] = []
    for seed, level in ((0, 30.0), (1, 70.0)):
        for name, gain in (("pretrained", 0.0), ("round 1", 2.0)):
            body = f"{name} of {seed}"
            records.append(ModelRecord(id=f"m {body}", name=name, seed=seed, commit="c", tree="t", content=body))
            records.append(score(body, seed, (level + gain, level + gain + 1)))
    found = summarize(records)
    row = found.row("round 1", "unseen", "*", "probe")
    difference = found.difference("round 1", "pretrained", "unseen", "*", "probe")
    assert row is not None
    assert difference is not None
    assert row.high - row.low > 20
    assert (difference.mean, difference.low, difference.high) == (2.0, 2.0, 2.0)


def score(body: str, seed: int, values: tuple[float, ...], **said: Any) -> ScoreRecord:
    kept = {"suite": "unseen", "task": "u", "protocol": "probe", "metric": "accuracy", **said}
    return ScoreRecord(id=f"{body} {seed} {said}", content=body, seed=seed, values=values, tested=10, seconds=1, **kept)


def test_document_has_its_keys_and_only_plain_values(summary: Summary) -> None:
    document = summary.document()
    assert list(document) == ["what", "rows", "differences"]
    assert document["what"] == "evolve"
    assert {tuple(r) for r in document["rows"]} == {tuple(ROW_KEYS)}
    keys = ["model", "minus", *ROW_KEYS[2:]]
    assert {tuple(d) for d in document["differences"]} == {tuple(keys)}
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_document_does_not_depend_on_who_finishes_first(records: list[Any], summary: Summary) -> None:
    assert summarize(list(reversed(records))).document() == summary.document()


def test_the_commit_of_a_row_is_that_of_its_first_seed(summary: Summary) -> None:
    assert all(r.commit == commit(r.model, 1) for r in summary.rows)


def test_two_models_with_one_content_both_have_its_scores() -> None:
    models = [
        ModelRecord(id=name, name=name, seed=0, commit=name, tree="t", content="same")
        for name in ("round 1", "fuse once")
    ]
    found = summarize([*models, score("same", 0, (1.0, 3.0))])
    assert [(r.model, r.mean) for r in found.rows if r.task == "u"] == [("round 1", 2.0), ("fuse once", 2.0)]


def test_a_score_goes_to_the_models_of_its_own_seed() -> None:
    models = [
        ModelRecord(id=name, name=name, seed=seed, commit=name, tree="t", content="same")
        for name, seed in (("round 1", 0), ("fuse once", 1))
    ]
    found = summarize([*models, score("same", 0, (1.0,)), score("same", 1, (5.0,))])
    assert [(r.model, r.mean, r.n) for r in found.rows if r.task == "u"] == [("round 1", 1.0, 1), ("fuse once", 5.0, 1)]


def test_scores_of_a_body_that_no_model_names_are_left_out(records: list[Any], summary: Summary) -> None:
    stray = score("a contribution", 1, (99.0, 99.0), task="u1")
    assert summarize([*records, stray]).document() == summary.document()


def test_a_score_belongs_to_its_seed_even_when_bodies_are_the_same(records: list[Any]) -> None:
    """The pretrained base has one content for all seeds."""
    assert content("pretrained", 1) == content("pretrained", 2)
    found = summarize(without(records, content=content("pretrained", 2), seed=2))
    row = found.row("pretrained", "unseen", "u1", "probe")
    assert row is not None
    assert row.n == 2  # one seed, two draws


def test_unfinished_measurements_leave_their_seed_out_of_that_row(records: list[Any]) -> None:
    missing = without(records, content=content("round 2", 2), task="u1", protocol="probe")
    found = summarize(missing)
    n = {t: row.n for t in ("u1", "u2", "*") if (row := found.row("round 2", "unseen", t, "probe"))}
    assert n == {"u1": 2, "u2": 4, "*": 2}
    difference = found.difference("round 2", "pretrained", "unseen", "*", "probe")
    assert difference is not None
    assert difference.n == 2
    ours = slow_values(records, "round 2", "unseen", ("u1", "u2", "u3"), "probe")[:, :1]
    theirs = slow_values(records, "pretrained", "unseen", ("u1", "u2", "u3"), "probe")[:, :1]
    assert difference.mean == pytest.approx((ours - theirs).mean(), abs=1e-6)
    assert found.scores.unfinished == 1


def test_a_suite_has_no_mean_before_all_of_its_tasks_are_measured(records: list[Any]) -> None:
    """Even when nothing at all is measured on a task yet: the study says that it is coming."""
    found = summarize(without(records, task="u3"))
    assert found.row("round 2", "unseen", "u1", "probe") is not None
    assert found.row("round 2", "unseen", "*", "probe") is None


def test_the_last_round_is_one_that_seeds_have_in_common(records: list[Any]) -> None:
    found = summarize(without(records, content=content("round 2", 2)))
    assert found.scores.last("unseen", "probe") == "round 1"
    assert ("round 1", "multitask") in {(d.model, d.minus) for d in found.differences}
    assert found.row("round 2", "unseen", "*", "probe") is not None


def test_a_round_measured_by_one_protocol_only(records: list[Any]) -> None:
    """`every: 0` measures the last round alone."""
    fewer = [
        r for r in records if r.kind != "score" or r.protocol != "probe" or r.content != content("round 1", r.seed)
    ]
    found = summarize(fewer)
    assert found.row("round 1", "unseen", "*", "probe") is None
    assert found.row("round 1", "unseen", "*", "finetune") is not None
    assert found.scores.unfinished == 0


@pytest.mark.parametrize("missing", ["multitask", "fuse once", "intertrain:s2", "pretrained"])
def test_a_missing_baseline_takes_its_differences_with_it(records: list[Any], missing: str) -> None:
    bodies = {content(missing, 1), content(missing, 2)}
    found = summarize([r for r in records if r.kind != "score" or r.content not in bodies])
    assert missing not in {r.model for r in found.rows}
    assert not any(missing in {d.model, d.minus} for d in found.differences)
    # The mean over intertrained models is not that of those which happen to be finished.
    has_mean = any(d.minus == "intertrain mean" for d in found.differences)
    assert has_mean == (missing != "intertrain:s2")


def test_a_study_without_baselines() -> None:
    found = summarize(study(**SMALL, baselines=False))
    assert {d.minus for d in found.differences} == {"pretrained"}
    assert found.intertraining == ()


def test_a_model_of_an_unknown_kind_is_a_row_like_others(records: list[Any]) -> None:
    model = ModelRecord(id="x", name="soup", seed=1, commit="c", tree="t", content="soup")
    found = summarize([*records, model, score("soup", 1, (5.0, 5.0), task="u2")])
    row = found.row("soup", "unseen", "u2", "probe")
    assert row is not None
    assert row.mean == 5.0


def test_metrics_that_differ_have_a_mean() -> None:
    found = summarize(study(**SMALL, metrics={"u1": "macro_f1"}))
    metrics = {t: row.metric for t in ("u1", "u2", "*") if (row := found.row("round 1", "unseen", t, "probe"))}
    assert metrics == {"u1": "macro_f1", "u2": "accuracy", "*": "mean"}
    seen = found.row("round 1", "seen", "*", "probe")
    assert seen is not None
    assert seen.metric == "accuracy"


def test_records_without_a_beginning(records: list[Any], summary: Summary) -> None:
    """Seeds, suites and baselines are then those that scores tell of."""
    assert summarize([r for r in records if r.kind != "begun"]).document() == summary.document()


def test_one_seed_and_one_draw_have_no_interval() -> None:
    found = summarize(study(**{**SMALL, "seeds": (4,)}))
    row = found.row("round 2", "unseen", "u1", "finetune")
    difference = found.difference("round 2", "pretrained", "unseen", "u1", "finetune")
    assert row is not None
    assert difference is not None
    assert (row.n, row.low, row.high) == (1, row.mean, row.mean)
    assert difference.bare
    assert not difference.clear  # whatever its value: once is not an interval


def test_nothing_measured_yet() -> None:
    begun = study(**SMALL)[:1]
    assert summarize(begun).document() == {"what": "evolve", "rows": [], "differences": []}
    assert summarize([]).document() == {"what": "evolve", "rows": [], "differences": []}


def test_records_that_contradict_each_other_are_an_error(records: list[Any]) -> None:
    first = next(r for r in records if r.kind == "score" and r.protocol == "probe")
    other = first.model_copy(update={"values": (1.0, 2.0, 3.0)})
    with pytest.raises(StudyError, match="different numbers of draws") as raised:
        summarize([other if r is first else r for r in records])
    assert "2, 3" in str(raised.value)


def test_models_with_different_numbers_of_draws_are_not_compared(records: list[Any]) -> None:
    ones = {content("multitask", s) for s in (1, 2)}
    changed = [
        r.model_copy(update={"values": r.values[:1]}) if r.kind == "score" and r.content in ones else r for r in records
    ]
    with pytest.raises(StudyError, match="different numbers of draws"):
        summarize(changed)
