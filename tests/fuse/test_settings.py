"""What a parameter's value is for one tensor: scalars, gradients over layers, rules by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofuse.document import PlacedError
from cofuse.fuse import Parameter
from cofuse.fuse.settings import Rule, as_kind, check_setting, plain_settings, read_setting, read_settings, value_at

NUMBER = Parameter(1.0)
numbers = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))


def at(
    setting: Any, tensor: str = "model.layers.3.mlp.up_proj.weight", t: float = 0.0, kind: Parameter = NUMBER
) -> Any:
    return value_at("weight", read_setting(setting), kind, tensor, t)


@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0, 1))
def test_a_gradient_is_interpolated(values: list[float], t: float) -> None:
    expected = np.interp(t, np.linspace(0, 1, len(values)), values) if len(values) > 1 else values[0]
    assert at(values, t=t) == pytest.approx(expected, abs=1e-9)


@given(st.lists(numbers, min_size=1, max_size=6))
def test_a_gradient_meets_its_ends(values: list[float]) -> None:
    assert at(values, t=0.0) == values[0]
    assert at(values, t=1.0) == values[-1]


def test_words_and_truths_of_a_gradient_are_taken_and_not_mixed() -> None:
    truth, word = Parameter(False), Parameter("sum", choices=("sum", "count"))
    assert [at([True, False, True], t=t, kind=truth) for t in (0.0, 0.49, 0.5, 0.99, 1.0)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert at(["sum", "count"], t=0.99, kind=word) == "sum"
    assert at(["sum", "count"], t=1.0, kind=word) == "count"


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (None, True),
        ("*", True),
        ("mlp", True),
        ("mlp.up", True),
        ("layers.3.", True),
        ("MLP", False),
        ("self_attn", False),
        ("*.mlp.*", True),
        ("mlp.*", False),  # a glob is about the whole name
        ("*layers.[0-3].*", True),
        ("*layers.[4-9].*", False),
        ("*layers.?.mlp.up_proj.weight", True),
        ("", True),
    ],
)
def test_filters_are_parts_of_names_or_globs(pattern: str | None, fits: bool) -> None:
    assert Rule(filter=pattern, value=1).fits("model.layers.3.mlp.up_proj.weight") is fits


def test_the_first_rule_that_fits_counts() -> None:
    rules = [{"filter": "attn", "value": 1}, {"filter": "mlp", "value": [2, 4]}, {"filter": "up_proj", "value": 3}, 5]
    assert at(rules, t=0.5) == 3.0
    assert at(rules, "model.layers.3.self_attn.q_proj.weight") == 1.0
    assert at(rules, "model.norm.weight") == 5.0
    assert at(rules[:3], "model.norm.weight") is None
    assert at([]) is None
    assert at({"filter": "mlp", "value": "1e-3"}) == 1e-3


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        (1, NUMBER, 1.0),
        (3.0, Parameter(10), 3),
        (1, Parameter(True), True),
        (0.0, Parameter(True), False),
        ("No", Parameter(True), False),
        ("count", Parameter("sum", choices=("sum", "count")), "count"),
    ],
)
def test_values_become_the_parameters_kind(value: Any, kind: Parameter, found: Any) -> None:
    got = as_kind("x", value, kind)
    assert (got, type(got)) == (found, type(found))


@pytest.mark.parametrize(
    ("setting", "kind", "keys", "said"),
    [
        (1.3, Parameter(1.0, low=0.0, high=1.0), (), "lies between 0.0 and 1.0"),
        ([0.5, 1.3], Parameter(1.0, low=0.0, high=1.0), (1,), "lies between"),
        (-1, Parameter(1.0, low=0.0), (), "at least 0.0"),
        (["a", "b"], NUMBER, (0,), "is a number"),
        ([{"filter": "mlp", "value": [0, True]}], NUMBER, (0, "value", 1), "is a number"),
        (2, Parameter(True), (), "true or false"),
        ("maybe", Parameter(True), (), "true or false"),
        (2.5, Parameter(10), (), "whole number"),
        ("cuont", Parameter("sum", choices=("sum", "count")), (), 'did you mean "count"?'),
    ],
)
def test_what_a_parameter_cannot_be_is_told_with_its_place(
    setting: Any, kind: Parameter, keys: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(PlacedError) as caught:
        check_setting("x", read_setting(setting), kind)
    assert caught.value.keys == keys
    assert said in str(caught.value)


@given(
    st.recursive(
        numbers | st.booleans() | st.sampled_from(["sum", "count"]),
        lambda inner: st.lists(inner, min_size=1, max_size=3),
        max_leaves=1,
    )
    | st.lists(
        st.fixed_dictionaries({"value": st.lists(numbers, min_size=1, max_size=3)}, optional={"filter": st.text()})
    )
)
def test_plain_settings_read_back(value: Any) -> None:
    read = read_settings({"x": value})
    assert read_settings(plain_settings(read)) == read
