"""Weight decay under intertraining and fusing; loss barriers between finetunes of one parent and of different parents.

    python benchmarks/decay.py --tasks FOLDER --out FOLDER [--seeds 2] [--only decay|barriers] [--table]

Decay (arXiv 2204.03044: it nullifies the gain of intertraining, not that of fusing): MiniLM is finetuned on four source tasks,
each is a base (intertraining) and so is their mean (fusing); every base and MiniLM itself are finetuned on five other tasks. A
gain is the accuracy minus that from MiniLM with the same decay, examples, head and order. One decay holds for sources and
targets: 0; 0.1; and 5. The last is there because what decay does grows with rate times steps: 0.1 takes 0.04 % off the weights
in the 75 steps of a source here, and about 2 % in the thousands of steps of a large source; 5 takes 2 % here.

Barriers: two finetunes of one task, on different examples, the head's start and the order shared; bodies and heads are mixed,
test loss. Parents: MiniLM; it intertrained on esnli and on dbpedia; it after masked language modelling of another domain;
and it with the inner units of every feed-forward layer in another order, which is the same function elsewhere in the space of
weights, as far as models can be that have nothing in common but their architecture.

Seeds draw examples and heads and come last.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minilm import LENGTH, SHORT, Records, base, shown, trained

from cofuse.checkpoint import Checkpoint, Memory, open_local
from cofuse.fuse import fuse
from cofuse.measure.curve import curve
from cofuse.measure.evaluation.protocols import FinetuneProtocol, measure
from cofuse.tasks import Task, open_task
from cofuse.tasks.adapt import MaskedLanguage, adapt
from cofuse.tasks.finetune import Finetuning
from cofuse.tasks.heads import HEAD

DECAYS = (0.0, 0.1, 5.0)
SOURCES = ("esnli", "isear", "tweeteval_sentiment", "dbpedia")
TARGETS = ("sst2", "trec_coarse", "go_emotions", "tweeteval_offensive", "qnli")
SOURCE_EXAMPLES, TARGET_EXAMPLES, TEST = 1200, 256, 500  # sources one epoch, targets two

LINES = ("sst2", "trec_coarse", "go_emotions")
LINE_EXAMPLES, POINTS = 600, 7
PAIRS = (
    ("MiniLM", "MiniLM"),
    ("esnli", "esnli"),
    ("esnli", "dbpedia"),
    ("MiniLM", "other language"),
    ("MiniLM", "other order"),
)


def settings(decay: float, epochs: int) -> Finetuning:
    return Finetuning(**{**SHORT, "weight_decay": decay}, epochs=epochs)


def source(tasks: Mapping[str, Task], out: Path, name: str, decay: float, seed: int) -> Checkpoint:
    place = out / "models" / f"{name}-{decay:g}-{seed}"
    return trained(base(), tasks[name], SOURCE_EXAMPLES, settings(decay, 1), seed, place)


def decays(records: Records, tasks: Mapping[str, Task], out: Path, seed: int) -> None:
    """Accuracies of every base on every target, with every decay."""
    for decay in DECAYS:
        tuned = {n: source(tasks, out, n, decay, seed) for n in SOURCES}
        bases: dict[str, Checkpoint] = {"MiniLM": base(), **tuned, "fused": fuse("linear", list(tuned.values()))}
        protocol = FinetuneProtocol(examples=TARGET_EXAMPLES, test=TEST, finetuning=settings(decay, 2))
        for name, start in bases.items():
            for target in TARGETS:

                def work(start: Checkpoint = start, target: str = target, p: Any = protocol) -> dict[str, Any]:
                    return {"accuracy": measure(start, tasks[target], "finetune", p, seed=seed).values[0]}

                records.get(("decay", decay, name, target, seed), work)
        if seed == 0:
            records.get(("moved", decay), lambda tuned=tuned: moved(list(tuned.values())))


def moved(tuned: list[Checkpoint]) -> dict[str, Any]:
    """How far sources lie from MiniLM, and how much of that points at the origin, both over MiniLM's own norm."""
    start = base()
    far, inward, own = [0.0] * len(tuned), [0.0] * len(tuned), 0.0
    for name in start.names():
        value = start.read(name)
        if not value.is_floating_point() or "embeddings" in name:
            continue
        own += float(value.double().square().sum())
        for i, other in enumerate(tuned):
            change = other.read(name).double() - value.double()
            far[i] += float(change.square().sum())
            inward[i] -= float((change * value.double()).sum())
    return {
        "distance": float(np.mean(np.sqrt(far)) / own**0.5),
        "towards the origin": float(np.mean(inward) / own),
    }


def parents(tasks: Mapping[str, Task], out: Path) -> dict[str, Checkpoint]:
    """What the ends of lines are finetuned from."""
    start, places = base(), out / "models"
    if not (places / "other-language" / "model.safetensors").exists():
        texts = tasks["chemprot"].examples("train").inputs["text"]
        reading = MaskedLanguage(steps=100, batch_size=16, max_length=LENGTH)
        adapt(start, texts, reading, seed=0).save(places / "other-language")
    return {
        "MiniLM": start,
        "esnli": source(tasks, out, "esnli", 0.0, 0),
        "dbpedia": source(tasks, out, "dbpedia", 0.0, 0),
        "other language": open_local(places / "other-language"),
        "other order": reordered(start),
    }


def reordered(start: Checkpoint) -> Memory:
    """The same function: in every layer the feed-forward's inner units in another order."""
    generator = torch.Generator().manual_seed(3)
    tensors = {name: start.read(name).clone() for name in start.names()}
    for name in [n for n in tensors if n.endswith("intermediate.dense.weight")]:
        layer = name.removesuffix("intermediate.dense.weight")
        order = torch.randperm(len(tensors[name]), generator=generator)
        for inner in ("weight", "bias"):
            tensors[f"{layer}intermediate.dense.{inner}"] = tensors[f"{layer}intermediate.dense.{inner}"][order]
        tensors[f"{layer}output.dense.weight"] = tensors[f"{layer}output.dense.weight"][:, order]
    return Memory({n: t.contiguous() for n, t in tensors.items()}, files=dict(start.files))


def barriers(records: Records, tasks: Mapping[str, Task], out: Path, seed: int) -> None:
    """The line between the two finetunes of every pair of parents, on every task."""
    known = parents(tasks, out)
    for name in LINES:
        for pair in PAIRS:

            def work(name: str = name, pair: tuple[str, str] = pair) -> dict[str, Any]:
                ends = []
                for side, parent in enumerate(pair):
                    place = out / "models" / f"line-{name}-{seed}-{side}-{parent.replace(' ', '-')}"
                    draws = 11 + side  # other examples on either side
                    trained(known[parent], tasks[name], LINE_EXAMPLES, settings(0.01, 2), seed, place, draws=draws)
                    ends.append(place)
                found = curve(
                    *(open_local(p) for p in ends),
                    tasks[name],
                    points=POINTS,
                    examples=TEST,
                    head="kept",
                    heads=[p / HEAD for p in ends],
                ).document()
                return {k: found[k] for k in ("barrier", "score_barrier", "above_mean", "points")}

            records.get(("line", name, *pair, seed), work)


def table(records: Records) -> None:
    for line in (*_decay_table(records), *_line_table(records)):
        print(line)
    print(f"\n{records.minutes:.0f} minutes of processor time, without the sources")


def _decay_table(records: Records) -> Iterator[str]:
    known = records.known
    seeds = [s for s in range(9) if ("decay", DECAYS[-1], "fused", TARGETS[-1], s) in known]
    if not seeds:
        return
    yield f"seeds {seeds}\n"
    yield "| decay | MiniLM | intertrained | fused | gain of intertraining | gain of fusing | fusing minus intertraining |"
    yield "|---|---|---|---|---|---|---|"

    def of(decay: float, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([[known["decay", decay, name, t, s]["accuracy"] for s in seeds] for t in TARGETS])

    cells = {}
    for decay in DECAYS:
        plain, fused = of(decay, "MiniLM"), of(decay, "fused")
        inter = np.mean([of(decay, n) for n in SOURCES], axis=0)
        cells[decay] = (inter - plain, fused - plain)
        gains = " | ".join(map(shown, (*cells[decay], fused - inter)))
        yield f"| {decay:g} | {plain.mean():.1f} | {inter.mean():.1f} | {fused.mean():.1f} | {gains} |"
    yield "\n| gain with this decay minus gain without | intertraining | fusing |\n|---|---|---|"
    for decay in DECAYS[1:]:
        yield f"| {decay:g} | " + " | ".join(shown(a - b) for a, b in zip(cells[decay], cells[0.0], strict=True)) + " |"
    yield f"\n| gain by base, mean of seeds | {' | '.join(TARGETS)} |\n|---|{'---|' * len(TARGETS)}"
    for decay in DECAYS:
        for name in (*SOURCES, "fused"):
            gain = (of(decay, name) - of(decay, "MiniLM")).mean(1)
            yield f"| {name}, {decay:g} | {' | '.join(f'{g:+.1f}' for g in gain)} |"
    for decay in DECAYS:
        if ("moved", decay) in known:
            row = known["moved", decay]
            far, inward = 100 * row["distance"], 100 * row["towards the origin"]
            yield f"\ndecay {decay:g}: sources lie {far:.2f} % of MiniLM's norm away, {inward:.3f} % towards the origin"


def _line_table(records: Records) -> Iterator[str]:
    rows = {k: v for k, v in records.known.items() if k[0] == "line"}
    names = [t for t in LINES if all(("line", t, *p, 0) in rows for p in PAIRS)]  # tasks come before seeds
    whole = [s for s in range(9) if all(("line", t, *p, s) in rows for t in names for p in PAIRS)]
    if not names:
        return
    yield f"\nseeds {whole}\n\n| parents | barrier, nats: {' | '.join(names)} | mean, range | accuracy lost, points |"
    yield "|---|" + "---|" * (len(names) + 2)
    for pair in PAIRS:
        found = {
            k: np.array([[rows["line", t, *pair, s][k] for s in whole] for t in names])
            for k in ("barrier", "score_barrier")
        }
        own = found["barrier"]
        yield (
            f"| {' and '.join(pair)} | {' | '.join(f'{b:.3f}' for b in own.mean(1))} | {own.mean():.3f}, "
            f"{own.min():.3f} to {own.max():.3f} | {found['score_barrier'].mean():.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=("decay", "barriers"))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(given.out)
    tasks = {n: open_task(n, folders=(given.tasks,)) for n in {*SOURCES, *TARGETS, *LINES, "chemprot"}}
    parts = {"decay": decays, "barriers": barriers}
    for seed in range(0 if given.table else given.seeds):
        for name, part in parts.items():
            if given.only in (None, name):
                part(records, tasks, given.out, seed)
    table(records)


if __name__ == "__main__":
    main()
