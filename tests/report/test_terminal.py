"""The tables of a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cofuse.report import summarize, tables

from .studies import content, study


def printed(records: list[Any], width: int) -> str:
    out = io.StringIO()
    tables(summarize(records), Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture(scope="module")
def records() -> list[Any]:
    return study(rounds=2, seen=("a", "b"))


@pytest.fixture(scope="module")
def long() -> list[Any]:
    name = "a_task_with_a_name_that_goes_on_and_on_for_longer_than_names_should"
    return study(rounds=12, seen=("a",), unseen=(name, "u"), protocols={"probe": 2})


def test_a_row_a_task_with_its_numbers(records: list[Any]) -> None:
    summary = summarize(records)
    lines = printed(records, 100).splitlines()
    row = next(line.split() for line in lines if line.split()[:1] == ["isear"])
    models = ("pretrained", "round 2", "multitask", "fuse once", "intertrain mean")
    means = [f"{found.mean:.1f}" for m in models if (found := summary.row(m, "unseen", "isear", "finetune"))]
    d = summary.difference("round 2", "pretrained", "unseen", "isear", "finetune")
    assert d is not None
    assert row == ["isear", *means[:2], f"{d.mean:+.1f}", f"[{d.low:+.1f},", f"{d.high:+.1f}]", *means[2:]]
    assert sum(line.split()[:1] == ["mean"] for line in lines) >= 6  # three protocols on two suites


@pytest.mark.parametrize("width", [100, 80, 60, 45])
def test_tables_fit(records: list[Any], long: list[Any], width: int) -> None:
    for text in (printed(records, width), printed(long, width)):
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "pretrained" in text
        assert "differen" in text
        assert ("multitask" in text) == (width == 100)
        assert ("[+" in text) == (width >= 80)


def test_names_of_tasks_are_no_markup() -> None:
    assert "[red]x[/red]" in printed(study(rounds=1, unseen=("[red]x[/red]", "b")), 100)


def test_an_unfinished_run_says_so(records: list[Any]) -> None:
    fewer = [r for r in records if r.kind != "score" or r.content != content("multitask", 2)]
    assert "measurements not finished" in printed(fewer, 100)
    assert "not finished" not in printed(records, 100)


def test_nothing_measured_yet() -> None:
    assert "nothing is measured yet" in printed([], 80)


def test_one_task_has_no_mean_of_its_own() -> None:
    lines = printed(study(rounds=1, seen=("a", "b"), unseen=("only",), protocols={"probe": 2}), 70).splitlines()
    assert sum(line.split()[:1] == ["mean"] for line in lines) == 1  # of the seen tasks
