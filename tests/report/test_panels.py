"""What charts show."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofuse.report import summarize
from cofuse.report.panels import Panel, Point, panels, round_ticks, spread, ticks

from .studies import content, study

# As reports have them.
ORDER = ("finetune", "probe", "fewshot")


def test_a_panel_for_each_protocol_and_suite_with_points_and_baselines() -> None:
    summary = summarize(study(rounds=3, seen=("a", "b", "c")))
    found = panels(summary)
    assert [(p.protocol, p.suite) for p in found] == [(n, s) for n in ORDER for s in ("unseen", "seen")]
    for panel in found:
        assert [p.round for p in panel.points] == [0, 1, 2, 3]
        for point in panel.points:
            row = summary.row(f"round {point.round}" if point.round else "pretrained", panel.suite, "*", panel.protocol)
            assert row is not None
            assert point.mean == pytest.approx(row.mean, abs=1e-6)
            # Tasks are held fixed: what is left varies less than tasks do.
            assert row.low < point.low <= point.mean <= point.high < row.high
        assert [line.label for line in panel.lines] == ["pretrained", "multitask", "fuse once", "intertraining"]
        low, high = panel.bounds
        assert all(low < p.low and p.high < high for p in panel.points)
        assert all(low < line.mean < high for line in panel.lines)


def test_intertraining_is_one_line_its_mean() -> None:
    records = study(rounds=1, seen=("a", "b", "c"))
    values = [
        np.mean(r.values)
        for r in records
        if r.kind == "score" and (r.suite, r.protocol) == ("unseen", "finetune")
        if any(r.content == content(f"intertrain:{t}", r.seed) for t in records[0].study["seen"])
    ]
    line = next(line for line in panels(summarize(records))[0].lines if line.style == "intertraining")
    assert line.mean == pytest.approx(np.mean(values), abs=1e-5)


def test_rounds_that_are_not_measured_are_not_drawn_through() -> None:
    def at(*rounds: int) -> Panel:
        return Panel("unseen", "probe", 1, tuple(Point(r, 50.0, 49.0, 51.0, 2) for r in rounds), ())

    assert at(0, 8).sparse
    assert not at(0, 1).sparse
    assert not at(0, 2, 4).sparse
    assert not at(0).sparse


def test_charts_of_a_run_that_measured_nothing() -> None:
    assert panels(summarize(study(rounds=1)[:1])) == ()


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=7),
    st.floats(1, 12),
)
def test_labels_keep_their_order_and_distance(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, 0.0, 100.0)
    assert all(-1e-6 <= p <= 100 + 1e-6 for p in placed)
    order = sorted(range(len(wanted)), key=lambda i: placed[i])
    assert all(wanted[a] <= wanted[b] for a, b in pairwise(order))
    assert all(placed[b] - placed[a] >= gap - 1e-6 for a, b in pairwise(order))


def test_labels_that_do_not_touch_stay() -> None:
    assert spread([80.0, 20.0, 50.0], 10, 0, 100) == (80.0, 20.0, 50.0)


def test_labels_without_room_share_what_there_is() -> None:
    assert spread([5.0, 5.0, 5.0], 10, 0, 10) == (0.0, 5.0, 10.0)


@given(st.floats(-100, 100), st.floats(0.01, 100))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-6 <= t <= low + span + 1e-6 for t in found)


@given(st.integers(1, 5000))
def test_rounds_named_below_a_chart_are_few(last: int) -> None:
    found = round_ticks(last)
    assert found[0] == 0
    assert found[-1] <= last
    assert len(found) <= 11
