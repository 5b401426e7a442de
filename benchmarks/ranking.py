"""How well a ranking of bases by a linear probe tells the one by full finetuning, over fifteen variants of MiniLM.

    python benchmarks/ranking.py --tasks FOLDER --out FOLDER [--seeds 2] [--table]

Variants, all of all-MiniLM-L6-v2: as it is; intertrained on each of five tasks; the mean of the five, of three, and TIES of
the five; evolved for one and two rounds more (the fused body finetuned on the five, their mean). Four are meant to be worse, as
bad uploads are: noise of 10 and 30 % of each tensor's root mean square, masked language modelling of another domain, and
training at thirty times the rate. Eight other tasks rank them, by the suite below, through `measure.ranking` as `cofuse rank`
does. Seeds draw examples and heads and come last. `--table` prints rank correlations over all variants and without the four
(95 %, bootstrap over variants), of probes on every set of one, two and three tasks too, and of finetuning with itself, by
one seed against the other: more than that no predictor can be expected to reach.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from minilm import LENGTH, SHORT, Records, base, trained

from cofuse.checkpoint import Checkpoint, Memory, open_local
from cofuse.fuse import fuse
from cofuse.measure.evaluation.evaluating import Model, evaluate
from cofuse.measure.evaluation.records import Records as Scores
from cofuse.measure.evaluation.suite import OpenSuite, Suite, open_suite
from cofuse.measure.ranking.agreement import agreements, kendall, regret, spearman
from cofuse.measure.ranking.ranking import Ranking, entries, rank
from cofuse.tasks import open_task
from cofuse.tasks.adapt import MaskedLanguage, adapt
from cofuse.tasks.finetune import Finetuning

SOURCES = ("esnli", "isear", "clinc150", "tweeteval_sentiment", "dbpedia")
TARGETS = ("sst2", "subj", "trec_coarse", "ag_news", "go_emotions", "tweeteval_offensive", "snips", "qnli")
INTERTRAINED = 1200  # examples, one epoch
ROUNDS = (2, 3)
NOISE = (0.1, 0.3)
WORSE = ("noise 0.1", "noise 0.3", "other language", "high rate")
ONCE = Finetuning(**SHORT, epochs=1)
SUITE = {
    "name": "ranking",
    "tasks": TARGETS,
    "protocols": {
        "probe": {"examples": 500, "test": 500, "probing": {"standardize": True, "c": 0.01, "max_length": LENGTH}},
        "finetune": {"examples": 256, "test": 500, "finetuning": {**SHORT, "epochs": 2}},
    },
}


def variants(folder: Path, out: Path) -> dict[str, Path]:
    """The folders of all variants but the pretrained one, made where they are missing."""
    start, places = base(), out / "models"
    tasks = {name: open_task(name, folders=(folder,)) for name in (*SOURCES, "chemprot")}
    found: dict[str, Path] = {}

    def kept(name: str, made: partial[Checkpoint]) -> None:
        found[name] = places / name.replace(" ", "-")
        if not (found[name] / "model.safetensors").exists():
            made().save(found[name])

    for name in SOURCES:
        found[f"on {name}"] = places / f"on-{name}"
        trained(start, tasks[name], INTERTRAINED, ONCE, 0, found[f"on {name}"])
    tuned = [open_local(found[f"on {name}"]) for name in SOURCES]
    kept("mean of 5", partial(fuse, "linear", tuned))
    kept("mean of 3", partial(fuse, "linear", [tuned[i] for i in (0, 1, 3)]))
    kept("ties of 5", partial(fuse, "ties", tuned, base=start, density=0.2))
    last = found["mean of 5"]
    for number in ROUNDS:
        contributed = [
            trained(open_local(last), tasks[n], INTERTRAINED, ONCE, number, places / f"round-{number}-{n}")
            for n in SOURCES
        ]
        kept(f"evolved {number}", partial(fuse, "linear", contributed))
        last = found[f"evolved {number}"]
    for level in NOISE:
        kept(f"noise {level}", partial(noisy, start, level))
    texts = tasks["chemprot"].examples("train").inputs["text"]
    reading = MaskedLanguage(steps=100, batch_size=16, max_length=LENGTH)
    kept("other language", partial(adapt, start, texts, reading, seed=0))
    hard = Finetuning(**{**SHORT, "learning_rate": 3e-3}, epochs=1)
    found["high rate"] = places / "high-rate"
    trained(start, tasks["esnli"], INTERTRAINED, hard, 0, found["high rate"])
    return found


def noisy(start: Checkpoint, level: float) -> Memory:
    """Every tensor with normal noise of a share of its root mean square."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name in start.names():
        value = start.read(name)
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value = value + (level * value.float().square().mean().sqrt() * noise).to(value.dtype)
        tensors[name] = value
    return Memory(tensors, files=dict(start.files))


def suite_of(folder: Path, seeds: int) -> OpenSuite:
    written = Suite.model_validate({**SUITE, "seeds": tuple(range(seeds))})
    return open_suite(written, (folder,))


def by(suite: OpenSuite, protocol: str, seeds: Sequence[int] | None = None) -> OpenSuite:
    """The part of a suite with one protocol, and some seeds."""
    measures = tuple(m for m in suite.measures if m.protocol == protocol)
    return replace(suite, measures=measures, seeds=tuple(suite.seeds if seeds is None else seeds))


def table(suite: OpenSuite, models: Sequence[Model], records: Records, scores: Scores) -> None:
    entered = entries(models, [models[0]])
    done = [s for s in suite.seeds if rank(entered, by(suite, "finetune", [s]), scores)]
    whole = replace(suite, seeds=tuple(done))
    probe, tuned = (rank(entered, by(whole, p), scores)[0] for p in ("probe", "finetune"))
    print(f"seeds {done}\n\n| variant | gain, probe | gain, finetuning | better on |\n|---|---|---|---|")
    cheap = {r.model: r for r in probe.ranked}
    for r in tuned.ranked:
        said = [f"{x.mean:+.2f} ({x.low:+.2f} to {x.high:+.2f})" for x in (cheap[r.model].gain, r.gain)]
        print(f"| {r.model} | {said[0]} | {said[1]} | {round(8 * r.better)} of 8 |")
    for what, without in (("all variants", ()), ("without the four", WORSE)):
        pair = [replace(r, ranked=tuple(x for x in r.ranked if x.model not in without)) for r in (probe, tuned)]
        found = agreements(pair)[0]
        said = [f"{c.value:.2f} ({c.low:.2f} to {c.high:.2f})" for c in (found.spearman, found.kendall)]
        print(
            f"\n{what}, {len(found.models)}: Spearman {said[0]}, Kendall {said[1]}, regret of the first "
            f"{found.regret[1]:.2f}, of the first three {found.regret[3]:.2f} points"
        )
        x, y = (gains(r) for r in pair)
        for size in (1, 2, 3):
            sets = list(combinations(range(len(TARGETS)), size))
            all_of = sorted((spearman(x[:, list(s)].mean(1), y.mean(1)), s) for s in sets)
            lost = np.mean([regret(x[:, list(s)].mean(1), y.mean(1), 3) for s in sets])
            own = float(np.median([spearman(y[:, list(s)].mean(1), y.mean(1)) for s in sets]))
            median, best, worst = all_of[len(sets) // 2][0], all_of[-1], all_of[0]
            print(
                f"  probes on {size}: Spearman {median:.2f} in the median of {len(sets)} sets, {worst[0]:.2f} to {best[0]:.2f}"
                f" (best: {', '.join(TARGETS[i] for i in best[1])}); regret of the first three {lost:.2f} in the mean; "
                f"finetuning on the same sets: {own:.2f}"
            )
        halves = [
            (list(s), [i for i in range(len(TARGETS)) if i not in s]) for s in combinations(range(len(TARGETS)), 4)
        ]
        agreed = [spearman(y[:, a].mean(1), y[:, b].mean(1)) for a, b in halves]
        print(f"  finetuning on four tasks against the other four: Spearman {np.median(agreed):.2f} in the median")
        if len(done) > 1:
            one, other = (gains(only(entered, suite, s, scores, without)).mean(1) for s in done[:2])
            print(
                f"  finetuning with itself, other seed: Spearman {spearman(one, other):.2f}, {kendall(one, other):.2f}"
            )
    for row in records.known.values():
        print(row["key"], f"{row['seconds']:.0f} s of processor time")


def only(entered: Sequence[object], suite: OpenSuite, seed: int, scores: Scores, without: Sequence[str]) -> Ranking:
    found = rank(entered, by(suite, "finetune", [seed]), scores)[0]  # type: ignore[arg-type]
    return replace(found, ranked=tuple(x for x in found.ranked if x.model not in without))


def gains(ranking: Ranking) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[model, task], models by name."""
    return np.array([[t.gain for t in r.tasks] for r in sorted(ranking.ranked, key=lambda r: r.model)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    records, scores = Records(given.out), Scores(given.out / "evaluations")
    records.get(("variants",), lambda: {"made": len(variants(given.tasks, given.out))})
    suite = suite_of(given.tasks, given.seeds)
    places = variants(given.tasks, given.out)
    models = [Model.of("pretrained", base)]
    models += [Model.of(name, partial(open_local, place)) for name, place in places.items()]
    for seed in range(0 if given.table else given.seeds):
        for protocol in ("probe", "finetune"):
            part = by(suite, protocol, [seed])
            records.get((protocol, seed), lambda part=part: {"made": evaluate(models, part, scores).made})
    table(suite, models, records, scores)


if __name__ == "__main__":
    main()
