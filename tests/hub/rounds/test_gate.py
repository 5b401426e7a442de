"""What the gate does to a round: it holds, asks, drops the worst, or has nothing to say."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from sqlalchemy import select

from cofuse.checkpoint import Memory
from cofuse.hub.database import Contribution, Evaluation, Job, Repository
from cofuse.hub.quotas import recount
from cofuse.hub.rounds.deciding import decide
from cofuse.hub.rounds.opening import due
from cofuse.hub.states import Stage
from cofuse.hub.suites import set_suite
from cofuse.store.refs import HEADS, ROUNDS

from .village import UNMEASURABLE, Village

SUITE = {
    "name": "digits",
    "tasks": ["even", "small"],
    "protocols": {
        name: {"examples": 200, "test": 400, "probing": {"precision": "fp32", "standardize": True, "c": 0.1}}
        for name in ("oldhead", "probe")
    },
}
GROUPS = {"even": [[1, 3, 5], [0, 2, 4]], "small": [[0, 1, 2], [3, 4, 5]]}
POLICY = "round: {contributions: 3}\nfuse: {method: linear}\ngate: {policy: {max_drop: 8, max_mean_drop: 8}, %s}"


@pytest.fixture
def village(tmp_path: Path) -> Iterator[Village]:
    found = Village(tmp_path / "data")
    yield found
    found.close()


def test_what_cannot_be_judged_waits_for_a_maintainer(village: Village) -> None:
    village.measurable(False)
    numbers = [village.offer("bob", 1.0, village.base), village.offer("eve", 3.0, village.base)]
    village.work()
    (held,) = village.rounds()
    assert held.state == Stage.HELD
    assert "no folder of tasks" in held.reason
    assert village.releases() == []
    assert village.tip() == village.base
    with village.hub.database.writing() as change:
        decide(village.hub, change, village.seen, held.id, "publish")
    village.work()
    (release,) = village.releases()
    assert village.value(village.tip()) == 2.0
    assert village.store.load_commit(release.commit).record["release"]["forced_by"] == "ann"
    assert village.states() == dict.fromkeys(numbers, "fused")
    village.check()


def test_a_policy_that_holds_gives_everybody_back_and_waits(village: Village) -> None:
    village.go_on("round: {contributions: 2}\nfuse: {method: linear}\ngate: {on_block: hold}")
    with village.hub.database.writing() as change:
        set_suite(change, village.seen, UNMEASURABLE)
    first = [village.offer("bob", 1.0, village.base), village.offer("eve", 3.0, village.base)]
    village.work()
    (held,) = village.rounds()
    with village.hub.database.writing() as change:
        decide(village.hub, change, village.seen, held.id, "abandon")
    assert village.states() == dict.fromkeys(first, "open")
    assert village.paused()
    village.work()
    assert len(village.rounds()) == 1  # or the same round would begin at once
    village.go_on()
    village.measurable(True)
    village.work()
    assert village.value(village.tip()) == 2.0
    village.check()


def test_a_round_that_is_held_outlives_a_collection(village: Village) -> None:
    village.measurable(False)
    numbers = [village.offer("bob", 1.0, village.base), village.offer("eve", 3.0, village.base)]
    village.work()
    (held,) = village.rounds()
    assert held.commit is not None
    village.store.gc(grace_days=0)
    assert village.value(held.commit) == 2.0
    with village.hub.database.writing() as change:
        decide(village.hub, change, village.seen, held.id, "publish")
    village.work()
    assert village.states() == dict.fromkeys(numbers, "fused")
    assert village.store.refs.names(ROUNDS) == []
    village.check()


def test_what_a_release_takes_is_counted(village: Village) -> None:
    """What rounds make is the repository's, as what is pushed is: counted anew, it is the same."""

    def counted() -> int:
        with village.hub.database.reading() as look:
            return look.scalars(select(Repository.bytes)).one()

    village.offer("bob", 1.0, village.base)
    village.offer("eve", 3.0, village.base)
    recount(village.hub.database, village.hub.repositories)
    before = counted()
    village.work()
    after = counted()
    assert len(village.releases()) == 1
    assert after > before
    recount(village.hub.database, village.hub.repositories)
    assert counted() == after


def test_a_round_that_fails_says_why_and_can_be_tried_again(village: Village) -> None:
    """A contribution's weights are lost; they come back."""
    numbers = [village.offer("bob", 1.0, village.base), village.offer("eve", 3.0, village.base)]
    with village.hub.database.reading() as look:
        commit = look.scalar(select(Contribution.commit).where(Contribution.number == numbers[0]))
    assert commit is not None
    lost = village.store.objects.path(village.store.checkpoint(commit).tensor_ids()["w"])
    kept = lost.rename(lost.with_suffix(".away"))
    village.work()
    (failed,) = village.rounds()
    assert failed.state == Stage.FAILED
    assert "missing" in failed.reason
    assert str(village.settings.data) not in failed.reason
    kept.rename(lost)
    with village.hub.database.writing() as change:
        decide(village.hub, change, village.seen, failed.id, "retry")
    village.work()
    assert village.value(village.tip()) == 2.0
    village.check()


def test_a_push_in_between_is_kept(village: Village) -> None:
    """Somebody pushes while a round is being judged: the round is made again, on top of that."""
    village.measurable(False)
    village.offer("bob", 1.0, village.base)
    village.offer("eve", 3.0, village.base)
    village.work()
    pushed = village.commit(10.0, village.base)
    village.store.update_ref(HEADS + "main", pushed, expect=village.base)
    village.measurable(True)
    with village.hub.database.writing() as change:
        decide(village.hub, change, village.seen, village.rounds()[0].id, "publish")
    village.work()
    assert [one.state for one in village.rounds()] == [Stage.ABANDONED, Stage.PUBLISHED]
    assert village.value(village.tip()) == 12.0
    assert village.store.load_commit(village.tip()).parents == (pushed,)


def body(folder: Path) -> None:
    """A small vision transformer with weights as they are drawn, and its tasks' folder beside it."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "body")
    for name, groups in GROUPS.items():
        (folder / "tasks" / name).mkdir(parents=True)
        task = {"name": name, "kind": "image_classification", "data": {"source": "digits", "groups": groups}}
        (folder / "tasks" / name / "task.yaml").write_text(yaml.safe_dump(task))


@pytest.mark.slow  # each measurement starts processes that load torch
def test_the_worst_is_dropped_and_the_others_are_fused_again(tmp_path: Path) -> None:
    body(tmp_path)
    village = Village(
        tmp_path / "data", policy=POLICY % "on_block: drop_worst, on_undecided: publish", tasks=tmp_path / "tasks"
    )
    try:
        base = village.store.commit(tmp_path / "body", message="base", branch="drafts", parents=[]).id
        village.store.update_ref(HEADS + "main", base)
        with village.hub.database.writing() as change:
            set_suite(change, village.seen, yaml.safe_dump(SUITE))
        before = village.store.checkpoint(base)

        def offer(who: str, seed: int, scale: float) -> int:
            random = torch.Generator().manual_seed(seed)
            weights = {}
            for name in before.names():
                own = before.read(name)
                weights[name] = own + scale * own.std(unbiased=False) * torch.randn(own.shape, generator=random)
            made = village.store.commit(
                Memory(weights, files=before.files), message=who, branch="drafts", parents=[base]
            )
            return village.put(who, made.id, base)

        good = offer("bob", 1, 0.01), offer("kim", 2, 0.01)
        bad = offer("eve", 3, 60.0)
        village.work()
        (round_,) = village.rounds()
        assert round_.state == Stage.PUBLISHED, round_.reason
        assert village.states() == {**dict.fromkeys(good, "fused"), bad: "refused"}
        with village.hub.database.reading() as look:
            reason = look.scalar(select(Contribution.reason).where(Contribution.number == bad))
            jobs = look.scalars(select(Job.kind)).all()
            scores = look.scalars(select(Evaluation)).all()
        assert reason is not None
        assert "without it" in reason
        assert jobs.count("fuse") == jobs.count("judge") == 2
        assert {(one.task, one.protocol) for one in scores} >= {("even", "probe"), ("small", "oldhead")}
        card = village.store.checkpoint(village.tip()).files["README.md"].decode()
        assert "| even | accuracy |" in card
        assert f"- #{bad} by eve:" in card
    finally:
        village.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_delays_a_round_and_harms_nothing(small_disk: Path) -> None:
    village = Village(small_disk / "data")
    try:
        numbers = [village.offer("bob", 1.0, village.base), village.offer("eve", 3.0, village.base)]
        due(village.hub)  # the round is begun; then there is no room for what it makes
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with contextlib.suppress(Exception):
            village.work()
        assert village.releases() == []
        assert village.tip() == village.base
        ballast.unlink()
        with village.hub.database.writing() as change:
            for job in change.scalars(select(Job)):
                job.ready, job.leased = 0.0, 0.0  # now, not in a while
        village.work()
        assert village.value(village.tip()) == 2.0
        assert village.states() == dict.fromkeys(numbers, "fused")
        village.check()
    finally:
        village.close()
