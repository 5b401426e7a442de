"""What contributors who attack can do to a round: ten real ones, of whom one to four attack, against each aggregator.

    python benchmarks/hub_poisoning.py --tasks FOLDER --models FOLDER --out FOLDER [--table]

Ten finetunings of MiniLM (MODELS/TASK-SEED-base/body, as benchmarks/fisher_merging.py leaves them) are the contributions. The
last k of them are replaced by what an attacker would send who knows all others. The fuse's score is the mean accuracy of
linear probes on tasks that nobody trained on. `screened` leaves out what the hub's checks beside the others would refuse, if
the policy says so; `gated` also asks the gate (old heads on three tasks) and keeps the base when it blocks. Every
measurement is a line of OUT/records.jsonl, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from minilm import Records, base

from cofuse.checkpoint import Checkpoint, Memory, open_local
from cofuse.fuse import fuse
from cofuse.hub.checks import BESIDE
from cofuse.hub.checks.beside import Beside, One
from cofuse.hub.checks.geometry import measure
from cofuse.hub.policy import Screen
from cofuse.hub.states import Checked
from cofuse.measure.evaluation.evaluating import Model
from cofuse.measure.evaluation.records import Records as Kept
from cofuse.measure.evaluation.suite import Suite, open_suite
from cofuse.measure.gate.policy import Policy
from cofuse.measure.gate.running import gate
from cofuse.tasks import draw, open_task
from cofuse.tasks.probe import Probe, Probing, features

HONEST = (
    *("chemprot-0", "customer_reviews-0", "go_emotions-0", "isear-0", "scierc-0"),
    *("sst2-0", "subj-0", "trec_coarse-0", "isear-1", "sst2-1"),
)
UNSEEN = ("rotten_tomatoes", "trec_fine", "tweeteval_sentiment")
GATED = ("sst2", "subj", "trec_coarse")
TRAIN, TEST = 400, 500  # examples of a probe
PROBING = Probing(max_length=32, standardize=True, c=0.01)
SCREEN = Screen(norm="refuse", direction="refuse", predicted="skip", evaluation="skip")
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "median": {},
    "trimmed_mean": {"trim": 0.2},
    "krum": {},
    "multi_krum": {},
    "geometric_median": {},
    "norm_clip": {},
}
GUARDED = ("linear", "norm_clip")  # also screened, and screened and gated
NUMBERS = (1, 2, 3, 4)

Model_ = dict[str, torch.Tensor]


def flip(own: Model_, others: Sequence[Model_], start: Model_, seed: int) -> Model_:
    """The own change, turned round."""
    return {n: start[n] - (own[n] - start[n]) for n in own}


def scale(own: Model_, others: Sequence[Model_], start: Model_, seed: int) -> Model_:
    """Turned round, and ten times as long."""
    return {n: start[n] - 10 * (own[n] - start[n]) for n in own}


def noise(own: Model_, others: Sequence[Model_], start: Model_, seed: int) -> Model_:
    """Noise, ten times as long as the own change, tensor by tensor."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for n in own:
        drawn = torch.randn(own[n].shape, generator=random)
        found[n] = start[n] + 10 * drawn * ((own[n] - start[n]).norm() / drawn.norm().clamp(min=1e-30))
    return found


def alie(own: Model_, others: Sequence[Model_], start: Model_, seed: int) -> Model_:
    """A little is enough: the honest mean less 1.5 deviations, coordinate by coordinate (Baruch et al., arXiv 1902.06156)."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for n in own:
        stack = torch.stack([other[n] for other in others])
        deviation = stack.std(0)
        # No two the same, or they would be refused as one.
        found[n] = stack.mean(0) - 1.5 * deviation + 1e-4 * deviation * torch.randn(own[n].shape, generator=random)
    return found


ATTACKS: dict[str, Callable[[Model_, Sequence[Model_], Model_, int], Model_]] = {
    "flip": flip,
    "scale": scale,
    "noise": noise,
    "alie": alie,
}


class Study:
    """What is measured, and what it is measured with."""

    def __init__(self, tasks: Path, models: Path, out: Path) -> None:
        self.base, self.out = base(), out
        self.records = Records(out)
        self.honest = [open_local(models / f"{name}-base" / "body") for name in HONEST]
        self.unseen = [open_task(str(tasks / name)) for name in UNSEEN]
        said = {"name": "gate", "tasks": list(GATED)}
        settings = {"examples": TRAIN, "test": TEST, "probing": PROBING.model_dump()}
        suite = Suite.model_validate({**said, "protocols": {"oldhead": settings}})
        self.suite = open_suite(suite, [tasks], protocols=["oldhead"])

    def score(self, model: Checkpoint) -> float:
        """Mean accuracy of probes on tasks that nobody trained on."""
        found = []
        for task in self.unseen:
            train, test = draw(task.examples("train"), TRAIN, [1]), draw(task.examples("test"), TEST, [2])
            probe = Probe(task, features(model, task, train, PROBING), train.labels, PROBING)
            found.append(task.score(probe.predict(features(model, task, test, PROBING)), test.labels))
        return fmean(found)

    def offered(self, attack: str, count: int) -> list[Checkpoint]:
        """Contributions, the last `count` of them an attacker's."""
        if not count:
            return list(self.honest)
        start = _loaded(self.base)
        kept = self.honest[: len(self.honest) - count]
        loaded = [_loaded(one) for one in kept]
        found: list[Checkpoint] = list(kept)
        for i, own in enumerate(self.honest[len(kept) :]):
            made = ATTACKS[attack](_loaded(own), loaded, start, 100 + i)
            others = {n: own.read(n) for n in own.names() if n not in made}
            found.append(Memory({**made, **others}, files=self.base.files))
        return found

    def refused(self, offered: Sequence[Checkpoint]) -> list[int]:
        """Which of them the hub's checks refuse, each from an account of its own."""
        geometry = measure([(one, self.base) for one in offered])
        them = Beside([One(i, f"account {i}", None) for i in range(len(offered))], geometry, False, SCREEN)
        return sorted({i for look in BESIDE.values() for i, said in look(them).items() if said.state is Checked.REFUSE})

    def fused(self, method: str, offered: Sequence[Checkpoint], folder: Path) -> Checkpoint:
        """The fuse, on disk; of too few for the method, their mean."""
        needs_base = method == "norm_clip"
        made = fuse(method, list(offered), base=self.base if needs_base else None, **METHODS[method])
        made.save(folder)
        for name, data in self.base.files.items():
            (folder / name).write_bytes(data)
        return open_local(folder)

    def verdict(self, folder: Path) -> str:
        """What the gate says of it against the base."""
        old = Model.of("base", base)
        new = Model.of("fuse", partial(open_local, folder))
        found = gate(old, new, self.suite, Policy(), Kept(self.out / "gate"), cache=self.out / "features")
        return found.verdict.state

    def measure(self, attack: str, count: int, offered: Sequence[Checkpoint]) -> None:
        """All that is asked of one attack by so many."""
        import shutil

        out_of = len(offered) - count
        refused: list[int] | None = None
        folder = self.out / "fused"
        for method in METHODS:
            for guard in ("", "screened", "gated") if method in GUARDED else ("",):
                key = (attack, count, method, guard)
                if tuple(key) in self.records.known:
                    continue

                def work(method: str = method, guard: str = guard) -> dict[str, Any]:
                    nonlocal refused
                    shutil.rmtree(folder, ignore_errors=True)
                    kept = list(offered)
                    told: dict[str, Any] = {}
                    if guard:
                        if refused is None:
                            refused = self.refused(offered)
                        kept = [one for i, one in enumerate(offered) if i not in refused]
                        honest = [i for i in refused if i < out_of]
                        told = {"honest_refused": len(honest) / out_of, "attackers_refused": len(refused) - len(honest)}
                    model = self.fused(method, kept, folder)
                    if guard == "gated":
                        told["verdict"] = self.verdict(folder)
                        if told["verdict"] == "block":
                            return {**told, "score": self.pretrained()}
                    return {**told, "score": round(self.score(model), 3)}

                self.records.get(key, work)

    def pretrained(self) -> float:
        """The base's own score."""
        found = self.records.get(("base", 0, "", ""), lambda: {"score": round(self.score(self.base), 3)})
        return float(found["score"])


def _loaded(model: Checkpoint) -> Model_:
    found = {n: model.read(n) for n in model.names()}
    return {n: t for n, t in found.items() if t.is_floating_point()}


def table(records: Records) -> str:
    """Markdown: the fuse's score by aggregator and attack, and what was refused."""
    known = records.known
    columns = [(m, g) for m in METHODS for g in (("", "screened", "gated") if m in GUARDED else ("",))]
    names = [f"{m}{', ' + g if g else ''}" for m, g in columns]
    lines = [f"| attack | of 10 | {' | '.join(names)} | honest refused | attackers refused |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for attack, count in [("none", 0), *((a, n) for a in ATTACKS for n in NUMBERS)]:
        cells = []
        screened = known.get((attack, count, "norm_clip", "screened"))
        for m, g in columns:
            row = known.get((attack, count, m, g))
            cells.append(
                "" if row is None else f"{row['score']:.1f}" + (" (held)" if row.get("verdict") == "block" else "")
            )
        out = (
            ""
            if screened is None
            else f"{100 * screened['honest_refused']:.0f} % | {screened['attackers_refused']} of {count}"
        )
        lines.append(f"| {attack} | {count} | {' | '.join(cells)} | {out} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        study = Study(given.tasks, given.models, given.out)
        print("base", study.pretrained())
        # The ends first: a run that is cut short lacks what is between them.
        for attack, count in [("none", 0), *((a, n) for n in (1, 4, 2, 3) for a in ("scale", "alie", "flip", "noise"))]:
            study.measure(attack, count, study.offered(attack, count))
    records = Records(given.out)
    print(table(records))
    print(f"{records.minutes:.1f} minutes of processor time")


if __name__ == "__main__":
    main()
