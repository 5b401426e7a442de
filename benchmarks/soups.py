"""Soups of a hyperparameter sweep: best single, uniform, greedy and learned, in distribution and under shift.

    python benchmarks/soups.py --tasks FOLDER --out FOLDER [--seeds 2] [--table]

MiniLM is finetuned on each of three sentiment tasks with eight settings; each model keeps its head, which is mixed with its
body. The validation split chooses, the test split is reported, and so are the test splits of the two other tasks, which have
the same labels: the shift. A seed draws the examples, which all settings share, and the heads' start, which they share too.
Every model is a folder of OUT and every choice a line of OUT/records.jsonl: a run that was stopped goes on where it was.
`--table` only prints what is there: the mean over tasks and seeds of each way minus the best single, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minilm import Records, base, shown

from cofuse.checkpoint import Checkpoint, Memory, open_local
from cofuse.fuse import Recipe, fuse_recipe
from cofuse.measure.choosing import Learning, Pool, choose
from cofuse.measure.loss import loss_and_score
from cofuse.measure.subject import Subject, tuned_subject
from cofuse.tasks import Examples, Task, draw, open_task
from cofuse.tasks.finetune import Finetuning, TaskModel, Tuned, finetune
from cofuse.tasks.model import Head, body_checkpoint, body_width, load_body

TASKS = ("sst2", "rotten_tomatoes", "imdb")
TRAIN, VALIDATION, TEST = 400, 300, 600  # examples
LENGTH = 48
# What the sweep goes over: eight settings, one start.
SWEEP = tuple(
    Finetuning(
        learning_rate=rate, head_learning_rate=2e-3, epochs=epochs, batch_size=16, max_length=LENGTH, weight_decay=decay
    )
    for rate in (5e-5, 1.5e-4)
    for epochs in (2, 4)
    for decay in (0.01, 0.1)
)
WAYS: dict[str, tuple[str, Learning]] = {
    "best": ("best", Learning()),
    "uniform": ("uniform", Learning()),
    "greedy": ("greedy", Learning()),
    "learned": ("learned", Learning(max_length=LENGTH, examples=VALIDATION)),
    "learned, layers": ("learned", Learning(per="layer", max_length=LENGTH, examples=VALIDATION)),
}
# A head's tensors beside the body's, so that they are mixed alike.
HEAD = {"task_head.weight": "weight", "task_head.bias": "bias"}


def trained(base: Checkpoint, task: Task, settings: Finetuning, seed: int, folder: Path) -> None:
    """Finetune with one setting of the sweep; the body and its head as one checkpoint."""
    if (folder / "model.safetensors").exists():
        return
    tuned = finetune(base, task, draw(task.examples("train"), TRAIN, [seed]), settings, seed=seed)
    body = body_checkpoint(tuned.model.body, base)
    linear = tuned.model.head.linear
    head = {name: getattr(linear, own).detach().clone() for name, own in HEAD.items()}
    Memory({**{n: body.read(n) for n in body.names()}, **head}, files=body.files).save(folder)


def subject_of(model: Checkpoint, task: Task) -> Subject:
    """A mixed body with the mixed head that is part of it, both of them measured parameters."""
    body = load_body(model)
    head = Head(body_width(body), task.outputs, 0.0, 0)
    with torch.no_grad():
        for name, own in HEAD.items():
            getattr(head.linear, own).copy_(model.read(name))
    settings = Finetuning(steps=1, max_length=LENGTH)
    made = tuned_subject(Tuned(TaskModel(body, head, task.what, "mean"), task, settings, model, 0, None))
    names = {**made.names, **{f"head.linear.{own}": name for name, own in HEAD.items()}}
    return Subject(made.module, names, made.outputs, made.forward, made.prepare, model, made.record)


def scores(recipes: Sequence[Recipe], models: dict[str, Checkpoint], task: Task, examples: Examples) -> list[float]:
    """Accuracies of recipes, mixed in memory."""
    return [loss_and_score(subject_of(fuse_recipe(r, models), task), task, examples)[1] for r in recipes]


def study(folder: Path, out: Path, seeds: int, names: Sequence[str], sweep: Sequence[Finetuning]) -> None:
    """Everything, seed by seed."""
    records, start = Records(out), base()
    tasks = {name: open_task(name, folders=(folder,)) for name in TASKS}
    for seed in range(seeds):
        for name in names:
            task = tasks[name]
            models: dict[str, Checkpoint] = {}
            for i, settings in enumerate(sweep):
                place = out / "models" / f"{name}-{seed}-{i}"
                trained(start, task, settings, seed, place)
                models[f"m{i}"] = open_local(place)
            held_out = task.examples("validation").first(VALIDATION)
            judge = partial(scores, models=models, task=task, examples=held_out)
            for label, (way, learning) in WAYS.items():
                records.get(
                    (seed, name, label),
                    partial(
                        _chosen,
                        way,
                        Pool(tuple(models), judge, None, models, None, (task,), learning, subject_of),
                        tasks,
                    ),
                )


def _chosen(way: str, pool: Pool, tasks: dict[str, Task]) -> dict[str, Any]:
    found = choose(way, pool)
    models = dict(pool.checkpoints)
    tested = {
        name: scores([found.recipe], models, task, task.examples("test").first(TEST))[0] for name, task in tasks.items()
    }
    return {"held_out": found.score, "test": tested, "reasons": dict(found.reasons)}


def table(out: Path) -> None:
    """Each way, and it minus the best single: in distribution, and the mean of the two siblings."""
    records = Records(out)
    names = [t for t in TASKS if all((0, t, w) in records.known for w in WAYS)]  # tasks come before seeds
    whole = [s for s in range(9) if all((s, t, w) in records.known for t in names for w in WAYS)]
    print(f"seeds {whole}, {records.minutes:.0f} minutes of processor time without the finetuning")
    for where in ("in distribution", "under shift"):
        print(f"\n| {where} | {' | '.join(names)} | mean | minus the best single |\n|---|{'---|' * (len(names) + 2)}")
        own = {w: np.array([[_score(records.known, (s, t), w, where) for s in whole] for t in names]) for w in WAYS}
        for way, values in own.items():
            against = "" if way == "best" else shown(values - own["best"])
            print(f"| {way} | {' | '.join(f'{v:.1f}' for v in values.mean(1))} | {values.mean():.1f} | {against} |")


def _score(known: dict[Any, Any], run: tuple[int, str], label: str, where: str) -> float:
    tested = known[(*run, label)]["test"]
    if where == "in distribution":
        return float(tested[run[1]])
    return float(np.mean([value for name, value in tested.items() if name != run[1]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=TASKS, action="append", help="Only this task's sweep; may be repeated.")
    parser.add_argument("--models", type=int, default=len(SWEEP), help="Only so many settings of the sweep.")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        study(given.tasks, given.out, given.seeds, given.only or TASKS, SWEEP[: given.models])
    table(given.out)


if __name__ == "__main__":
    main()
