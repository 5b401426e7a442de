"""`cofuse methods`: what there is to choose from."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cofuse.cli.app import application
from cofuse.errors import FuseError
from cofuse.fuse import METHODS

runner = CliRunner()


def test_every_method_has_its_line() -> None:
    said = runner.invoke(application(), ["methods"], catch_exceptions=False).stdout.splitlines()
    for name in METHODS:
        (line,) = [row for row in said if row.split(" ")[0] == name]
        summary = line.removeprefix(name).strip()
        assert summary.endswith("."), line
        assert len(line) <= 120


@pytest.mark.parametrize("name", METHODS)
def test_each_says_its_formula_source_and_parameters(name: str) -> None:
    said = runner.invoke(application(), ["methods", name], catch_exceptions=False).stdout
    assert "Source:" in said
    assert ">>>" in said
    for parameter in METHODS[name].parameters:
        assert f"  {parameter}: " in said


def test_as_json() -> None:
    said = json.loads(runner.invoke(application(), ["methods", "ties", "--json"], catch_exceptions=False).stdout)
    assert said["ties"]["parameters"]["density"]["high"] == 1.0


def test_an_unknown_one_gets_a_suggestion() -> None:
    with pytest.raises(FuseError, match="unknown") as caught:
        runner.invoke(application(), ["methods", "tise"], catch_exceptions=False)
    assert "ties" in str(caught.value)
