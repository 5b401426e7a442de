"""Predicted against measured KL over many changes of one model, of different kinds and sizes.

    python benchmarks/predicted_kl.py --tasks TASKS --out OUT [--plot docs/results/predicted_kl.png]

MiniLM with a fitted head on two tasks. The predictions are 1/2 sum_j F_j delta_j^2 with the expected Fisher of training
examples (what a contributor would publish) and of the held-out examples, and the full form 1/2 delta' F delta
on these; measured is the mean KL over them. Every finetune, Fisher and comparison is kept in OUT: the same command goes
on after an interruption, and without anything left to do prints the tables and draws the plot.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import cofuse
from cofuse.checkpoint import Checkpoint, Hashed, Memory, open_local
from cofuse.measure.compat import Correlation, correlate, predict
from cofuse.measure.compat.measured import measure_change
from cofuse.measure.statistics.fisher import fisher
from cofuse.measure.subject import Subject, open_subject
from cofuse.patch import LowRank, Sparse, Way, apply, make
from cofuse.tasks import Task, draw, open_task
from cofuse.tasks.finetune import Finetuning, finetune
from cofuse.tasks.model import body_checkpoint
from cofuse.tasks.probe import Probe, Probing, body_features

BASE = "sentence-transformers/all-MiniLM-L6-v2"
MEASURED = ("trec_coarse", "sst2")
TUNED = ("trec_coarse", "sst2", "isear", "snips")
STEPS = (20, 100)
SCALES = {20: (0.3, 1.0), 100: (0.05, 0.2, 0.5, 1.0)}
FISHER_EXAMPLES, HELD_OUT, LENGTH = 512, 192, 48
CONTROL = "random signs"
PREDICTORS = ("diagonal", "diagonal, same examples", "full form")

Tensors = dict[str, torch.Tensor]


class Change(NamedTuple):
    """A change of the base: what it is, and how it is made."""

    kind: str
    name: str
    make: Callable[[], Checkpoint]


# The changes


def changes(out: Path, base: Checkpoint) -> Iterator[Change]:
    """All of them, in a fixed order; made when they are asked for."""
    for task in TUNED:
        for steps in STEPS:
            for scale in SCALES[steps]:
                name = f"{task}, {steps} steps, {scale:g}"
                yield Change("finetune", name, partial(scaled, base, out / f"{task}-{steps}", scale))
    for task in TUNED:
        tuned = out / f"{task}-{STEPS[-1]}"
        for share in (0.005, 0.05):
            yield Change("sparse", f"{task}, {share:.1%}", partial(patched, out, base, tuned, Sparse(share)))
        for rank in (1, 8):
            yield Change("low rank", f"{task}, rank {rank}", partial(patched, out, base, tuned, LowRank(rank=rank)))
    for task in TUNED[:2]:
        for part in ("embeddings.", "layer.0.", "layer.3.", "layer.5."):
            tuned = out / f"{task}-{STEPS[-1]}"
            yield Change("one layer", f"{task}, {part}", partial(of_part, base, tuned, part))
    for task in TUNED:
        tuned = out / f"{task}-{STEPS[-1]}"
        yield Change(CONTROL, task, partial(of_random_signs, base, tuned))
    for part in ("", "layer.2."):
        for size in (0.003, 0.01, 0.03, 0.1):
            yield Change("noise", f"{part or 'all'} {size:g}", partial(noisy, base, part, size))
    for bits in ("bf16", "int8", "int8 rows", "int4 rows", "fp8"):
        yield Change("quantised", bits, partial(quantised, base, bits))
    for share in (0.02, 0.1, 0.2, 0.4):
        yield Change("pruned", f"{share:.0%}", partial(pruned, base, share))


def held(base: Checkpoint) -> Tensors:
    return {name: base.read(name) for name in base.names()}


def mapped(base: Checkpoint, function: Callable[[str, torch.Tensor], torch.Tensor]) -> Memory:
    """Every float of the base, changed."""
    return Memory({n: function(n, t) if t.is_floating_point() else t for n, t in held(base).items()})


def scaled(base: Checkpoint, tuned: Path, scale: float) -> Memory:
    after = open_local(tuned)
    return mapped(base, lambda name, t: t + scale * (after.read(name) - t))


def patched(out: Path, base: Checkpoint, tuned: Path, way: Way) -> Checkpoint:
    return apply(base, make(base, open_local(tuned), out / "x.patch", way))


def of_part(base: Checkpoint, tuned: Path, part: str) -> Memory:
    after = open_local(tuned)
    return mapped(base, lambda name, t: after.read(name) if part in name else t)


def of_random_signs(base: Checkpoint, tuned: Path) -> Memory:
    """As far as a finetune goes in every value, but not together."""
    after, random = open_local(tuned), torch.Generator().manual_seed(0)

    def flipped(name: str, t: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, t.shape, generator=random) * 2 - 1
        return t + signs * (after.read(name) - t)

    return mapped(base, flipped)


def noisy(base: Checkpoint, part: str, size: float) -> Memory:
    random = torch.Generator().manual_seed(0)

    def noise(name: str, t: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(t.shape, generator=random)
        return t + size * float(t.square().mean().sqrt()) * drawn if part in name else t

    return mapped(base, noise)


def quantised(base: Checkpoint, bits: str) -> Memory:
    def rounded(_: str, t: torch.Tensor) -> torch.Tensor:
        if bits in ("bf16", "fp8"):
            return t.to(torch.bfloat16 if bits == "bf16" else torch.float8_e4m3fn).to(t.dtype)
        if t.dim() < 2:
            return t
        most = 127 if bits.startswith("int8") else 7
        largest = t.abs().amax(1, keepdim=True) if "rows" in bits else t.abs().max()
        step = (largest / most).clamp_min(1e-12)
        return (t / step).round() * step

    return mapped(base, rounded)


def pruned(base: Checkpoint, share: float) -> Memory:
    """The smallest values of each matrix at zero."""

    def cut(_: str, t: torch.Tensor) -> torch.Tensor:
        if t.dim() < 2:
            return t
        limit = t.abs().flatten().kthvalue(max(1, round(share * t.numel()))).values
        return torch.where(t.abs() <= limit, torch.zeros_like(t), t)

    return mapped(base, cut)


# What is measured


def prepare(out: Path, tasks: Path) -> None:
    """The finetunes, and the base under their names."""
    whole = cofuse.open(BASE)
    for name in TUNED:
        task = open_task(str(tasks / name))
        for steps in STEPS:
            folder = out / f"{name}-{steps}"
            if (folder / "model.safetensors").exists():
                continue
            settings = Finetuning(
                steps=steps, batch_size=16, learning_rate=5e-5, head_learning_rate=5e-3, max_length=LENGTH
            )
            tuned = finetune(whole, task, draw(task.examples("train"), 2000, [1]), settings, seed=0)
            after = body_checkpoint(tuned.model.body, whole)
            if not (out / "base").exists():
                names = {n: whole.read(n) for n in after.names()}
                Memory(names, files=dict(whole.files)).save(out / "base")
            after.save(folder)
            print(f"finetuned on {name}, {steps} steps", flush=True)


def with_head(base: Checkpoint, task: Task) -> Subject:
    """The base with a head fitted to its frozen features as they are.

    `open_subject`'s probe is fitted to standardised features. One feature of MiniLM does not vary but by rounding (its
    last norm's weight is -1.5e-9): divided by that deviation, the head's weight is 3.7e7 there, and the least change of
    the last layer makes logits of thousands.
    """
    subject = open_subject(base, task, head="random", max_length=LENGTH)
    train = draw(task.examples("train"), 1024, [3])
    encoded = task.what.encode(train, base, LENGTH)
    module: Any = subject.module
    vectors = body_features(module.body, task, encoded, "mean", "fp32")
    weight, bias = Probe(task, vectors, encoded.labels, Probing(c=10.0)).linear(task.outputs)
    with torch.no_grad():
        module.head.linear.weight.copy_(torch.from_numpy(weight))
        module.head.linear.bias.copy_(torch.from_numpy(bias))
    return subject


def statistics(out: Path, subject: Subject, task: Task, split: str, count: int) -> Checkpoint:
    """The expected Fisher of examples of a split."""
    folder = out / f"fisher-{task.name}-{split}"
    if not folder.exists():
        examples = draw(task.examples("train"), count, [2]) if split == "train" else task.examples("test").first(count)
        began = time.monotonic()
        fisher(subject, examples, split=split).save(folder)
        print(f"{folder.name}: {time.monotonic() - began:.0f} s", flush=True)
    return open_local(folder)


def measure(out: Path, tasks: Path) -> None:
    """Every change on every task, one line each; those that have a line are not done again."""
    base, path = Hashed(open_local(out / "base")), out / "rows.jsonl"
    done = {(row["task"], row["change"]) for row in read(path)}
    for name in MEASURED:
        task = open_task(str(tasks / name))
        subject = with_head(base, task)
        train = statistics(out, subject, task, "train", FISHER_EXAMPLES)
        same = statistics(out, subject, task, "test", HELD_OUT)
        examples = task.examples("test").first(HELD_OUT)
        for change in changes(out, base):
            label = f"{change.kind}: {change.name}"
            if (name, label) in done:
                continue
            began = time.monotonic()
            changed = change.make()
            found = measure_change(subject, changed, examples, quadratic=True)
            row = {
                "task": name,
                "change": label,
                "kind": change.kind,
                "diagonal": predict(base, changed, train, threads=1).total,
                "diagonal, same examples": predict(base, changed, same, threads=1).total,
                "full form": found.quadratic,
                "measured": found.kl,
                "agreement": found.agreement,
                "flips": found.flips,
                "seconds": round(time.monotonic() - began, 2),
            }
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(name, label, *(f"{row[k]:.3g}" for k in (*PREDICTORS, "measured")), row["seconds"], flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the table."""
    if not path.exists():
        return []
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


# What it shows


def grid(rows: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """The changes of a task that correlations are of: all but the control."""
    return [row for row in rows if row["task"] == task and row["kind"] != CONTROL]


def compared(rows: list[dict[str, Any]], predictor: str) -> Correlation:
    return correlate([row[predictor] for row in rows], [row["measured"] for row in rows])


def tables(rows: list[dict[str, Any]]) -> None:
    """Correlations by task, by size and by kind."""
    print("\n| task | changes | prediction | n | Pearson (log) | Spearman | slope | measured / predicted | spread |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in MEASURED:
        mine = grid(rows, task)
        for size, some in (
            ("all", mine),
            ("KL below 0.1", [row for row in mine if row["measured"] < 0.1]),
            ("finetunes alone", [row for row in mine if row["kind"] == "finetune"]),
        ):
            for predictor in PREDICTORS:
                c = compared(some, predictor)
                print(
                    f"| {task} | {size} | {predictor} | {c.n} | {c.pearson:.3f} | {c.spearman:.3f} | {c.slope:.2f} "
                    f"| {c.ratio:.2f} | x {10**c.spread:.2f} |"
                )
    print("\n| kind | n | measured KL, from | to | / diagonal | / diagonal, same examples | / full form |")
    print("|---|---|---|---|---|---|---|")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        some = [row for row in rows if row["kind"] == kind]
        ratios = [geometric(row["measured"] / row[predictor] for row in some) for predictor in PREDICTORS]
        sizes = [row["measured"] for row in some]
        print(f"| {kind} | {len(some)} | {min(sizes):.2g} | {max(sizes):.2g} |", *(f"{r:.2f} |" for r in ratios))


def geometric(values: Any) -> float:
    return math.exp(float(np.mean([math.log(v) for v in values])))


def plot(rows: list[dict[str, Any]], to: Path) -> None:
    """Measured over predicted, kinds by colour, tasks by marker."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    colours: Mapping[str, Any] = dict(zip(kinds, plt.get_cmap("Dark2").colors, strict=False))
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True, layout="constrained")
    low, high = (f(row[k] for row in rows for k in (*PREDICTORS, "measured")) for f in (min, max))
    for axis, predictor, title in zip(
        axes,
        ("diagonal", "full form"),
        ("diagonal: ½ Σ F δ²", "full quadratic form: ½ δ′Fδ"),
        strict=True,
    ):
        axis.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
        for task, marker in zip(MEASURED, "o^", strict=True):
            for kind in kinds:
                some = [row for row in rows if (row["task"], row["kind"]) == (task, kind)]
                axis.scatter(
                    [row[predictor] for row in some],
                    [row["measured"] for row in some],
                    s=26,
                    marker=marker,
                    color=colours[kind],
                    alpha=0.8,
                    linewidths=0,
                )
        axis.set(xscale="log", yscale="log", xlim=(low / 2, 2 * high), ylim=(low / 2, 2 * high))
        axis.set_xlabel(f"{title}   [nats an example]")
        axis.set_aspect("equal")
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        lines = [f"{t}: Pearson (log) {compared(grid(rows, t), predictor).pearson:.3f}" for t in MEASURED]
        axis.text(0.97, 0.03, "\n".join(lines), transform=axis.transAxes, ha="right", va="bottom", fontsize=9)
    axes[0].set_ylabel("measured KL [nats an example]")
    dots = [plt.Line2D([], [], marker="o", linestyle="", color=colours[k], label=k) for k in kinds]
    marks = [
        plt.Line2D([], [], marker=m, linestyle="", color="0.4", label=t) for t, m in zip(MEASURED, "o^", strict=True)
    ]
    axes[1].legend(handles=[*dots, *marks], loc="upper left", fontsize=8, frameon=False)
    figure.savefig(to, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    prepare(given.out, given.tasks)
    measure(given.out, given.tasks)
    rows = read(given.out / "rows.jsonl")
    tables(rows)
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
