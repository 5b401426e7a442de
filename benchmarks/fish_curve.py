"""What a share of the parameters is worth: MiniLM finetuned on real tasks under masks of all sizes.

    python benchmarks/fish_curve.py --tasks FOLDER --out FOLDER [--figure docs/results/fish_curve.png]

FISH, random and magnitude masks, BitFit, LoRA and dense finetuning, by 1,024 examples of each of four tasks and three seeds
(which draw examples, head and order). Learning rates are chosen beforehand on the validation split of a fifth task, one seed,
by RULE. Every finished training is a line of OUT/records.jsonl, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minilm import Records, base

from cofuse.checkpoint import Checkpoint, open_local
from cofuse.measure.intervals import Interval, interval

TASKS = ("sst2", "trec_coarse", "esnli", "tweeteval_offensive")
EXTRA = "isear"  # learning rates are chosen on it, and nothing else
SEEDS = (0, 1, 2)
EXAMPLES, TEST, STEPS = 1024, 500, 100
FIXED: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 16,
    "max_length": 40,
    "head_learning_rate": 2e-3,
    "dropout": 0.1,
    "weight_decay": 0.01,
}


class Kind(NamedTuple):
    """What trains: a mask's word or an adapter; whose learning rate it takes; where the search for its own begins."""

    part: str
    rate: str
    first: float = 0.0


# RULE: the first rate of the ladder and its neighbours, then on until the best score on EXTRA's validation split has both its
# neighbours tried. A share without a search of its own takes the next larger one's rate that has some.
LADDER = (1.5e-5, 5e-5, 1.5e-4, 5e-4, 1.5e-3, 5e-3, 1.5e-2, 5e-2)
KINDS = (
    Kind("dense", "dense", 1.5e-4),
    Kind("fish:10%", "fish:10%", 5e-4),
    Kind("fish:2%", "fish:2%", 5e-4),
    Kind("fish:0.5%", "fish:2%"),
    Kind("fish:0.08%", "fish:0.08%", 1.5e-3),
    Kind("fish:0.02%", "fish:0.08%"),
    Kind("random:10%", "random:10%", 5e-4),
    Kind("random:2%", "random:2%", 1.5e-3),
    Kind("random:0.08%", "random:0.08%", 5e-3),
    Kind("magnitude:2%", "magnitude:2%", 1.5e-3),
    Kind("magnitude:0.08%", "magnitude:0.08%", 5e-3),
    Kind("bias", "bias", 1.5e-3),
    Kind("lora:8", "lora:8", 1.5e-3),
    # Added when the rest was known, to see why: random masks at FISH's rates.
    Kind("random:2%@fish", "fish:2%"),
    Kind("random:0.08%@fish", "fish:0.08%"),
    Kind("head", "head"),  # the floor: two values of the body, at a rate of 1e-6
)


def measure(
    base: Checkpoint, out: Path, task_folder: Path, part: str, rate: float, seed: int, split: str
) -> dict[str, Any]:
    """One training: its score, the values that were trained, the bytes of its patch (first seed)."""
    from cofuse.checkpoint.body import body
    from cofuse.measure.finetuning.masks import mask_of
    from cofuse.measure.finetuning.tuning import measured_fisher
    from cofuse.patch import Way, make
    from cofuse.patch.adapters import FromAdapter
    from cofuse.patch.choice import choice
    from cofuse.patch.masks import places
    from cofuse.tasks import draw, open_task
    from cofuse.tasks.finetune import Finetuning, finetune
    from cofuse.tasks.masked import masked_checkpoint
    from cofuse.tasks.model import body_checkpoint
    from cofuse.tasks.peft import Lora

    task = open_task(str(task_folder))
    train = draw(task.examples("train"), EXAMPLES, [7, seed])
    settings = Finetuning(learning_rate=rate, **FIXED)

    def fisher() -> Checkpoint:
        folder = out / "fisher" / f"{task.name}-{seed}"
        if not folder.exists():
            measured_fisher(base, task, train, settings, seed=seed).save(folder)
        return open_local(folder)

    word = "random:0.00001%" if part == "head" else part.partition("@")[0]
    mask, adapt = None, Lora(rank=8) if part == "lora:8" else None
    if part not in ("dense", "lora:8"):
        mask = mask_of(choice(word), base, fisher=fisher, seed=seed)
    tuned = finetune(base, task, train, settings, seed=seed, mask=mask, adapt=adapt)
    tested = task.examples("test" if split == "test" else "validation").first(TEST)
    found: dict[str, Any] = {
        "score": task.score(tuned.predict(tested), tested.labels),
        "values": sum(p.numel() for p in tuned.model.body.parameters() if p.requires_grad)
        if mask is None
        else sum(len(places(mask, name)) for name in mask.specs),
    }
    if seed == SEEDS[0] and split == "test":
        from cofuse.checkpoint.adapter import Adapter

        way, after = Way(), None
        if tuned.adapted is not None:
            folder = out / "adapter"
            folder.mkdir(exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
            tuned.adapted.save(folder)
            after = Adapter(folder, base)
            way = FromAdapter(after)
        elif tuned.chosen is not None:
            after = masked_checkpoint(tuned.model.body, base, tuned.chosen)
        else:
            after = body(body_checkpoint(tuned.model.body, base), like=base)
        path = out / "x.patch"
        make(base, after, path, way, threads=1)
        found["bytes"] = path.stat().st_size
        path.unlink()
    return found


def rates(records: Records, base: Checkpoint, tasks: Path, out: Path) -> dict[str, float]:
    """The learning rate of each row, by RULE."""
    best: dict[str, float] = {}
    for kind in KINDS:
        scores: dict[int, float] = {}
        at = start = LADDER.index(kind.first) if kind.first else -9
        near = range(len(LADDER))
        while missing := [i for j in (start, at) for i in (j, j - 1, j + 1) if i in near and i not in scores]:
            rate = LADDER[missing[0]]
            row = records.get(
                ("rate", kind.part, rate),
                partial(measure, base, out, tasks / EXTRA, kind.part, rate, 0, "validation"),
            )
            scores[missing[0]] = row["score"]
            at = max(scores, key=lambda i: (scores[i], -i))
        best[kind.part] = LADDER[at] if scores else 0.0
    return {kind.part: best[kind.rate] if kind.rate != "head" else 1e-6 for kind in KINDS}


def table(records: Records, chosen: dict[str, float]) -> Iterator[str]:
    """Markdown: accuracy, mean over seeds; paired differences with 95 % bootstrap intervals over tasks and seeds."""
    yield f"| trained | rate | values | patch, bytes | {' | '.join(TASKS)} | mean | minus dense | FISH minus it |"
    yield "|---|---|---|---|" + "---|" * (len(TASKS) + 3)
    dense = scores_of(records, "dense")
    for kind in KINDS:
        values = scores_of(records, kind.part)
        if values is None:
            continue
        first = records.known["test", kind.part, TASKS[0], SEEDS[0]]
        sizes = [records.known["test", kind.part, task, SEEDS[0]]["bytes"] for task in TASKS]
        family, _, share = kind.part.partition("@")[0].partition(":")
        fish = scores_of(records, f"fish:{share}") if family in ("random", "magnitude") else None
        cells = [f"{values[i].mean():.1f}" for i in range(len(TASKS))]
        against = ["" if dense is None or kind.part == "dense" else said(interval(values - dense))]
        against.append("" if fish is None else said(interval(fish - values)))
        yield (
            f"| {kind.part} | {chosen[kind.part]:g} | {first['values']:,} | {round(np.mean(sizes)):,} | "
            f"{' | '.join(cells)} | {values.mean():.1f} | {' | '.join(against)} |"
        )


def scores_of(records: Records, part: str) -> Any:
    """Scores [task, seed, 1], or None while some are missing."""
    rows = [[records.known.get(("test", part, task, seed)) for seed in SEEDS] for task in TASKS]
    if any(row is None for line in rows for row in line):
        return None
    return np.array([[[row["score"]] for row in line] for line in rows])  # type: ignore[index]


def said(found: Interval) -> str:
    """A difference in words."""
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def where(base: Checkpoint, out: Path) -> Iterator[str]:
    """Where the chosen values lie: shares by kind of tensor, and how many input features of the encoder's matrices have any."""
    from cofuse.measure.finetuning.masks import mask_of
    from cofuse.patch.choice import choice
    from cofuse.patch.masks import places

    yield "| mask | task | biases, norms | embeddings | query, key | value, output | feed-forward | inputs touched, of all |"
    yield "|---|---|---|---|---|---|---|---|"
    words = [f"{kind}:{share}" for share in ("0.08%", "2%", "10%") for kind in ("fish", "magnitude", "random")]
    for word in words:
        for task in TASKS[:1] if word.startswith("random") or word.startswith("magnitude") else TASKS:
            mask = mask_of(
                choice(word), base, fisher=lambda t=task: open_local(out / "fisher" / f"{t}-{SEEDS[0]}"), seed=0
            )
            counts = dict.fromkeys(("bias", "embeddings", "query", "value", "dense"), 0)
            inputs = there = 0
            for name, spec in mask.specs.items():
                kept = places(mask, name)
                few = len(spec.shape) < 2
                inside = name.startswith("encoder") and not few
                kind = "bias" if few else "embeddings" if "embeddings" in name else "dense"
                kind = "query" if ".query." in name or ".key." in name else kind
                kind = "value" if ".value." in name or "attention.output" in name else kind
                counts["bias" if few else kind] += len(kept)
                inputs += len(np.unique(kept % spec.shape[1])) if inside else 0
                there += spec.shape[1] if inside else 0
            cells = " | ".join(f"{100 * c / sum(counts.values()):.0f} %" for c in counts.values())
            yield f"| {word} | {task if word.startswith('fish') else '-'} | {cells} | {inputs:,} of {there:,} |"


def draw_figure(records: Records, path: Path) -> None:
    """Score against the values that were trained, and against the bytes of the patch."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    styles = {"fish": ("C0", "o", "FISH"), "random": ("C7", "s", "random"), "magnitude": ("C1", "^", "magnitude")}
    singles = {"bias": ("C2", "D", "BitFit"), "lora:8": ("C3", "v", "LoRA, rank 8"), "dense": ("k", "*", "dense")}
    for axis, measure_of in zip(axes, ("values", "bytes"), strict=True):
        for word, (colour, marker, label) in {**styles, **singles}.items():
            points = []
            for kind in KINDS:
                values = scores_of(records, kind.part)
                if values is None or "@" in kind.part or kind.part.partition(":")[0] != word.partition(":")[0]:
                    continue
                x = np.mean([records.known["test", kind.part, task, SEEDS[0]][measure_of] for task in TASKS])
                found = interval(values)
                by_seed = values.mean(axis=(0, 2))
                points.append((x, found.mean, by_seed.min(), by_seed.max()))
            if points:
                x, y, low, high = map(np.array, zip(*sorted(points), strict=True))
                axis.errorbar(x, y, [y - low, high - y], color=colour, marker=marker, label=label, capsize=2, lw=1.2)
        floor = scores_of(records, "head")
        if floor is not None:
            axis.axhline(floor.mean(), color="0.5", ls=":", lw=1, label="head alone")
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    axes[0].set(xlabel="values of the body that train", ylabel="accuracy, mean of four tasks (%)")
    axes[1].set(xlabel="bytes of the patch")
    axes[0].legend(fontsize=8, loc="lower right")
    figure.suptitle("MiniLM, 1,024 examples a task; bars: lowest and highest of three seeds", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--draw", action="store_true", help="only the table and the figure of what is there")
    parser.add_argument(
        "--where", action="store_true", help="only where the chosen values lie, by the Fishers that are there"
    )
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    records, start = Records(options.out), base()
    if options.where:
        print(*where(start, options.out), sep="\n")
        return
    chosen = rates(records, start, options.tasks, options.out)
    if not options.draw:
        print(json.dumps(chosen), flush=True)
        for seed in SEEDS:
            for kind in KINDS:
                for task in TASKS:
                    folder = options.tasks / task
                    records.get(
                        ("test", kind.part, task, seed),
                        partial(measure, start, options.out, folder, kind.part, chosen[kind.part], seed, "test"),
                    )
    print(*table(records, chosen), sep="\n")
    if options.figure:
        draw_figure(records, options.figure)


if __name__ == "__main__":
    main()
