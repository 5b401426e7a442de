"""Canonical JSON and what is hashed by it: ids in stores, patches and records that exist must not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.canonical import canonical, digest
from cofuse.checkpoint import Memory
from cofuse.evolve.records import job_id
from cofuse.measure.evaluation.identity import files_id, measured_id
from cofuse.measure.evaluation.suite import Suite, open_suite
from cofuse.store.canonical import canonical as kept

VALUE = {"b": [1, 2.5, True, None], "a": "é", "c": {"z": -0.0, "y": 1e-7}}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=20,
)


@given(values)
def test_it_is_json_and_the_order_of_keys_is_not_told(value: object) -> None:
    said = canonical(value)
    assert said.isascii()
    assert json.loads(said) == value
    assert canonical(json.loads(said)) == said
    assert kept(value, "record") == said


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_two_orders_are_one_spelling(value: dict[str, int]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_what_is_no_number_has_no_spelling(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(value)


def test_bytes_and_ids_stay_what_they_are() -> None:
    assert canonical(VALUE) == b'{"a":"\\u00e9","b":[1,2.5,true,null],"c":{"y":1e-07,"z":-0.0}}'
    assert digest("suite", **VALUE) == "3b54caf353e14475e13a87604de9e61014a53262715b9282b385ce49903a8785"
    assert job_id("round", **VALUE) == "f8fd7a772f3d96615442fbff5c84710486fb549c96a821a394f46ebb72b2465c"


def test_ids_of_models_and_suites_stay_what_they_are() -> None:
    model = Memory({"x": torch.zeros(2)}, files={"config.json": b"{}", "vocab.txt": b"a\n"})
    assert files_id(model) == "899fe7df8dc7de7e0c6b1ab839d5d368e334312d88e314674a36c24f5f822abc"
    assert measured_id(model) == "bcb887fc0d87ce99c96059fae6d21feaecb271b117338f3d6d09d44353127376"
    task = {"name": "even", "kind": "image_classification", "data": {"source": "digits", "groups": [[1, 3], [0, 2]]}}
    probe = {"probe": {"examples": 30, "test": 50}}
    said = {"name": "digits", "seeds": [0, 1], "protocols": probe, "tasks": [task]}
    suite = open_suite(Suite.model_validate(said), [Path()])
    assert suite.hash == "5615b103fde946991091413b006c8d58e4ca17b89f83e0f9f6f91012bb9bb813"
    assert [m.id for m in suite.measures] == ["9648c4662f73fb41cc88d998527f77be02966db1e84a746aa38984b4e1e36e55"]
