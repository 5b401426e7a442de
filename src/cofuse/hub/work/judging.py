"""Work: ask the gate whether a round's commit may take the place of the branch's tip."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session as Transaction

from ...checkpoint import Checkpoint, open_local
from ...errors import CofuseError, SuiteError
from ...fuse import fuse_recipe
from ...store import Store
from ..database import Job
from ..hub import Hub
from ..policy import Gate, How
from ..rounds import course, stages
from ..rounds.inputs import Input, read_input, recipe_of
from ..rounds.making import Recorded
from ..states import Stage
from ..suites import opened
from .fusing import recorded
from .kind import Answer, Kind, Payload, Workplace

if TYPE_CHECKING:
    from ...measure.evaluation.evaluating import Evaluated, Model
    from ...measure.evaluation.suite import OpenSuite

_AT_ONCE = 8  # fuses that are on the disk, and measured, together
_TOLD = ("task", "protocol", "metric", "old", "new", "margin")


def run(place: Workplace, payload: Payload) -> Answer:
    """The gate's verdict; where it is one at which the worst contribution is dropped, which one that is."""
    if not str(payload["suite"]).strip():
        return {"verdict": {"state": "skipped", "step": None, "reasons": ["the repository has no suite"], "tasks": []}}
    try:
        suite = opened(str(payload["suite"]), place.tasks, protocols=("oldhead",))
    except CofuseError as error:
        # Nobody knows whether it is good: a maintainer decides.
        return {"verdict": {"state": "unable", "step": None, "reasons": [_without(place, error.line)], "tasks": []}}
    store = place.store(str(payload["repository"]), str(payload["old"]), str(payload["new"]))
    wanted = Gate.model_validate(payload["gate"])
    said = _gated(place, store, suite, wanted, payload)
    verdict = {
        "state": said["verdict"]["state"],
        "step": said["verdict"]["step"],
        "reasons": said["verdict"]["reasons"],
        "tasks": [{k: one[k] for k in _TOLD} | one["difference"] for one in said["tasks"]],
        "mean": said["mean"],
        "suite": payload["suite_hash"],
    }
    answer: Answer = {"verdict": verdict}
    if verdict["state"] in payload["worst"]:
        answer["worst"] = _worst(place, suite, payload)
    return answer


def _gated(place: Workplace, store: Store, suite: OpenSuite, wanted: Gate, payload: Payload) -> dict[str, Any]:
    from ...measure.evaluation.records import Records
    from ...measure.gate.document import document
    from ...measure.gate.running import gate

    found = gate(
        model_of(store, "old", str(payload["old"])),
        model_of(store, "new", str(payload["new"])),
        suite,
        wanted.policy,
        Records(place.records),
        rapid=wanted.rapid,
        cache=place.folder / "features",
        progress=place.progress,
    )
    return document(found)


def model_of(store: Store, name: str, commit: str) -> Model:
    """A version, as processes that measure open it."""
    from ...measure.evaluation.evaluating import Model

    return Model.of(name, partial(version, store.path, commit), commit)


def version(path: Path, commit: str) -> Checkpoint:
    """A version in a store."""
    return Store.open(path).checkpoint(commit)


def _worst(place: Workplace, suite: OpenSuite, payload: Payload) -> dict[str, Any] | None:
    """The contribution without which the fuse scores best: each is left out once, and the suite's mean is taken."""
    from ...measure.evaluation.evaluating import Model, evaluate
    from ...measure.evaluation.records import Records

    what = recorded(payload["recorded"])
    inputs = [read_input(one) for one in what.record["inputs"]]
    store = place.store(str(payload["repository"]), *what.needs)
    old = model_of(store, "old", what.base)
    policy = How.model_validate(payload["how"])
    if len(inputs) <= max(1, policy.least):
        return None
    scores: dict[int, float] = {}
    bar = place.progress.bar("leaving one out", len(inputs))
    whole = model_of(store, "new", str(payload["new"]))
    with_all = math.nan
    for start in range(0, len(inputs), _AT_ONCE):
        folders = {
            str(one.contribution): place.folder / f"without-{one.contribution}" for one in inputs[start:][:_AT_ONCE]
        }
        for one in inputs[start:][:_AT_ONCE]:
            _fused_without(store, policy, inputs, one, what, folders[str(one.contribution)])
        models = [Model.of(name, partial(open_local, folder)) for name, folder in folders.items()]
        # In the job's own folder: nobody asks for these again.
        found = evaluate([whole, *models], suite, Records(place.folder / "records"), old=old)
        with_all = _mean(found, "new")
        scores |= {int(name): _mean(found, name) for name in folders}
        for folder in folders.values():
            shutil.rmtree(folder)
        bar.advance(len(folders))
    best = min(scores, key=lambda number: (-scores[number], number))
    why = f"the fuse scores {scores[best]:.2f} without it and {with_all:.2f} with it (mean over the suite, old heads)"
    return {"contribution": best, "why": why, "scores": {str(k): round(v, 4) for k, v in scores.items()}}


def _fused_without(store: Store, how: How, inputs: Sequence[Input], out: Input, what: Recorded, folder: Path) -> None:
    recipe = recipe_of(how, [one for one in inputs if one is not out], what.base)
    fused = fuse_recipe(recipe, {name: store.checkpoint(name) for name in recipe.addresses})
    fused.save(folder)
    for name, data in store.checkpoint(what.base).files.items():
        (folder / name).write_bytes(data)


def _mean(found: Evaluated, model: str) -> float:
    if found.failures:
        raise SuiteError("a score is missing", got=found.failures[0].error.line)
    return fmean(record.value for record in found.records[model])


def _without(place: Workplace, text: str) -> str:
    """An error's words, without the folders of whoever met it."""
    return text if place.tasks is None else text.replace(str(place.tasks), "the folder of tasks")


def settle(hub: Hub, transaction: Transaction, job: Job, answer: Answer) -> None:
    """Release, drop, hold or ask."""
    round_ = stages.at(transaction, job, Stage.JUDGING)
    if round_ is not None:
        course.after_judge(hub, transaction, round_, answer)


def fail(hub: Hub, transaction: Transaction, job: Job) -> None:
    """The round has failed."""
    course.fail(transaction, job, Stage.JUDGING)


KIND = Kind(run, settle, fail)
