"""A run is done once, wherever it was stopped and whoever did the work."""

from __future__ import annotations

import fcntl
import json
import random
from pathlib import Path
from typing import Any

import pytest

from cofuse.errors import DocumentError, StudyError, TaskError
from cofuse.evolve import read_records
from cofuse.evolve.pool import Workers
from cofuse.evolve.records import by_kind
from cofuse.evolve.study import read_study
from cofuse.evolve.work import Work
from cofuse.store import Store

from . import tiny


class Idle(tiny.Here):
    """Workers that must not be asked."""

    def start(self) -> None:
        raise AssertionError("started for nothing")

    def do(self, work: Work) -> dict[str, Any]:
        raise AssertionError(f"done again: {work}")


class Struck(Exception):
    """A worker that goes away."""


class Mortal(tiny.Here):
    """Workers that do so many pieces of work, and are gone."""

    def __init__(self, lives: int) -> None:
        super().__init__(1, 1)
        self.lives = lives

    def do(self, work: Work) -> dict[str, Any]:
        if len(self.done) >= self.lives:
            raise Struck
        return super().do(work)


def test_two_processes_give_what_one_gives(whole: Path, tmp_path: Path) -> None:
    tiny.go(whole / "study.yaml", tmp_path / "run", workers=lambda _, threads: Workers(2, threads))
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(whole / "run")


class Threads:
    def __call__(self) -> dict[str, Any]:
        import torch
        from threadpoolctl import threadpool_info

        return {
            "torch": torch.get_num_threads(),
            **{pool["filepath"]: pool["num_threads"] for pool in threadpool_info()},
        }


def test_workers_take_as_many_threads_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with Workers(1, 1) as workers:
        used = workers.do(Threads())  # type: ignore[arg-type]
    assert len(used) > 1
    assert set(used.values()) == {1}


def test_workers_start_before_they_are_asked() -> None:
    with Workers(2, 1) as workers:
        workers.start()
        assert len(workers._pool._processes) == 2
        assert workers.do(Threads())  # type: ignore[arg-type]


def test_everything_asked_for_is_there(whole: Path) -> None:
    records = read_records(whole / "run" / "records.jsonl")
    names = ["pretrained", "round 1", "round 2", "multitask", "fuse once"]
    names += [f"intertrain:{t}" for t in ("even", "least", "prime")]
    models = {r.content: r.name for r in by_kind(records, "model") if not r.id.startswith("base")}
    assert {r.name for r in by_kind(records, "model")} == set(names)
    scores = {(models[s.content], s.suite, s.task, s.protocol) for s in by_kind(records, "score")}
    everywhere = ["pretrained", "round 2", "multitask", "fuse once"]
    expected = {(name, "unseen", "rest", "probe") for name in names}
    expected |= {(name, "unseen", "rest", "fewshot") for name in everywhere}
    expected |= {(name, "seen", t, "oldhead") for name in everywhere for t in ("even", "least", "prime")}
    assert scores == expected
    assert all(s.tested == 60 and len(s.values) == 1 for s in by_kind(records, "score"))
    assert not (whole / "run" / "contributions").exists()


def test_a_second_run_does_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tiny.copy(whole / "run", tmp_path / "run")
    before = (folder / "records.jsonl").read_bytes()
    tiny.go(whole / "study.yaml", folder, workers=Idle)
    assert (folder / "records.jsonl").read_bytes() == before
    assert tiny.outcome(folder) == tiny.outcome(whole / "run")


def test_the_bar_ends_where_it_should(whole: Path, tmp_path: Path) -> None:
    first, again = tiny.Told(), tiny.Told()
    tiny.go(whole / "study.yaml", tmp_path / "run", progress=first)
    tiny.go(whole / "study.yaml", tmp_path / "run", progress=again)
    assert first.done == pytest.approx(first.total)
    assert again.done == pytest.approx(again.total)


@pytest.mark.parametrize("lives", [0, 1, 3, 6, 11])
def test_a_run_without_workers_goes_on_later(whole: Path, tmp_path: Path, lives: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Struck):
        tiny.go(whole / "study.yaml", folder, workers=lambda *_: Mortal(lives))
    done = {r.id for r in read_records(folder / "records.jsonl")}
    assert done <= tiny.outcome(whole / "run")[2]
    tiny.go(whole / "study.yaml", folder)
    assert tiny.outcome(folder) == tiny.outcome(whole / "run")


def test_records_that_were_never_written_are_made_again(whole: Path, tmp_path: Path) -> None:
    # A kill may come between a commit and its record, and cut the last record short.
    data = (whole / "run" / "records.jsonl").read_bytes()
    for number, cut in enumerate(random.Random(7).sample(range(data.index(b"\n") + 2, len(data)), 3)):
        folder = tiny.copy(whole / "run", tmp_path / str(number))
        (folder / "records.jsonl").write_bytes(data[:cut])
        tiny.go(whole / "study.yaml", folder)
        assert tiny.outcome(folder) == tiny.outcome(whole / "run")
        assert (folder / "records.jsonl").read_bytes().startswith(data[: data.rindex(b"\n", 0, cut) + 1])


def test_a_damaged_line_in_the_middle_is_an_error(whole: Path, tmp_path: Path) -> None:
    folder = tiny.copy(whole / "run", tmp_path / "run")
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][: len(lines[2]) // 2] + b"\n"
    (folder / "records.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(StudyError, match="a damaged record") as refused:
        tiny.go(whole / "study.yaml", folder)
    assert str(refused.value.where).endswith("records.jsonl:3")
    assert (folder / "records.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rounds": 3}, "rounds"),
        ({"finetune": {**tiny.STUDY["finetune"], "steps": 4}}, "finetune"),
        ({"seen": tiny.STUDY["seen"][:2]}, "seen, task_ids"),
        ({"threads": 2}, "threads"),
    ],
)
def test_the_folder_of_another_study_is_refused(whole: Path, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    folder = tiny.copy(whole / "run", tmp_path / "run")
    with pytest.raises(StudyError, match="belongs to another study") as refused:
        tiny.go(tiny.write(tmp_path / "study.yaml", **changes), folder, workers=Idle)
    assert refused.value.got == f"a difference in {key}"
    assert tiny.outcome(folder) == tiny.outcome(whole / "run")


def test_two_runs_in_one_folder_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="another run has the folder"):
            tiny.go(whole / "study.yaml", folder, workers=Idle)
    assert not (folder / "records.jsonl").exists()


def test_a_folder_that_cannot_be(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StudyError, match="cannot write"):
            tiny.go(whole / "study.yaml", place, workers=Idle)


def test_every_round_is_a_commit(whole: Path) -> None:
    store = Store.open(whole / "run")
    second, first, start = store.log("seed-0")
    assert [c.message for c in (first, second)] == [f"round {n}: linear of 3 contributions" for n in (1, 2)]
    assert first.parents == (start.id,)
    assert second.parents == (first.id,)
    assert store.branches()["base"] == start.id
    people = ["even-0", "least-1", "prime-2"]
    for number, commit, before in ((1, first, start), (2, second, first)):
        assert commit.record["base"] == before.content
        assert [part["who"] for part in commit.record["inputs"]] == people
        assert (commit.record["seed"], commit.record["round"], commit.record["refused"]) == (0, number, [])
        assert commit.record["recipe"]["method"] == "linear"
    rounds = by_kind(read_records(whole / "run" / "records.jsonl"), "round")
    assert [(r.number, r.commit, r.tree, r.content) for r in rounds] == [
        (n, c.id, c.tree, c.content) for n, c in ((1, first), (2, second))
    ]
    assert store.fsck().ok


def test_a_round_loads_with_transformers(whole: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    store = Store.open(whole / "run")
    model = AutoModel.from_pretrained(store.checkout("seed-0", tmp_path / "model"))
    state, stored = model.state_dict(), store.checkpoint("seed-0")
    assert all(torch.equal(state[name], stored.read(name)) for name in stored.names())
    assert {name for name in state if name not in stored.names()} <= {"pooler.dense.weight", "pooler.dense.bias"}


def test_contributions_are_kept_where_asked(tmp_path: Path) -> None:
    from cofuse.checkpoint import content_id, open_local

    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, rounds=1, keep_contributions=True)
    tiny.go(study, tmp_path / "run")
    (made,) = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")
    there = {p.name: p for p in (tmp_path / "run" / "contributions" / "seed-0" / "round-1").iterdir()}
    assert {a.who: a.content for a in made.accepted} == {who: content_id(open_local(p)) for who, p in there.items()}


def test_contributors_are_drawn_anew_and_take_tasks_in_turn(tmp_path: Path) -> None:
    changes = {**tiny.ROUNDS, "contributors": 5, "per_round": 3, "fresh": True, "seeds": [0, 4]}
    done = tiny.go(tiny.write(tmp_path / "study.yaml", **changes), tmp_path / "run").done
    tasks = ["even", "least", "prime"]
    rounds = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")
    assert len(rounds) == 4
    drawn = {(r.seed, r.number): [int(a.who.rsplit("-", 1)[1]) for a in r.accepted] for r in rounds}
    assert all(len(set(people)) == 3 and people == sorted(people) and max(people) < 5 for people in drawn.values())
    assert len(set(map(tuple, drawn.values()))) > 1
    assert all(a.who == f"{tasks[int(a.who[-1]) % 3]}-{a.who[-1]}" for r in rounds for a in r.accepted)
    samples = [work.sample for work in done if hasattr(work, "sample")]
    assert len(set(samples)) == len(samples) == 12  # a person's examples are new each round
    assert len({a.content for r in rounds for a in r.accepted}) == 12


def test_a_person_keeps_its_examples_unless_told_otherwise(tmp_path: Path) -> None:
    done = tiny.go(tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS), tmp_path / "run").done
    samples = [work.sample for work in done if hasattr(work, "sample")]
    assert sorted(samples) == sorted([(0, person, 0) for person in range(3)] * 2)


def test_unknown_tasks_and_typos_are_explained(tmp_path: Path) -> None:
    (tmp_path / "tasks" / "sst2").mkdir(parents=True)
    (tmp_path / "tasks" / "sst2" / "task.json").write_text(json.dumps({"name": "sst2", "labels": ["a", "b"]}))
    with pytest.raises(TaskError, match="unknown task") as unknown:
        read_study(tiny.write(tmp_path / "a.yaml", seen=["sst"], tasks="tasks"))  # counts from the study's folder
    assert unknown.value.hint == 'did you mean "sst2"?'
    with pytest.raises(TaskError, match="unknown task") as nowhere:
        read_study(tiny.write(tmp_path / "elsewhere" / "a.yaml", seen=["sst2"]))
    assert "--tasks" in str(nowhere.value.hint)
    with pytest.raises(StudyError, match="both seen and unseen") as both:
        read_study(tiny.write(tmp_path / "b.yaml", unseen=tiny.STUDY["seen"][:1]))
    assert both.value.got == "even"
    path = tiny.write(tmp_path / "c.yaml")
    text = path.read_text().replace("learning_rate", "learning_rat", 1)
    path.write_text(text)
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "learning_rat:" in row)
    with pytest.raises(DocumentError, match='unknown key "learning_rat"') as typo:
        read_study(path)
    assert typo.value.where == f"{path}:{line}"
    assert typo.value.hint == 'did you mean "learning_rate"?'


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"per_round": 4}, "at most the number of contributors, 3"),
        ({"offers": {3: ["x"]}}, "a round, 1 to 2"),
        ({"baselines": {"intertrain": ["finetune"]}}, 'protocols that "evaluate_unseen" has'),
        ({"fuse": {"method": "liner"}}, 'did you mean "linear"?'),
        ({"fuse": {"method": "linear", "parameters": {"normalise": True}}}, 'did you mean "normalize"?'),
        ({"rounds": 0}, "greater than 0"),
        ({"finetune": {"steps": 3, "epochs": 1}}, 'either "steps" or "epochs"'),
    ],
)
def test_studies_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DocumentError) as refused:
        read_study(tiny.write(tmp_path / "study.yaml", **changes))
    assert said in str(refused.value)
