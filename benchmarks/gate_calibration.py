"""How often the gate blocks what is as good as before, and how often it lets a drop of two points through.

    python benchmarks/gate_calibration.py DIR --tasks TASKS [--candidates 200] [--only collect|simulated|finetuned]

Collected once, into DIR: what heads of six seeds on MiniLM (1,000 examples each, drawn from the first 3,000) predict on the
test splits of eight tasks; and, on sst2, what 11 finetunes predict that differ in their seed alone, each whole and taken back
so far towards its base that it is two points worse than the first one.

A candidate is a suite of eight tasks. On each, old and new are two different seeds' heads, drawn; examples are drawn with
replacement, as many as the gate asks for, and which of the two heads is the old one is drawn example by example: so the true
difference is nothing, and the flips are those of real predictions. A planted drop makes the new head wrong on two points more
of one task's examples, drawn among those that it had right; the other seven tasks are null. `raw` does not draw which is old:
the two heads then differ by what their seeds make of it, and only a candidate none of whose tasks is truly more than the
margin worse counts as falsely blocked. Finetuned candidates are one task, their own test examples drawn with replacement.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cofuse.measure.gate import Item, Policy, Trial
from cofuse.measure.gate.matched import Rate
from cofuse.measure.outcomes import Outcomes

MINILM = "hf:sentence-transformers/all-MiniLM-L6-v2"
TASKS = ("sst2", "rotten_tomatoes", "subj", "cola", "ag_news", "tweeteval_sentiment", "go_emotions", "trec_coarse")
HEADS, FINETUNES, DROP = 6, 11, 2.0
DRAWS = 10
POPULATION = 150_000  # more than any plan asks for


def collect_heads(folder: Path, tasks: Path) -> None:
    from cofuse import address
    from cofuse.measure.evaluation.protocols import outcomes_of
    from cofuse.tasks import draw_rows, open_task
    from cofuse.tasks.probe import Probe, Probing, features

    body, settings = address.open(MINILM), Probing(standardize=True, c=0.01)
    for name in TASKS:
        if (folder / f"{name}-{HEADS - 1}.safetensors").exists():
            continue
        task = open_task(name, folders=(tasks,))
        train, test = task.examples("train").first(3000), task.examples("test")
        vectors, tested = (features(body, task, e, settings) for e in (train, test))
        for seed in range(HEADS):
            rows = draw_rows(train, 1000, [0x6A7E, seed])
            head = Probe(task, vectors[rows], train.labels[rows], settings)
            found = outcomes_of("oldhead", task, seed, head.predict(tested), test, None)
            replace(found, model=f"head {seed}").save(folder / f"{name}-{seed}.safetensors")
            print(f"{name}, head {seed}: {found.value:.2f}", flush=True)


def collect_finetunes(folder: Path, tasks: Path) -> None:
    import torch

    from cofuse import address
    from cofuse.measure.evaluation.protocols import _logits, outcomes_of
    from cofuse.tasks import draw, open_task
    from cofuse.tasks.finetune import Finetuning, Tuned, finetune
    from cofuse.tasks.model import load_body

    base, task = address.open(MINILM), open_task("sst2", folders=(tasks,))
    train, test = draw(task.examples("train"), 1500, [0x6A7E]), task.examples("test")
    settings = Finetuning(epochs=2, batch_size=32, learning_rate=1e-4, max_length=64)
    start = {n: t.detach().clone() for n, t in load_body(base).state_dict().items()}

    def said(tuned: Tuned, seed: int) -> Outcomes:
        logits = _logits(tuned, test)
        found = outcomes_of("zeroshot", task, 0, task.what.predict(logits), test, logits)
        return replace(found, model=f"finetune {seed}")

    goal = None
    for seed in range(FINETUNES):
        whole, back = folder / f"tuned-{seed}.safetensors", folder / f"back-{seed}.safetensors"
        if whole.exists() and (back.exists() or not seed):
            goal = Outcomes.load(whole).value - DROP if not seed else goal
            continue
        began = time.monotonic()
        tuned = finetune(base, task, train, settings, seed=seed)
        found = said(tuned, seed)
        found.save(whole)
        if goal is None:
            goal = found.value - DROP
            print(f"finetune {seed}: {found.value:.2f}, {time.monotonic() - began:.0f} s", flush=True)
            continue
        own = {n: t.detach().clone() for n, t in tuned.model.body.state_dict().items()}
        low, high, best = 0.0, 1.0, found
        for _ in range(5):  # how far back: 0 is the finetune, 1 its base
            middle = (low + high) / 2
            with torch.no_grad():
                for n, t in tuned.model.body.state_dict().items():
                    t.copy_(torch.lerp(own[n], start[n], middle) if t.is_floating_point() else own[n])
            tried = said(tuned, seed)
            best = min(best, tried, key=lambda o: abs(o.value - goal))
            low, high = (middle, high) if tried.value > goal else (low, middle)
        best.save(back)
        print(
            f"finetune {seed}: {found.value:.2f}, back {best.value:.2f}, {time.monotonic() - began:.0f} s", flush=True
        )


class Stream:
    """Examples of one task, drawn with replacement from real pairs of right and wrong, as many as are asked for."""

    def __init__(
        self, name: str, old: Outcomes, new: Outcomes, seed: list[int], *, drop: float = 0.0, fair: bool = True
    ):
        random = np.random.default_rng(seed)
        rows = random.integers(len(old), size=POPULATION)
        self.right = np.stack([old.right[rows], new.right[rows]])
        if fair:
            swapped = random.random(POPULATION) < 0.5
            self.right = np.where(swapped, self.right[::-1], self.right)
        if drop:
            right = float(np.mean(self.right[1]))
            self.right[1] &= random.random(POPULATION) >= drop / 100 / right
        self.name, self.true = name, new.value - old.value

    def pair(self, start: int, stop: int) -> tuple[list[Outcomes], list[Outcomes]]:
        rows = np.arange(start, stop)
        one = np.ones(stop - start, np.int64)
        old, new = (
            Outcomes.predicted(r[start:stop], one, examples=rows, model=m, task=self.name, protocol="oldhead")
            for r, m in zip(self.right, ("old", "new"), strict=True)
        )
        return [old], [new]


def heads(folder: Path) -> dict[str, list[Outcomes]]:
    return {t: [Outcomes.load(folder / f"{t}-{s}.safetensors") for s in range(HEADS)] for t in TASKS}


def suite(known: dict[str, list[Outcomes]], candidate: int, drop: float, fair: bool = True) -> list[Stream]:
    """A candidate: the same heads and the same task that drops whatever the drop."""
    random = np.random.default_rng([0xCA11, candidate])
    hit = random.integers(len(TASKS))
    found = []
    for i, name in enumerate(TASKS):
        a, b = random.choice(HEADS, size=2, replace=False)
        own = drop if i == hit else 0.0
        found.append(Stream(name, known[name][a], known[name][b], [0xE5A, candidate, i], drop=own, fair=fair))
    return found


def run(streams: list[Stream], policy: Policy, *, rapid: bool = False) -> Trial:
    by_name = {s.name: s for s in streams}
    trial = Trial([Item("oldhead", s.name, POPULATION) for s in streams], policy, rapid=rapid)
    for batch in trial:
        trial.take(*by_name[batch.task].pair(batch.start, batch.stop))
    return trial


def ended(trial: Trial) -> tuple[str, int]:
    """The verdict and the examples taken; all else takes megabytes."""
    return trial.verdict.state, trial.taken


def shown(what: str, done: list[tuple[str, int]]) -> dict[str, object]:
    counts = Counter(state for state, _ in done)
    examples = [taken for _, taken in done]
    n = len(done)
    low, high = Rate(counts["block"], n).interval(1.96)
    said = ", ".join(f"{state} {counts[state]}" for state in ("pass", "undecided", "block"))
    print(f"{what}: {said} of {n}; blocked {100 * counts['block'] / n:.1f} % ({low:.1f} to {high:.1f}); "
          f"{np.median(examples):,.0f} examples (median)", flush=True)  # fmt: skip
    return {"what": what, **counts, "n": n, "examples": float(np.median(examples))}


def simulated(folder: Path, candidates: int) -> Iterator[dict[str, object]]:
    known, policy = heads(folder), Policy()
    flips = [
        np.mean([np.mean(known[t][a].right != known[t][b].right) for a in range(HEADS) for b in range(a)])
        for t in TASKS
    ]
    print("flips between seeds:", ", ".join(f"{t} {100 * f:.1f} %" for t, f in zip(TASKS, flips, strict=True)))
    for what, drop in (("null", 0.0), ("2 points", DROP)):
        done = [ended(run(suite(known, i, drop), policy)) for i in range(candidates)]
        yield shown(what, done)
    done = []
    for i in range(candidates):
        streams = suite(known, i, 0.0, fair=False)
        if all(s.true >= -policy.max_drop for s in streams):
            done.append(ended(run(streams, policy)))
    if done:
        yield shown(f"raw, {len(done)} of {candidates} candidates with no task truly below the margin", done)


def finetuned(folder: Path) -> Iterator[dict[str, object]]:
    old, policy = Outcomes.load(folder / "tuned-0.safetensors"), Policy()
    kinds = (
        ("finetuned, other seeds, which is old drawn", "tuned", True),
        ("finetuned, other seeds as they are", "tuned", False),
        ("finetuned, taken back", "back", False),
    )
    for what, kind, fair in kinds:
        paths = [folder / f"{kind}-{s}.safetensors" for s in range(1, FINETUNES)]
        new = [Outcomes.load(path) for path in paths if path.exists()]
        if not fair:
            print(f"{what}: true differences", ", ".join(f"{n.value - old.value:+.2f}" for n in new))
        done = [
            [ended(run([Stream("sst2", old, n, [0xF1E, s, r], fair=fair)], policy)) for r in range(DRAWS)]
            for s, n in enumerate(new)
        ]
        yield shown(f"{what}, one draw each", [d[0] for d in done])
        yield shown(f"{what}, {DRAWS} draws each", [one for d in done for one in d])
        if kind == "tuned" and not fair:
            good = [d for d, n in zip(done, new, strict=True) if n.value - old.value >= -policy.max_drop]
            yield shown(f"of these, the {len(good)} not truly below the margin", [one for d in good for one in d])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--only", choices=("collect", "simulated", "finetuned"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.only in (None, "collect"):
        if options.tasks is None:
            parser.error("--tasks: where the tasks are")
        collect_heads(options.folder, options.tasks)
        collect_finetunes(options.folder, options.tasks)
    found = []
    if options.only in (None, "simulated"):
        found += simulated(options.folder, options.candidates)
    if options.only in (None, "finetuned"):
        found += finetuned(options.folder)
    if found:
        (options.folder / "calibration.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
