"""What Fisher merging is worth: MiniLM finetuned on real tasks, merged in pairs, in a group, and with a domain's donor.

    python benchmarks/fisher_merging.py --tasks FOLDER --out FOLDER [--seeds 3] [--table]

Every task is judged by the head that was trained with it, on the merged body. Lambda is chosen on validation data and the score
is of test data. Every measurement is a line of OUT/records.jsonl, and every model and statistic a folder in OUT, so that a
run that was stopped goes on where it was; `--table` only prints what is there. The seed draws the examples, the head and
their order; seeds come last, so a run that is cut short has fewer of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minilm import Records, base

from cofuse.checkpoint import Checkpoint, open_local
from cofuse.measure.choosing.searching import Searched, mixtures, search
from cofuse.measure.intervals import interval
from cofuse.measure.statistics.fisher import fisher
from cofuse.measure.statistics.gram import gram
from cofuse.measure.subject import module_subject, tuned_subject
from cofuse.tasks import Examples, Task, draw, open_task
from cofuse.tasks.adapt import Hide, MaskedLanguage, adapt, masked_model
from cofuse.tasks.finetune import Finetuning, TaskModel, finetune
from cofuse.tasks.kinds import Encoded
from cofuse.tasks.kinds.text import encode, tokenizer_of
from cofuse.tasks.model import Head, body_width, forward_all, load_body, names_in
from cofuse.tasks.training import Rows

PAIRS = (("customer_reviews", "sst2"), ("isear", "go_emotions"), ("trec_coarse", "subj"), ("sst2", "isear"))
GROUP = ("customer_reviews", "sst2", "isear", "go_emotions", "trec_coarse", "subj")
SCIENCE = ("chemprot", "scierc")
TRAIN, VALIDATION, TEST = 1024, 256, 500  # examples
MEASURED, MEASURED_SCIENCE = 256, 128  # by statistics; chemprot has 13 classes, and a backward pass for each
GRID = 9  # lambdas: 0, 1/8, ..., 1
HALF = (0.5, 0.5)
TUNING = Finetuning(
    learning_rate=1e-4, head_learning_rate=2e-3, steps=96, batch_size=16, max_length=64, dropout=0.1, weight_decay=0.01
)
READING = MaskedLanguage(steps=150, batch_size=16, max_length=64)
PAPER = {"normalize_by": "rms", "floor": 1e-6, "floor_on": "target"}
# What is searched over lambda: a name, the statistic, the method's parameters.
WAYS: dict[str, tuple[str | None, Mapping[str, Any]]] = {
    "mean": (None, {}),
    "fisher": ("fisher", {}),
    "fisher, paper": ("fisher", PAPER),
    "regmean": ("gram", {}),
}


class Study:
    """A run: its folder, its records, and what was trained."""

    def __init__(self, tasks: Path, out: Path, until: float) -> None:
        self.tasks, self.out, self.until = tasks, out, until
        self.records = Records(out)
        self.known = self.records.known
        self.base: Checkpoint = base()

    def record(self, key: tuple[Any, ...], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is known of a key; found and kept when it is not."""
        if key not in self.known and time.monotonic() > self.until:
            raise SystemExit(3)
        return self.records.get(key, work)

    @cache  # noqa: B019  (one study a process)
    def task(self, name: str) -> Task:
        return open_task(str(self.tasks / name))

    @cache  # noqa: B019
    def encoded(self, name: str, split: Any) -> Encoded:
        task = self.task(name)
        rows = task.examples(split).first(TEST if split == "test" else VALIDATION)
        return task.what.encode(rows, self.base, TUNING.max_length)

    def tuned(self, name: str, seed: int, start: str = "base") -> Path:
        """The folder with a finetuned body, its head, and its statistics."""
        folder = self.out / "models" / f"{name}-{seed}-{start}"

        def work() -> dict[str, Any]:
            task = self.task(name)
            examples = draw(task.examples("train"), TRAIN, [7, seed])
            begin = self.base if start == "base" else open_local(self.donor())
            tuned = finetune(begin, task, examples, TUNING, seed=seed)
            subject = tuned_subject(tuned)
            subject.checkpoint.save(folder / "body")
            if start == "base":
                some = examples.first(MEASURED_SCIENCE if name in SCIENCE else MEASURED)
                fisher(subject, some, split="train").save(folder / "fisher")
                gram(subject, some, split="train").save(folder / "gram")
            np.savez(folder / "head.npz", **{k: v.numpy() for k, v in tuned.model.head.state_dict().items()})
            return {}

        self.record(("tuned", name, seed, start), work)
        return folder

    def donor(self) -> Path:
        """The folder with the base that has read both science tasks' train texts, and its Fisher on them."""
        folder = self.out / "models" / "donor"

        def work() -> dict[str, Any]:
            texts = [t for name in SCIENCE for t in self.task(name).examples("train").inputs["text"]]
            read = adapt(self.base, texts, READING, seed=0)
            read.save(folder)
            measured = read_fisher(open_local(folder), texts[:: len(texts) // MEASURED_SCIENCE][:MEASURED_SCIENCE])
            measured.save(self.out / "models" / "donor-fisher")
            return {"texts": len(texts)}

        self.record(("donor",), work)
        return folder

    def score(self, body: Checkpoint, name: str, seed: int, split: str, start: str = "base") -> float:
        """A body with the head that was trained on a task."""
        task, encoded = self.task(name), self.encoded(name, split)
        module = load_body(body)
        head = Head(body_width(module), task.outputs, 0.0, 0)
        with np.load(self.out / "models" / f"{name}-{seed}-{start}" / "head.npz") as kept:
            head.load_state_dict({k: torch.from_numpy(kept[k]) for k in kept.files})
        model = TaskModel(module, head, task.what, TUNING.pooling).eval()
        logits = forward_all(lambda batch: model(**batch)["logits"], task.what, encoded, TUNING.precision)
        return task.score(task.what.predict(logits), encoded.labels)

    def scores(self, body: Checkpoint, names: Sequence[str], seed: int, split: str) -> list[float]:
        return [self.score(body, name, seed, split) for name in names]


def read_fisher(body: Checkpoint, texts: Sequence[str]) -> Checkpoint:
    """The Fisher of a model that fills in hidden words, the words drawn from the model."""
    module = masked_model(body, 0)
    tokenizer = tokenizer_of(body)
    rows = Rows(encode(Examples({"text": list(texts)}, np.zeros(len(texts), np.int64)), body, TUNING.max_length))
    hide = Hide(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), len(tokenizer), READING.share, 0)
    batch = {name: tensor.numpy() for name, tensor in hide([rows[i] for i in range(len(rows))]).items()}
    labels = np.where(batch.pop("labels") >= 0, 0, -1)  # which positions count; the words are drawn
    names = names_in(module, set(body.names()))
    subject = module_subject(module, "tokens", checkpoint=body, names=names, logits=lambda out: out.logits)
    return fisher(subject, Examples(batch, labels), kind="sampled", split="train", batch_size=16)


def searched(
    study: Study,
    key: tuple[Any, ...],
    bodies: Sequence[Checkpoint],
    statistics: Mapping[str, Sequence[Checkpoint]],
    validate: Callable[[Checkpoint], list[float]],
    test: Callable[[Checkpoint], list[float]],
) -> None:
    """Validation scores of the whole grid and test scores where it is best, for every way; one record a way."""
    for way, (statistic, parameters) in WAYS.items():
        if statistic is not None and statistic not in statistics:
            continue
        given = None if statistic is None else {statistic: statistics[statistic]}

        def work(given: Any = given, parameters: Any = parameters, way: str = way) -> dict[str, Any]:
            seen: dict[tuple[float, ...], list[float]] = {}
            grid = mixtures(2, GRID)
            if way != "mean":  # both ends are the models themselves, whatever the way
                ends = study.known[(*key, "mean")]["scores"]
                seen = {grid[0]: ends[0], grid[-1]: ends[-1]}
            kept: dict[tuple[float, ...], Searched] = {}

            def one(weights: tuple[float, ...]) -> Searched:
                if weights not in kept:
                    kept[weights] = search(bodies, lambda _: 0.0, statistics=given, weights=[weights], **parameters)
                return kept[weights]

            for weights in grid:
                if weights not in seen:
                    seen[weights] = validate(one(weights).fused)
            wanted = {"half": HALF}
            for i, aim in enumerate(["first", "second"][: len(seen[HALF])]):
                wanted[aim] = max(grid, key=lambda w: (seen[w][i], w[i]))
            if len(seen[HALF]) == 2:
                wanted["both"] = max(grid, key=lambda w: (sum(seen[w]), -abs(w[0] - 0.5)))
            tested: dict[tuple[float, ...], list[float]] = {}
            for weights in dict.fromkeys(wanted.values()):
                tested[weights] = test(one(weights).fused)
            return {
                "scores": [seen[w] for w in grid],
                "chosen": {aim: w[0] for aim, w in wanted.items()},
                "test": {aim: tested[w] for aim, w in wanted.items()},
            }

        study.record((*key, way), work)


def pairs(study: Study, seed: int) -> None:
    """Pairs: both models' tasks by both models' heads."""
    for pair in PAIRS:
        folders = [study.tuned(name, seed) for name in pair]
        bodies = [open_local(folder / "body") for folder in folders]
        statistics = {s: [open_local(folder / s) for folder in folders] for s in ("fisher", "gram")}
        for name, body in zip(pair, bodies, strict=True):
            key = ("alone", name, seed, *pair)
            study.record(key, lambda body=body, pair=pair: {"test": study.scores(body, pair, seed, "test")})
        searched(
            study,
            ("pair", *pair, seed),
            bodies,
            statistics,
            partial(study.scores, names=pair, seed=seed, split="validation"),
            partial(study.scores, names=pair, seed=seed, split="test"),
        )


def group(study: Study, seed: int) -> None:
    """All models at once, with equal weights, and the one model that is best on the mean of the tasks."""
    from cofuse.fuse import fuse

    folders = [study.tuned(name, seed) for name in GROUP]
    bodies: list[Checkpoint] = [open_local(folder / "body") for folder in folders]
    for way, (statistic, parameters) in WAYS.items():
        given = None if statistic is None else {statistic: [open_local(folder / statistic) for folder in folders]}
        method = {"fisher": "fisher", "gram": "regmean", None: "linear"}[statistic]

        def work(given: Any = given, method: str = method, parameters: Any = parameters) -> dict[str, Any]:
            return {"test": study.scores(fuse(method, bodies, statistics=given, **parameters), GROUP, seed, "test")}

        if way != "fisher, paper":  # has a target, which a group has not
            study.record(("group", seed, way), work)
    for name, body in zip(GROUP, bodies, strict=True):
        study.record(("group", seed, name), lambda body=body: {"test": study.scores(body, GROUP, seed, "test")})


def domain(study: Study, seed: int) -> None:
    """Science tasks: finetuned from the base, the same merged with the donor, and finetuned from the donor."""
    donor = study.donor()
    for name in SCIENCE:
        folder = study.tuned(name, seed)
        bodies = [open_local(folder / "body"), open_local(donor)]
        statistics = {"fisher": [open_local(folder / "fisher"), open_local(donor.with_name("donor-fisher"))]}
        searched(
            study,
            ("domain", name, seed),
            bodies,
            statistics,
            lambda body, name=name: [study.score(body, name, seed, "validation")],
            lambda body, name=name: [study.score(body, name, seed, "test")],
        )
        study.record(
            ("unmerged", name, seed),
            lambda name=name, body=bodies[0]: {"test": [study.score(body, name, seed, "test")]},
        )
        start = study.tuned(name, seed, "donor")
        study.record(
            ("from donor", name, seed),
            lambda name=name, start=start: {
                "test": [study.score(open_local(start / "body"), name, seed, "test", "donor")]
            },
        )


def tables(known: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> Iterator[str]:
    """Markdown of what is there."""
    from scipy.stats import wilcoxon

    def values(rows: Sequence[Any]) -> Any:
        return np.array(rows, float)

    def compared(first: Sequence[float], second: Sequence[float], shape: tuple[int, int]) -> str:
        gain = values(first) - values(second)
        found = interval(gain.reshape(*shape, 1))
        p = wilcoxon(gain).pvalue if np.any(gain) else 1.0
        return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}], p {p:.2f}"

    seeds = [s for s in range(9) if all(("pair", *pair, s, way) in known for pair in PAIRS for way in WAYS)]
    if seeds:
        yield f"Pairs, seeds {seeds}; test accuracy, mean of both tasks ({len(seeds) * len(PAIRS)} merges a row):\n"
        yield "| way | lambda 1/2 | minus mean | lambda chosen for both | minus mean | chosen for one task | minus unmerged |"
        yield "|---|---|---|---|---|---|---|"
        shape = (len(PAIRS), len(seeds))
        cells: dict[tuple[str, str], list[float]] = {}
        alone: list[float] = []
        for pair in PAIRS:
            for s in seeds:
                own = [known["alone", name, s, *pair]["test"] for name in pair]
                alone.append((own[0][0] + own[1][1]) / 2)
                cells.setdefault(("best single", "half"), []).append(max(map(np.mean, own)))
                for way in WAYS:
                    test = known["pair", *pair, s, way]["test"]
                    cells.setdefault((way, "half"), []).append(float(np.mean(test["half"])))
                    cells.setdefault((way, "both"), []).append(float(np.mean(test["both"])))
                    cells.setdefault((way, "target"), []).append((test["first"][0] + test["second"][1]) / 2)
        for way in WAYS:
            row = [way]
            for aim in ("half", "both"):
                row.append(f"{np.mean(cells[way, aim]):.1f}")
                row.append("" if way == "mean" else compared(cells[way, aim], cells["mean", aim], shape))
            row += [f"{np.mean(cells[way, 'target']):.1f}", compared(cells[way, "target"], alone, shape)]
            yield f"| {' | '.join(row)} |"
        single = cells["best single", "half"]
        yield f"| best single model on both | {np.mean(single):.1f} | {compared(single, cells['mean', 'half'], shape)} | | | | |"
        yield f"| each model on its own task | {np.mean(alone):.1f} | | | | {np.mean(alone):.1f} | |\n"
        yield "| pair | " + " | ".join(f"{way}, 1/2" for way in WAYS) + " | best single | own |"
        yield "|---|" + "---|" * (len(WAYS) + 2)
        for i, pair in enumerate(PAIRS):
            part = slice(i * len(seeds), (i + 1) * len(seeds))
            row = [f"{np.mean(cells[way, 'half'][part]):.1f}" for way in WAYS]
            row += [f"{np.mean(single[part]):.1f}", f"{np.mean(alone[part]):.1f}"]
            yield f"| {' + '.join(pair)} | {' | '.join(row)} |"
    grouped = [s for s in range(9) if ("group", s, GROUP[-1]) in known]
    if grouped:
        yield f"\nGroup of {len(GROUP)}, seeds {grouped}, equal weights:\n"
        yield f"| way | {' | '.join(GROUP)} | mean | minus mean |"
        yield "|---|" + "---|" * (len(GROUP) + 2)
        found = {
            way: values([known["group", s, way]["test"] for s in grouped]).T for way in WAYS if way != "fisher, paper"
        }
        singles = {name: values([known["group", s, name]["test"] for s in grouped]).T for name in GROUP}
        best = max(singles, key=lambda name: singles[name].mean())
        found |= {f"best single ({best})": singles[best]}
        found |= {"own": np.array([singles[name][i] for i, name in enumerate(GROUP)])}
        for way, scores in found.items():
            against = "" if way == "mean" else compared(scores.ravel(), found["mean"].ravel(), scores.shape)
            yield f"| {way} | {' | '.join(f'{x:.1f}' for x in scores.mean(1))} | {scores.mean():.1f} | {against} |"
    done = [s for s in range(9) if all(("from donor", name, s) in known for name in SCIENCE)]
    if done:
        yield f"\nDomain, seeds {done}; test accuracy:\n"
        yield f"| | {' | '.join(SCIENCE)} | minus unmerged |"
        yield "|---|" + "---|" * (len(SCIENCE) + 1)
        rows = {"unmerged": values([[known["unmerged", name, s]["test"][0] for s in done] for name in SCIENCE])}
        for way in WAYS:
            if ("domain", SCIENCE[-1], done[-1], way) in known:
                rows[f"merged with the donor, {way}"] = values(
                    [[known["domain", name, s, way]["test"]["first"][0] for s in done] for name in SCIENCE]
                )
        rows["finetuned from the donor"] = values(
            [[known["from donor", n, s]["test"][0] for s in done] for n in SCIENCE]
        )
        for way, scores in rows.items():
            against = "" if way == "unmerged" else compared(scores.ravel(), rows["unmerged"].ravel(), scores.shape)
            yield f"| {way} | {' | '.join(f'{x:.1f}' for x in scores.mean(1))} | {against} |"
        for way in WAYS:
            if ("domain", SCIENCE[-1], done[-1], way) in known:
                chosen = [[known["domain", n, s, way]["chosen"]["first"] for s in done] for n in SCIENCE]
                yield f"\nlambda of the target, {way}: {chosen}"
    yield f"\n{sum(row['seconds'] for row in known.values()) / 60:.0f} minutes of processor time"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop with status 3 after so many")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(options.tasks, options.out, time.monotonic() + 60 * options.minutes)
    for seed in range(0 if options.table else options.seeds):
        for part in (pairs, group, domain):
            part(study, seed)
    print("\n".join(tables(study.known)))


if __name__ == "__main__":
    main()
