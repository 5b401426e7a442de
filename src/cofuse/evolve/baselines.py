"""What the evolving base is compared with: one-task intertraining, all of those fused once, multitask finetuning.

Sources: ColD Fusion, arXiv 2212.01378, sec. 4.3 (baselines); fusing once: arXiv 2204.03044.
"""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..tasks.finetune import Finetuning
from . import costs
from .measuring import Measuring
from .records import ModelRecord, job_id
from .rounds import contribution, contribution_id
from .screen import open_contribution
from .work import Multitask, seed_of
from .workshop import Workshop, together


def alone(shop: Workshop, measuring: Measuring, start: ModelRecord, seed: int) -> None:
    """Every seen task's model trained alone, and all of them fused once."""
    models: dict[int, ModelRecord] = {}

    def intertrain(i: int) -> None:
        models[i] = model = _intertrained(shop, start, seed, i)
        if shop.study.baselines.intertrain:
            measuring.measure(model, old=start, only=shop.study.baselines.intertrain)

    together([lambda i=i: intertrain(i) for i in range(len(shop.opened.seen))])  # type: ignore[misc]
    if not shop.study.baselines.fuse_once:
        return
    parts = [models[i] for i in sorted(models)]
    record = {
        "recipe": shop.study.fuse.model_dump(mode="json"),
        "inputs": [m.content for m in parts],
        "seed": seed,
    }
    fused = shop.kept(
        job_id("fuse once", **record),
        lambda: shop.fused([shop.store.checkpoint(m.tree) for m in parts], shop.store.checkpoint(start.tree)),
        name="fuse once",
        seed=seed,
        branch=f"fuse-once-seed-{seed}",
        parents=[start.commit],
        message=f"{len(parts)} models fused once",
        record=record,
    )
    measuring.measure(fused, old=start)


def _intertrained(shop: Workshop, start: ModelRecord, seed: int, i: int) -> ModelRecord:
    """One seen task's model."""
    task = shop.opened.seen[i]
    place = shop.weights(f"seed-{seed}", "alone", task.name)
    work = contribution(shop, start, task, 0, (seed, i, 0), shop.study.alone, place)
    record_id = contribution_id(shop, work)

    def made() -> Checkpoint:
        return open_contribution(shop.trained(work, record_id, task.name), shop.store.checkpoint(start.tree))[0]

    model = shop.kept(
        job_id("alone", contribution=record_id),
        made,
        name=f"intertrain:{task.name}",
        seed=seed,
        branch=f"intertrain-{task.name}-seed-{seed}",
        parents=[start.commit],
        message=f"intertrained on {task.name}",
        record={"task": task.name, "seed": seed},
        cost=costs.training(work.settings, shop.study.examples),
    )
    shop.forget(place)
    return model


def multitask(shop: Workshop, measuring: Measuring, start: ModelRecord, seed: int) -> None:
    """All seen tasks in one place: one body, one head a task."""
    settings: Finetuning | None = shop.study.together
    assert settings is not None  # asked for by the caller
    tasks = shop.opened.seen
    place = shop.weights(f"seed-{seed}", "multitask")
    work = Multitask(
        shop.store.path,
        start.tree,
        tasks,
        shop.study.examples,
        tuple((seed, i, 0) for i in range(len(tasks))),
        settings,
        seed_of("multitask", seed),
        place,
    )
    record_id = job_id(
        "multitask",
        base=start.content,
        tasks=[t.id for t in tasks],
        examples=work.examples,
        settings=settings.model_dump(mode="json"),
        seed=seed,
        threads=shop.study.threads,
    )
    model = shop.kept(
        job_id("multitask model", contribution=record_id),
        lambda: open_contribution(shop.trained(work, record_id, "multitask"), shop.store.checkpoint(start.tree))[0],
        name="multitask",
        seed=seed,
        branch=f"multitask-seed-{seed}",
        parents=[start.commit],
        message="finetuned on all tasks at once",
        record={"tasks": [t.name for t in tasks], "seed": seed},
        cost=costs.training(work.settings, shop.study.examples),
    )
    shop.forget(place)
    measuring.measure(model, old=start)
