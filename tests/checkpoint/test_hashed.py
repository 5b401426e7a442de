"""Ids found while reading are the ids, whoever reads what in which order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import CHUNK, Checkpoint, Hashed, Memory, content_id, tensor_id
from cofuse.store import Store

from .models import checkpoints


class Counted(Memory):
    """Counts the bytes read of it."""

    read_so_far = 0

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        data = super().read_bytes(name, start, stop)
        self.read_so_far += len(data)
        return data


def large(size: int = 2 * CHUNK + 100) -> Counted:
    generator = torch.Generator().manual_seed(0)
    return Counted({"x": torch.randint(0, 255, (size,), dtype=torch.uint8, generator=generator), "y": torch.ones(3)})


def pieces(size: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, step):
        yield start, min(start + step, size)


@given(checkpoints(), st.booleans())
def test_it_is_the_checkpoint(checkpoint: Memory, once: bool) -> None:
    hashed = Hashed(checkpoint, once=once)
    assert (hashed.names(), dict(hashed.aliases), dict(hashed.files), dict(hashed.metadata), hashed.where) == (
        checkpoint.names(),
        dict(checkpoint.aliases),
        dict(checkpoint.files),
        dict(checkpoint.metadata),
        checkpoint.where,
    )
    for name in (*hashed.names(), *hashed.aliases):
        assert hashed.spec(name) == checkpoint.spec(name)
        assert hashed.read_bytes(name) == checkpoint.read_bytes(name)
    assert content_id(hashed) == content_id(checkpoint)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("step", [CHUNK, CHUNK // 2, 1_000_003, 5 * CHUNK])
def test_what_was_read_in_order_is_not_read_again(step: int, once: bool) -> None:
    model = large()
    hashed = Hashed(model, once=once)
    for start, stop in pieces(model.spec("x").nbytes, step):
        hashed.read_into("x", start, memoryview(bytearray(stop - start)))
    before = model.read_so_far
    assert hashed.used() == ("x",)
    assert hashed.tensor_ids(hashed.used()) == {"x": tensor_id(large(), "x")}
    assert model.read_so_far == before


def test_what_came_too_early_waits_where_everything_is_read_once() -> None:
    model = large()
    ranges = list(pieces(model.spec("x").nbytes, 700_001))
    random.Random(0).shuffle(ranges)
    hashed = Hashed(model, once=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda r: hashed.read_bytes("x", *r), ranges))
    before = model.read_so_far
    assert hashed.tensor_ids(["x"]) == {"x": tensor_id(large(), "x")}
    assert model.read_so_far == before


def test_any_order_any_threads_any_number_of_times() -> None:
    model = large()
    ranges = list(pieces(model.spec("x").nbytes, 700_001)) * 3
    random.Random(1).shuffle(ranges)
    hashed = Hashed(model)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda r: hashed.read_bytes("x", *r), ranges))
    assert content_id(hashed) == content_id(large())


def test_a_survey_that_goes_elsewhere_does_not_spoil_the_pass_after_it() -> None:
    model = large()
    hashed = Hashed(model)
    hashed.read_bytes("x", 0, 100)  # a survey's thread, that goes on elsewhere
    for start, stop in pieces(model.spec("x").nbytes, CHUNK // 4):
        hashed.read_bytes("x", start, stop)
    before = model.read_so_far
    assert hashed.tensor_ids(["x"]) == {"x": tensor_id(large(), "x")}
    assert model.read_so_far == before


def test_only_what_was_read_counts_as_used() -> None:
    model = Memory({"a": torch.ones(2), "b": torch.ones(3)})
    hashed = Hashed(model)
    assert hashed.used() == ()
    hashed.read_bytes("b", 4, 8)
    assert hashed.used() == ("b",)
    assert hashed.tensor_ids(["b"]) == {"b": tensor_id(model, "b")}


def test_a_tied_name_is_the_tensor_it_is_tied_to() -> None:
    shared = torch.ones(4)
    hashed = Hashed(Memory({"a": shared, "b": shared}))
    hashed.read_bytes("b")
    assert hashed.used() == ("a",)


def test_a_store_knows_its_ids(tmp_path: Path) -> None:
    store = Store.init(tmp_path / ".cofuse")
    kept: Checkpoint = store.checkpoint(store.commit(large(), message="x").tree)
    hashed = Hashed(kept)
    assert hashed.used() == ()
    assert content_id(hashed) == content_id(large())


def test_ids_that_are_known_are_not_found_again() -> None:
    model = large()
    known = {name: tensor_id(large(), name) for name in model.names()}
    hashed = Hashed(model, known=known)
    hashed.read_bytes("x", 0, 10)
    assert hashed.tensor_ids() == known
    assert model.read_so_far == 10
