"""The rounds of ColD Fusion: contributors finetune the base, what they hand back is screened and fused, and again.

Source: ColD Fusion, arXiv 2212.01378, sec. 3, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import DivergedError, StudyError
from ..tasks import Task
from ..tasks.finetune import Finetuning
from . import costs
from .measuring import Measuring
from .records import ModelRecord, Refused, RoundRecord, job_id
from .screen import Examined, Offer, compare, examine
from .work import Contribute, seed_of
from .workshop import Workshop, together


def rounds(shop: Workshop, measuring: Measuring, start: ModelRecord, seed: int) -> None:
    """All rounds of one seed, each a commit on the branch `seed-N`."""
    base = start
    for number in range(1, shop.study.rounds + 1):
        old, base = base, one_round(shop, base, seed, number)
        measuring.measure(base, old=old, number=number)


def one_round(shop: Workshop, base: ModelRecord, seed: int, number: int) -> ModelRecord:
    """One round: train, screen, fuse, commit; unless that is done."""
    record_id = job_id("round", base=base.content, seed=seed, number=number, study=_what_counts(shop))
    study = shop.study
    work = {}
    for person, task in people(shop, seed, number):
        who = f"{task.name}-{person}"
        sample = (seed, person, number if study.fresh else 0)
        place = shop.weights(f"seed-{seed}", f"round-{number}", who)
        work[who] = contribution(shop, base, task, number, sample, study.finetune, place)
    done: RoundRecord | None = shop.journal.get(record_id)
    if done is None:
        before = shop.store.checkpoint(base.tree)
        offers = [Offer(f"offer {path.name}", shop.opened.folder / path) for path in study.offers.get(number, ())]
        # Each is examined while workers train the others, not all of them while the workers wait.
        found = together(
            [
                *(partial(_trained, shop, who, w, before) for who, w in work.items()),
                *(partial(examine, offer, before) for offer in offers),
            ]
        )
        done = _fuse(shop, record_id, base, before, seed, number, found)
    else:
        shop.bar.advance(len(work) * costs.training(study.finetune, study.examples))
    shop.forget(shop.weights(f"seed-{seed}", f"round-{number}"))
    return ModelRecord(
        id=job_id("model", round=record_id),
        name=f"round {number}",
        seed=seed,
        commit=done.commit,
        tree=done.tree,
        content=done.content,
    )


def people(shop: Workshop, seed: int, number: int) -> list[tuple[int, Task]]:
    """The contributors of a round, in their own order, each with its task."""
    study, seen = shop.study, shop.opened.seen
    everybody = np.arange(study.people)
    if study.per_round is not None:
        random = np.random.default_rng([seed, number, study.people])
        everybody = np.sort(random.choice(everybody, study.per_round, replace=False))
    return [(int(i), seen[int(i) % len(seen)]) for i in everybody]


def contribution(
    shop: Workshop,
    base: ModelRecord,
    task: Task,
    number: int,
    sample: tuple[int, ...],
    settings: Finetuning,
    folder: Path,
) -> Contribute:
    """The work of one contributor."""
    seed = seed_of("contribution", task.name, number, *sample)
    return Contribute(shop.store.path, base.tree, task, shop.study.examples, sample, settings, seed, folder)


def contribution_id(shop: Workshop, work: Contribute) -> str:
    """The id of that work."""
    return job_id(
        "contribution",
        base=work.base,
        task=work.task.id,
        examples=work.examples,
        sample=work.sample,
        settings=work.settings.model_dump(mode="json"),
        seed=work.seed,
        threads=shop.study.threads,
    )


def _trained(shop: Workshop, who: str, work: Contribute, base: Checkpoint) -> Examined | Refused:
    """What one contributor hands in; one whose training diverges has nothing, and the round goes on."""
    try:
        folder = shop.trained(work, contribution_id(shop, work), work.task.name)
    except DivergedError as error:
        return Refused(who=who, reason=error.line)
    return examine(Offer(who, folder), base)


def _fuse(
    shop: Workshop,
    record_id: str,
    base: ModelRecord,
    before: Checkpoint,
    seed: int,
    number: int,
    found: Sequence[Examined | Refused],
) -> RoundRecord:
    screened = compare(found, before, shop.opened.peers)
    refused = screened.refused
    for r in refused:
        shop.progress.say(f"seed {seed}, round {number}: refused {r.who}: {r.reason}")
    if not screened.bodies:
        raise StudyError(
            "no contribution could be fused",
            where=f"seed {seed}, round {number}",
            got="; ".join(f"{r.who}: {r.reason}" for r in refused[:3]),
        )
    recipe = shop.study.fuse
    commit = shop.store.commit(
        shop.fused(screened.bodies, before),
        message=f"round {number}: {recipe.method} of {len(screened.bodies)} contributions",
        branch=f"seed-{seed}",
        parents=[base.commit],
        record={
            "recipe": recipe.model_dump(mode="json"),
            "base": base.content,
            "inputs": [a.model_dump(mode="json") for a in screened.accepted],
            "refused": [r.who for r in refused],
            "seed": seed,
            "round": number,
        },
    )
    assert commit.content is not None  # a fuse has weights
    record = RoundRecord(
        id=record_id,
        seed=seed,
        number=number,
        commit=commit.id,
        tree=commit.tree,
        content=commit.content,
        accepted=screened.accepted,
        refused=refused,
    )
    shop.journal.add(record)
    return record


def _what_counts(shop: Workshop) -> dict[str, Any]:
    """The parts of the study that decide what a round gives."""
    study = shop.study
    wanted = {"finetune", "fuse", "examples", "fresh", "contributors", "per_round", "threads"}
    settings = study.model_dump(mode="json", include=wanted)
    if (peers := shop.opened.peers) is not None:
        settings["screen"] = {"fisher": peers.content, "threshold": peers.threshold}
    settings["offers"] = {str(number): [str(p) for p in paths] for number, paths in study.offers.items()}
    settings["tasks"] = [t.id for t in shop.opened.seen]
    return settings
