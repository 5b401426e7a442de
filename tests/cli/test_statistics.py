"""`cofuse fisher` writes statistics that the masks can read, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tasks.tiny import bert, opinion_task

from cofuse.checkpoint import content_id, open_local
from cofuse.measure.statistics.record import open_statistics

from .test_newcomer import done, refused

SMALL = ("--examples", "24", "--max-length", "16")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fisher")
    bert().save(folder / "base")
    bert(1).save(folder / "tuned")
    opinion_task(folder / "tasks" / "opinions")
    return folder


def test_statistics_that_a_mask_can_read(here: Path) -> None:
    options = ("--task", "tasks/opinions", "--empirical", "--head", "random", *SMALL)
    said = json.loads(done("fisher", "base", *options, "-o", "f", "--json", cwd=here))
    there = open_local(here / "f")
    assert said["path"] == "f"
    assert said["examples"] == 24
    assert said["seconds"] > 0
    assert said["content"] == content_id(there)
    record = open_statistics(there, "fisher", model=open_local(here / "base"))
    assert (record.estimator, record.split, record.head) == ("empirical", "train", "random")
    done("diff", "base", "tuned", "-o", "x.patch", "--sparse", "5%", "--by", "fisher:f", cwd=here)
    # The task by its name, from a folder of tasks; other batches give the same up to rounding, the same batches the same.
    again = ("--task", "opinions", "--tasks", "tasks", *options[2:])
    assert json.loads(done("fisher", "base", *again, "-o", "g", "--json", cwd=here))["content"] == said["content"]
    line = done("fisher", "base", *again[:-4], "--examples", "8", "--max-length", "16", "-o", "h", cwd=here)
    assert "empirical fisher of" in line
    assert "on 8 examples" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "tasks/opinions", "--sampled", "--empirical", "-o", "x"), "do not go together"),
        (("--task", "tasks/opinions", "--head", "none", "-o", "x"), "no such choice"),
        (("--task", "tasks/opinions", "--head", "own", "-o", "x"), "no head that can be read"),
        (("--task", "tasks/opinions", "--split", "dev", "-o", "x"), "no such choice"),
        (("--task", "nothing", "-o", "x"), "unknown task"),
        (("--task", "tasks/opinions", "-o", "tasks"), "holds other things"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(here: Path, options: tuple[str, ...], words: str) -> None:
    assert words in refused("fisher", "base", *options, *SMALL, cwd=here)
    assert not (here / "x").exists()
