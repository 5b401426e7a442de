"""Records as a run writes them, without a run: scores follow a plain law with seeded noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cofuse.evolve.records import (
    Accepted,
    BegunRecord,
    ContributionRecord,
    ModelRecord,
    Refused,
    RoundRecord,
    ScoreRecord,
    job_id,
)

SEEN = ("sst2", "ag_news", "esnli", "chemprot", "clinc150", "sst5", "dbpedia", "qnli")
UNSEEN = ("rotten_tomatoes", "isear", "scierc", "trec_coarse", "cola", "mrpc")
PROTOCOLS = {"probe": 3, "fewshot": 3, "finetune": 1}  # and their draws
# Points that a protocol and suite gain over all rounds.
GAINS = {"probe": 6.0, "fewshot": 3.0, "finetune": 0.3}


def study(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rounds: int = 6,
    seen: Sequence[str] = SEEN,
    unseen: Sequence[str] = UNSEEN,
    protocols: dict[str, int] = PROTOCOLS,
    baselines: bool = True,
    refuse: bool = True,
    begun: bool = True,
    metrics: dict[str, str] | None = None,
) -> list[Any]:
    """The records of a finished study."""
    found: list[Any] = []
    if begun:
        found.append(_begun(seeds, rounds, seen, unseen, protocols, baselines))
    # As a run does: the base is committed once, before any seed is thought of.
    found.append(_model("pretrained", 0, id="base"))
    models: list[tuple[str, int]] = []
    for seed in seeds:
        models += [("pretrained", seed)]
        for number in range(1, rounds + 1):
            found += [_contribution(f"seed-{seed}/round-{number}/{t}-{i}", t) for i, t in enumerate(seen)]
            found.append(_round(seed, number, seen, refuse and (seed, number) == (seeds[0], 2)))
            models.append((f"round {number}", seed))
        if baselines:
            found.append(_contribution(f"seed-{seed}/multitask", "multitask"))
            found += [_contribution(f"seed-{seed}/alone/{t}", t) for t in seen]
            models += [("multitask", seed), ("fuse once", seed), *((f"intertrain:{t}", seed) for t in seen)]
    for name, seed in models:
        found.append(_model(name, seed))
        found += _scores(name, seed, rounds, seen, unseen, protocols, metrics or {})
    return found


def _begun(
    seeds: Sequence[int],
    rounds: int,
    seen: Sequence[str],
    unseen: Sequence[str],
    protocols: dict[str, int],
    baselines: bool,
) -> BegunRecord:
    evaluate = {p: {"every": 1, "draws": draws, "examples": 100, "test": 300} for p, draws in protocols.items()}
    return BegunRecord(
        id="begun",
        study={
            "name": "text",
            "base": "hf:sentence-transformers/all-MiniLM-L6-v2",
            "seeds": list(seeds),
            "seen": list(seen),
            "unseen": list(unseen),
            "rounds": rounds,
            "contributors": None,
            "per_round": None,
            "examples": 640,
            "finetune": {"learning_rate": 0.00015, "batch_size": 16, "steps": 40},
            "fuse": {"method": "linear", "parameters": {}},
            "evaluate_seen": evaluate,
            "evaluate_unseen": evaluate,
            "baselines": {"steps": 80, "intertrain": baselines, "fuse_once": baselines, "multitask": None},
            "task_ids": {t: _digest("task", t) for t in (*seen, *unseen)},
        },
        versions={"cofuse": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def content(name: str, seed: int) -> str:
    """The content id of a model: the pretrained one is the same for every seed."""
    return _digest("content", name, 0 if name == "pretrained" else seed)


def commit(name: str, seed: int) -> str:
    """The commit of a model."""
    return _digest("commit", name, 0 if name == "pretrained" else seed)


def _model(name: str, seed: int, id: str | None = None) -> ModelRecord:  # noqa: A002
    return ModelRecord(
        id=id or job_id("model", name=name, seed=seed),
        name=name,
        seed=seed,
        commit=commit(name, seed),
        tree=_digest("tree", name, seed),
        content=content(name, seed),
    )


def _contribution(folder: str, task: str) -> ContributionRecord:
    return ContributionRecord(
        id=_digest("contribution", folder),
        folder=f"contributions/{folder}",
        task=task,
        examples=640,
        steps=40,
        validation=None,
        seconds=9.5,
    )


def _round(seed: int, number: int, seen: Sequence[str], refuse: bool) -> RoundRecord:
    random = np.random.default_rng([seed, number])
    people = [f"{task}-{i}" for i, task in enumerate(seen)]
    name = f"round {number}"
    return RoundRecord(
        id=_digest("round", seed, number),
        seed=seed,
        number=number,
        commit=commit(name, seed),
        tree=_digest("tree", name, seed),
        content=content(name, seed),
        accepted=tuple(
            Accepted(
                who=p, content=_digest(p, seed, number), norm=random.uniform(0.01, 0.03), cosine=random.uniform(0, 0.4)
            )
            for p in people
        ),
        refused=(Refused(who="offer broken", reason="a value is not finite, in w.weight, got nan at element 7"),)
        if refuse
        else (),
    )


def _scores(
    name: str,
    seed: int,
    rounds: int,
    seen: Sequence[str],
    unseen: Sequence[str],
    protocols: dict[str, int],
    metrics: dict[str, str],
) -> Iterator[ScoreRecord]:
    share = {"pretrained": 0.0, "multitask": 1.1, "fuse once": 0.45}.get(name)
    if share is None:
        number = int(name.split()[1]) if name.startswith("round") else 0
        share = 1 - 0.45**number if number else -0.3 + 0.1 * (len(name) % 5)
    for suite, tasks in (("unseen", unseen), ("seen", seen)):
        for i, task in enumerate(tasks):
            for protocol, draws in protocols.items():
                # The same for every model of a seed: what pairing takes out of a difference.
                level = 45 + 4.0 * i + np.random.default_rng([seed, i]).normal(0, 1.5, draws)
                mine = np.random.default_rng(list(_digest(name, seed, task, protocol)[:16].encode()))
                gain = GAINS.get(protocol, 1.0) * (1.6 if suite == "seen" else 1.0) * share * (0.4 + 0.2 * i)
                values = level + gain + mine.normal(0, 0.5, draws)
                yield ScoreRecord(
                    id=_digest("score", name, seed, suite, task, protocol),
                    content=content(name, seed),
                    seed=seed,
                    suite=suite,
                    task=task,
                    protocol=protocol,
                    metric=(metrics or {}).get(task, "accuracy"),
                    values=tuple(round(float(v), 6) for v in values),
                    tested=300,
                    seconds=2.25,
                )
