"""What waits for the same round is compared, whoever came first."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Memory
from cofuse.hub.checks.geometry import measure
from cofuse.hub.database import Branch

from .bench import Bench, tuned


def flipped(base: dict[str, torch.Tensor], seed: int, times: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: base[name] - times * (t - base[name]) for name, t in tuned(base, seed).items()}


def policy(bench: Bench, text: str) -> None:
    with bench.hub.database.writing() as change:
        change.merge(Branch(repository_id=bench.row.id, name="main", policy=text, updated=time.time(), paused=None))


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_flipped_sign_is_found_wherever_it_stands_in_the_row(bench: Bench, place: int) -> None:
    policy(bench, "{round: {contributions: 50}, screen: {direction: warn}}")
    numbers = []
    for seed in range(5):
        made = flipped(bench.base, seed, 3) if seed == place else tuned(bench.base, seed)
        numbers.append(bench.offered(f"c{seed}", made))
        bench.work()
    states = [bench.look(number)["checks"]["direction"] for number in numbers]
    assert [one["state"] for one in states] == ["warn" if seed == place else "pass" for seed in range(5)]
    assert states[place]["detail"]["cosine"] < -0.5


def test_a_policy_may_refuse_it_and_a_maintainer_take_it_all_the_same(bench: Bench) -> None:
    policy(bench, "{round: {contributions: 50}, screen: {direction: refuse}}")
    bad = bench.offered("eve", flipped(bench.base, 9))
    bench.work()
    assert bench.look(bad)["state"] == "open"  # nobody to compare it with
    for seed in range(3):
        bench.offered(f"c{seed}", tuned(bench.base, seed))
        bench.work()
    seen = bench.look(bad)
    assert seen["state"] == "refused"
    assert seen["reason"].startswith("direction: cosine -")
    assert bench.client("owner").post(f"{bench.url}/{bad}/accept").json()["state"] == "open"
    bench.offered("c9", tuned(bench.base, 10))
    bench.work()
    assert bench.look(bad)["state"] == "open"


def test_what_is_far_larger_than_the_others_is_found(bench: Bench) -> None:
    numbers = [bench.offered(f"c{seed}", tuned(bench.base, seed, 0.02 if seed != 1 else 2.0)) for seed in range(5)]
    bench.work()
    states = [bench.look(number)["checks"]["size"] for number in numbers]
    assert [one["state"] for one in states] == ["pass", "refuse", "pass", "pass", "pass"]
    assert states[1]["detail"]["times"] == pytest.approx(100, rel=0.2)


def test_nobody_vouches_for_themselves_or_outnumbers_others(bench: Bench) -> None:
    honest = [bench.offered(f"c{seed}", tuned(bench.base, seed)) for seed in range(3)]
    many = [bench.offered("eve", flipped(bench.base, 20 + seed)) for seed in range(6)]
    bench.work()
    assert [bench.look(n)["checks"]["direction"]["state"] for n in honest] == ["pass"] * 3
    assert [bench.look(n)["checks"]["direction"]["state"] for n in many] == ["warn"] * 6


def test_geometry_is_what_the_slow_way_says() -> None:
    draw = np.random.default_rng(0)
    bases = [
        {"a": torch.tensor(draw.normal(size=(300, 300))), "b": torch.tensor(draw.normal(size=7)).float()}
        for _ in range(2)
    ]
    afters = [
        {n: t + torch.tensor(draw.normal(size=tuple(t.shape))).to(t.dtype) for n, t in bases[i % 2].items()}
        for i in range(3)
    ]
    checkpoints = [Memory(one) for one in bases]
    found = measure([(Memory(one), checkpoints[i % 2]) for i, one in enumerate(afters)])
    flat = [
        torch.cat([(one[n] - bases[i % 2][n]).double().reshape(-1) for n in found.names])
        for i, one in enumerate(afters)
    ]
    slow = torch.stack(flat) @ torch.stack(flat).T
    assert np.allclose(found.gram, slow.numpy())
    assert np.allclose((found.moved**2).sum(1), np.diag(slow.numpy()))
    unit = [one / one.norm() for one in flat]
    mean = 0.5 * unit[1] + unit[2]
    assert found.cosine(0, {1: 0.5, 2: 1.0}) == pytest.approx(float(unit[0] @ mean / mean.norm()))


def test_who_turns_somebodys_change_round_cannot_have_them_refused(bench: Bench) -> None:
    policy(bench, "{round: {contributions: 50}, screen: {direction: refuse}}")
    honest = [bench.offered(who, tuned(bench.base, seed)) for seed, who in enumerate(["bob", "eve"])]
    bench.work()
    turned = bench.offered("oscar", flipped(bench.base, 0))  # Bob's
    bench.work()
    assert bench.look(turned)["state"] == "refused"
    assert [bench.look(number)["state"] for number in honest] == ["open", "open"]


def test_nor_by_taking_it_back_while_it_is_compared(bench: Bench) -> None:
    policy(bench, "{round: {contributions: 50}, screen: {direction: refuse}}")
    honest = [bench.offered(who, tuned(bench.base, seed)) for seed, who in enumerate(["bob", "eve"])]
    bench.work()
    before = [bench.look(number)["checks"] for number in honest]
    turned = bench.offered("oscar", flipped(bench.base, 0))
    bench.work(("screen",))
    bench.work(("compare",), meanwhile=lambda: bench.client("oscar").post(f"{bench.url}/{turned}/withdraw"))
    assert bench.look(turned)["state"] == "withdrawn"
    assert [bench.look(number)["state"] for number in honest] == ["open", "open"]
    assert [bench.look(number)["checks"] for number in honest] == before
