"""Whether choosing what to fuse helps: the chosen set beside all, random sets and the best single, on unseen tasks.

    python benchmarks/choosing.py --tasks FOLDER --out FOLDER [--models FOLDER] [--table]

Eight finetunes of MiniLM, each on a task of its own, are a pool; in a second pool two of them were trained at thirty times the
rate, as bad contributions are. `measure.choosing` chooses by probes on the validation splits of four other tasks, as `cofuse
choose` does; what it chose is measured on eight more that nobody has seen: by probes, and the main ones by finetuning too.
Beside it: all, the best single, MiniLM itself, and sets drawn at random, of two to seven models. Differences
are paired by task and seed. `--models` is where `ranking.py` left its own finetunes, five of which are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minilm import LENGTH, SHORT, Records, base, shown, trained

from cofuse.checkpoint import Checkpoint
from cofuse.fuse import Recipe, fuse_recipe
from cofuse.measure.choosing import HeldOut, Learning, Pool, choose, mean_of
from cofuse.measure.evaluation.protocols import FinetuneProtocol, ProbeProtocol, Protocol, measure
from cofuse.tasks import Task, open_task
from cofuse.tasks.finetune import Finetuning
from cofuse.tasks.probe import Probing

SOURCES = (
    "esnli", "isear", "clinc150", "tweeteval_sentiment", "dbpedia", "customer_reviews", "scierc", "boolq",
)  # fmt: skip
BAD = ("isear", "dbpedia")  # trained at thirty times the rate in the second pool
CHOOSING = ("sst2", "subj", "trec_coarse", "ag_news")
UNSEEN = (
    "go_emotions", "tweeteval_offensive", "snips", "qnli", "hate_speech_offensive", "sst5", "rotten_tomatoes", "trec_fine",
)  # fmt: skip
EXAMPLES = 1200  # one epoch, as in ranking.py
ONCE = Finetuning(**SHORT, epochs=1)
HARD = Finetuning(**{**SHORT, "learning_rate": 3e-3}, epochs=1)
PROBE = ProbeProtocol(examples=300, test=400, probing=Probing(standardize=True, c=0.01, max_length=LENGTH))
TUNE = FinetuneProtocol(examples=256, test=500, finetuning=Finetuning(**SHORT, epochs=2))
WAYS = ("greedy", "uniform", "best", "gain", "similar", "wise", "learned")
LEARNING = Learning(max_length=LENGTH, examples=96)
RANDOM = 8  # sets
FINETUNED = ("MiniLM", "uniform", "best", "greedy", "random 1", "random 2")  # measured by finetuning too


def pools(tasks: Mapping[str, Task], folder: Path) -> dict[str, dict[str, Checkpoint]]:
    start = base()
    good = {n: trained(start, tasks[n], EXAMPLES, ONCE, 0, folder / f"on-{n}") for n in SOURCES}
    bad = {n: trained(start, tasks[n], EXAMPLES, HARD, 0, folder / f"hard-{n}") for n in BAD}
    return {"eight": good, "two bad": {**good, **bad}}


class Judge:
    """Mean scores of recipes on tasks by one protocol; what was measured is not measured again."""

    def __init__(self, models: Mapping[str, Checkpoint], tasks: Sequence[Task], protocol: Protocol, seed: int) -> None:
        self.models, self.tasks, self.protocol, self.seed = models, tasks, protocol, seed
        self.known: dict[str, list[float]] = {}

    def each(self, recipe: Recipe) -> list[float]:
        """A score for each task."""
        if recipe.id not in self.known:
            fused = fuse_recipe(recipe, self.models)
            name = "probe" if isinstance(self.protocol, ProbeProtocol) else "finetune"
            self.known[recipe.id] = [
                measure(fused, task, name, self.protocol, seed=self.seed).values[0] for task in self.tasks
            ]
        return self.known[recipe.id]

    def __call__(self, recipes: Sequence[Recipe]) -> list[float]:
        return [float(np.mean(self.each(r))) for r in recipes]


def study(folder: Path, out: Path, models: Path) -> None:
    """Every pool: choices first, then probes on the unseen tasks, then finetuning."""
    records = Records(out)
    tasks = {n: open_task(n, folders=(folder,)) for n in {*SOURCES, *CHOOSING, *UNSEEN}}
    unseen, seen = [tasks[n] for n in UNSEEN], [tasks[n] for n in CHOOSING]
    held_out = [HeldOut.model_construct(_fields_set=t.model_fields_set, **dict(t)) for t in seen]
    made = pools(tasks, models)
    recipes: dict[tuple[str, str], Recipe] = {}
    for name, known in made.items():
        every = {**known, "MiniLM": base()}
        judge = Judge(every, held_out, PROBE, 0)
        pool = Pool(tuple(known), judge, "MiniLM", every, None, tuple(seen), LEARNING)
        for way in WAYS:

            def chosen(way: str = way, pool: Pool = pool) -> dict[str, Any]:
                found = choose(way, pool)
                return {"recipe": found.recipe.canonical, "held out": found.score, "reasons": dict(found.reasons)}

            row = records.get(("chosen", name, way), chosen)
            recipes[name, way] = Recipe.model_validate(row["recipe"])
        recipes[name, "MiniLM"] = mean_of(["MiniLM"])
        random = np.random.default_rng([9, len(name)])
        for i in range(RANDOM):
            size = 2 + i % 6
            some = random.choice(len(SOURCES), size=size, replace=False)
            recipes[name, f"random {i}"] = mean_of([SOURCES[j] for j in sorted(some)])
    for what, protocol in (("probe", PROBE), ("finetune", TUNE)):
        judges = {name: Judge({**known, "MiniLM": base()}, unseen, protocol, 1) for name, known in made.items()}
        for (name, way), recipe in sorted(recipes.items(), key=lambda row: row[0][1].startswith("random")):
            if what == "probe" or way in FINETUNED:
                records.get((what, name, way), lambda j=judges[name], r=recipe: {"scores": j.each(r)})


def table(out: Path) -> None:
    """What was chosen, and the unseen tasks: each way, minus all, minus the random sets, minus the best single."""
    records = Records(out)
    for pool in ("eight", "two bad"):
        print(f"\npool: {pool}\n")
        for way in WAYS:
            if row := records.known.get(("chosen", pool, way)):
                weights = {
                    m["model"]: m.get("parameters", {}).get("weight", 1)
                    for m in row["recipe"]["models"]
                    if isinstance(m["model"], str)
                }
                said = ", ".join(f"{m} {w:.2f}" if w != 1 else m for m, w in weights.items())
                print(f"- {way}: {row['held out']:.2f} held out, {row['seconds']:.0f} s; {said}")
        for what in ("probe", "finetune"):
            own = {k[2]: np.array(v["scores"])[:, None] for k, v in records.known.items() if k[:2] == (what, pool)}
            if "MiniLM" not in own or not any(k.startswith("random") for k in own):
                continue
            drawn = np.mean([v for k, v in own.items() if k.startswith("random")], axis=0)
            sets = [float(v.mean()) for k, v in own.items() if k.startswith("random")]
            print(
                f"\n| unseen tasks, {what} | mean | minus MiniLM | minus all | minus random | minus best single | random sets below |"
            )
            print("|---|---|---|---|---|---|---|")
            for way in ("MiniLM", *WAYS):
                if way in own:
                    against = [own["MiniLM"], own["uniform"], drawn, own["best"]]
                    said = " | ".join(shown(own[way] - a) if np.any(own[way] - a) else "" for a in against)
                    below = sum(s < own[way].mean() for s in sets)
                    print(f"| {way} | {own[way].mean():.2f} | {said} | {below} of {len(sets)} |")
            print(f"\nrandom sets: {np.mean(sets):.2f}, {min(sets):.2f} to {max(sets):.2f}")
    print(f"\n{records.minutes:.0f} minutes of processor time, without the finetunes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        study(given.tasks, given.out, given.models or given.out / "models")
    table(given.out)


if __name__ == "__main__":
    main()
