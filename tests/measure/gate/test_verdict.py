"""Verdicts: laws that hold for any counts and policy, and each rule where it is known what it must say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cofuse.errors import DocumentError
from cofuse.measure.gate import Comparison, Estimate, Policy, compare, judge, read_policy

from .made import cells, drawn, outcomes, pair

ORDER = {"pass": 0, "undecided": 1, "block": 2}
CELLS = st.tuples(st.integers(0, 3000), st.integers(0, 300), st.integers(0, 300), st.integers(1, 500))


def several(sides: dict[str, tuple[int, int, int, int]]) -> Comparison:
    made = {t: cells(*counts) for t, counts in sides.items()}
    return compare(
        [outcomes(a, task=t) for t, (a, _) in made.items()],
        [outcomes(b, task=t, model="new") for t, (_, b) in made.items()],
    )


@given(st.integers(1, 5000), st.floats(0, 1), st.floats(0.1, 10))
def test_a_model_is_never_worse_than_itself(n: int, right: float, drop: float) -> None:
    same = pair(round(right * n), 0, 0, n - round(right * n))
    found = judge(same, Policy(max_drop=drop))
    assert same.tasks[0].difference.mean == 0
    assert found.state in ("pass", "undecided")  # too few examples prove nothing
    assert found.step in ("patch", None)


def test_identical_models_pass_with_no_flips_on_enough_examples() -> None:
    same = several({"a": (300, 0, 0, 100), "b": (400, 0, 0, 0)})
    found = judge(same, Policy())
    assert (found.state, found.step) == ("pass", "patch")
    assert all(t.negative is not None and t.negative.percent == 0 for t in same.tasks)


@given(st.dictionaries(st.sampled_from("abcd"), CELLS, min_size=1), st.data(), st.floats(0.2, 5))
def test_damage_never_improves_a_verdict(
    sides: dict[str, tuple[int, int, int, int]], data: st.DataObject, drop: float
) -> None:
    policy = Policy(max_drop=drop, max_mean_drop=drop, max_worst_drop=3 * drop, max_negative_flips=5)
    task = data.draw(st.sampled_from(sorted(sides)))
    both, lost, won, neither = sides[task]
    more = data.draw(st.integers(0, both))
    fewer = data.draw(st.integers(0, won))
    worse = {**sides, task: (both - more, lost + more, won - fewer, neither + fewer)}
    before, after = judge(several(sides), policy), judge(several(worse), policy)
    assert ORDER[after.state] >= ORDER[before.state]


@given(st.dictionaries(st.sampled_from("abcd"), CELLS, min_size=1), st.floats(0.1, 5), st.floats(0, 5))
def test_a_laxer_policy_never_gives_a_harder_verdict(
    sides: dict[str, tuple[int, int, int, int]], drop: float, slack: float
) -> None:
    found = several(sides)
    strict = Policy(max_drop=drop, max_mean_drop=drop, max_negative_flips=5)
    lax = Policy(max_drop=drop + slack, max_mean_drop=drop + slack, max_negative_flips=5 + slack)
    assert ORDER[judge(found, lax).state] <= ORDER[judge(found, strict).state]


@given(st.dictionaries(st.sampled_from("abcdef"), CELLS, min_size=1))
def test_a_verdict_says_why(sides: dict[str, tuple[int, int, int, int]]) -> None:
    found = judge(several(sides), Policy())
    states = [f.state for f in found.findings]
    assert found.state == max(states, key=ORDER.__getitem__)
    assert found.reasons
    if found.state != "pass":
        assert set(found.reasons) == {f.words for f in found.findings if f.state == found.state}


def test_a_clear_drop_blocks_and_names_the_task() -> None:
    found = judge(several({"fine": (9000, 50, 50, 900), "hurt": (8000, 500, 100, 1400)}), Policy())
    assert (found.state, found.step) == ("block", "major")
    assert any(r.startswith("hurt: -4.00 points") for r in found.reasons)
    assert not any(r.startswith("fine") for r in found.reasons)


def test_too_few_examples_are_said_to_be_too_few() -> None:
    found = judge(pair(160, 6, 6, 28), Policy())
    assert (found.state, found.step) == ("undecided", None)
    assert "needs about" in found.reasons[0]
    assert "has 200" in found.reasons[0]
    near = judge(pair(400_000, 9_000, 4_000, 87_000), Policy())  # one point, to the letter
    assert "too near to it to tell" in near.reasons[0]


def test_holm_controls_how_often_anything_is_blocked() -> None:
    # Twenty tasks that lost exactly what they may: any block is false.
    wrong = 0
    for run in range(250):
        sides = [drawn([run, i], 400, flips=0.05, drop=0.02) for i in range(20)]
        found = compare(
            [outcomes(a, task=f"t{i}") for i, (a, _) in enumerate(sides)],
            [outcomes(b, task=f"t{i}", model="new") for i, (_, b) in enumerate(sides)],
        )
        wrong += judge(found, Policy(max_drop=2, max_mean_drop=100)).state == "block"
    assert wrong / 250 <= 0.055  # 0.025, and three deviations of 250 runs


def test_passing_needs_every_task() -> None:
    # One of four lost exactly what it may: passing is false, and as rare as one test says.
    wrong = 0
    for run in range(250):
        sides = [drawn([run, i], 3000, flips=0.05, drop=0.02 * (i == 0)) for i in range(4)]
        found = compare(
            [outcomes(a, task=f"t{i}") for i, (a, _) in enumerate(sides)],
            [outcomes(b, task=f"t{i}", model="new") for i, (_, b) in enumerate(sides)],
        )
        wrong += judge(found, Policy(max_drop=2, max_mean_drop=2)).state == "pass"
    assert wrong / 250 <= 0.055


class TestRules:
    """Each rule of a policy."""

    def test_flips(self) -> None:
        churn = pair(7000, 1200, 1200, 600)
        assert judge(churn, Policy(max_negative_flips=10)).state == "block"
        assert judge(churn, Policy(max_drop=3, max_mean_drop=3)).state == "pass"
        own = Policy(max_drop=3, max_mean_drop=3, max_negative_flips=10, tasks={"t": {"max_negative_flips": 15}})
        assert judge(churn, own).state == "pass"

    def test_the_step_follows_the_flips(self) -> None:
        few, many = pair(90_000, 500, 500, 9000), pair(88_000, 1500, 1500, 9000)
        assert (judge(few, Policy()).step, judge(many, Policy()).step) == ("patch", "minor")
        assert judge(many, Policy(patch_flips=2)).step == "patch"
        other = compare([outcomes([1] * 2000, protocol="probe")], [outcomes([1] * 2000, protocol="probe", model="new")])
        assert (judge(other, Policy()).state, judge(other, Policy()).step) == ("pass", None)

    def test_shapes_that_changed(self) -> None:
        found = judge(Comparison(old="a", new="b", reshaped=True), Policy())
        assert (found.state, found.step) == ("block", "major")

    def test_kl(self) -> None:
        far = pair(2000, 0, 0, 0)
        with_kl = replace(far, tasks=(replace(far.tasks[0], divergence=Estimate(0.05, 0.005)),))
        states = [judge(with_kl, Policy(max_kl=k)).state for k in (0.01, 0.05, 0.1)]
        assert states == ["block", "undecided", "pass"]
        assert judge(far, Policy(max_kl=0.1)).state == "undecided"  # no log-probabilities

    def test_predicted_change(self) -> None:
        same = pair(2000, 0, 0, 0)
        asked = Policy(max_predicted=0.1)
        assert judge(same, asked).state == "undecided"
        assert judge(replace(same, predicted=0.05), asked).state == "pass"
        assert judge(replace(same, predicted=0.2), asked).state == "block"

    def test_the_worst_task(self) -> None:
        hurt = pair(90, 8, 0, 2)
        assert judge(hurt, Policy(max_worst_drop=5)).state == "block"
        assert judge(hurt, Policy(max_negative_flips=None, max_drop=5)).state == "undecided"

    def test_the_mean(self) -> None:
        sides = dict.fromkeys("abcdefgh", (8000, 120, 40, 1840))
        found = several(sides)
        lax = {"max_drop": 3.0}
        assert judge(found, Policy(max_mean_drop=0.3, **lax)).state == "block"
        assert judge(found, Policy(max_mean_drop=3, **lax)).state == "pass"

    def test_a_mean_that_rises_allows_what_is_undecided_and_nothing_else(self) -> None:
        sides = dict.fromkeys("abcdefgh", (400, 5, 25, 70))
        rising = several(sides)
        policy = Policy(max_drop=0.1)
        assert judge(several(dict.fromkeys("ab", (400, 12, 14, 74))), policy).state == "undecided"
        allowed = policy.model_copy(update={"allow_if_mean_rises": True})
        assert judge(several(dict.fromkeys("ab", (400, 12, 14, 74))), allowed).state == "undecided"
        sides["z"] = (4000, 500, 0, 500)
        assert judge(rising, allowed).state == "pass"
        assert judge(several(sides), allowed).state == "block"

    def test_tasks_that_do_not_count(self) -> None:
        sides = {"a": (4000, 0, 0, 0), "hurt": (3000, 500, 0, 500)}
        assert judge(several(sides), Policy()).state == "block"
        assert judge(several(sides), Policy(tasks={"hurt": {"ignore": True}})).state == "pass"

    def test_own_margins(self) -> None:
        sides = {"a": (4000, 0, 0, 0), "b": (9700, 150, 0, 150)}
        assert judge(several(sides), Policy(max_mean_drop=5)).state == "block"
        assert judge(several(sides), Policy(max_mean_drop=5, tasks={"b": {"max_drop": 3}})).state == "pass"


def test_a_policy_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("max_drop: 2\ntasks: {cola: {max_drop: 4, max_kl: 0.1}}\n")
    policy = read_policy(path)
    assert (policy.margin("sst2"), policy.margin("cola"), policy.kl("cola"), policy.kl("sst2")) == (2, 4, 0.1, None)
    for wrong in ("max_drpo: 2", "max_drop: 0", "confidence: 1.5", "tasks: {a: {b: 1}}", "max_drop: .inf", "- 1"):
        path.write_text(wrong)
        with pytest.raises(DocumentError, match=r"policy\.yaml"):
            read_policy(path)
    assert np.isclose(Policy().tail, 0.025)


def test_the_documents_say_what_is_so() -> None:
    docs = Path(__file__).parents[3] / "docs"
    written, example = re.findall(r"```yaml\n(.*?)```", (docs / "formats/policy.md").read_text(encoding="utf-8"), re.S)
    default = yaml.safe_load(written)
    assert set(default) == set(Policy.model_fields)
    assert Policy.model_validate(default) == Policy()
    assert Policy.model_validate(yaml.safe_load(example)).margin("cola") == 4
    (code, _) = re.findall(r"```python\n(.*?)```", (docs / "gate.md").read_text(encoding="utf-8"), re.S)
    exec(code, {})
