"""The page of a run: what its template is filled with. Every number comes from the summary or from a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..evolve.records import ContributionRecord, RoundRecord, ScoreRecord, by_kind
from .panels import Panel
from .scores import FUSE_ONCE, INTERTRAIN_MEAN, MULTITASK, PRETRAINED, SUITES, Scores
from .summary import ALL_TASKS, Difference, Row, Summary
from .svg import draw_panel
from .template import drawn, rendered
from .words import counted, protocol_words, score, setting_words, signed

_BASELINES = ((MULTITASK, "multitask"), (FUSE_ONCE, "fuse once"), (INTERTRAIN_MEAN, "mean of intertraining"))
# Below this, the range of the seeds itself is less than a 95 % interval.
FEW_SEEDS = 6
# Points of difference from which a cell is tinted more strongly.
_STEPS = (1.0, 3.0, 8.0)


@dataclass(frozen=True, slots=True)
class Block:
    """What the template shows of one protocol on one suite."""

    suite: str
    protocol: str
    name: str
    setting: str
    last: str | None
    headline: tuple[str, str, str]  # before the figure, the figure, after it
    baselines: tuple[tuple[str, str], ...]  # model, words
    tasks: tuple[tuple[str, str], ...]  # task, words
    models: tuple[str, ...]


def heading(scores: Scores) -> str:
    """What a run is called: its name, its rounds and its seeds."""
    study = scores.study
    name = str(study.get("name", "a run"))
    rounds = study.get("rounds") or len(scores.rounds())
    return f"{name}: {counted(rounds, 'round')}, {counted(len(scores.seeds), 'seed')}"


def draw_page(summary: Summary, charts: Sequence[Panel], records: Sequence[Any]) -> str:
    """The page as HTML: one file, no script, no outside request.

    Args:
        summary: of the run.
        charts: of the run.
        records: of the run, for rounds, lineage and seconds.

    Raises:
        CofuseError: jinja2 is not installed.
    """
    rounds: list[RoundRecord] = sorted(by_kind(tuple(records), "round"), key=lambda r: (r.seed, r.number))
    scores = summary.scores
    planned = scores.study.get("rounds")
    return rendered(
        "page",
        heading=heading(scores),
        summary=summary,
        scores=scores,
        blocks=_blocks(summary),
        charts=[(c, drawn(draw_panel(c, f"chart-{i}"))) for i, c in enumerate(charts)],
        words=protocol_words,
        counted=counted,
        tint=tint,
        all_tasks=ALL_TASKS,
        pretrained=PRETRAINED,
        intertrain_mean=INTERTRAIN_MEAN,
        lanes=[(seed, [r for r in rounds if r.seed == seed]) for seed in scores.seeds],
        refused=[(r, one) for r in rounds for one in r.refused],
        rounds_left=max(0, planned * len(scores.seeds) - len(rounds)) if planned else 0,
        others=_others(scores),
        facts=_facts(scores),
        yaml=_yaml(scores.study),
        work=_work(by_kind(tuple(records), "contribution"), by_kind(tuple(records), "score")),
        few_seeds=0 < len(scores.seeds) < FEW_SEEDS,
        limits=_limits(scores),
    )


def tint(found: Difference) -> str:
    """The class of a difference's cell: a direction and a strength, only where the interval does not include zero.

    >>> tint(Difference("round 1", "pretrained", "unseen", "a", "probe", "accuracy", 4.0, 1.0, 7.0, 3))
    'up3'
    """
    if not found.clear:
        return "level"
    strength = 1 + sum(abs(found.mean) >= step for step in _STEPS)
    return f"{'up' if found.mean > 0 else 'down'}{strength}"


def _blocks(summary: Summary) -> list[Block]:
    scores = summary.scores
    found = []
    for suite in SUITES:
        for protocol in scores.protocols(suite):
            there = [
                m for m in scores.models if any(_row(summary, m, suite, t, protocol) for t in scores.suites[suite])
            ]
            tasks = tuple((t, t) for t in scores.suites[suite])
            found.append(
                Block(
                    suite=suite,
                    protocol=protocol,
                    name=protocol_words(protocol),
                    setting=setting_words(scores.study, suite, protocol),
                    last=scores.last(suite, protocol),
                    headline=_headline(summary, suite, protocol),
                    baselines=tuple((m, words) for m, words in _BASELINES if m in there),
                    tasks=(*tasks, (ALL_TASKS, "mean")) if len(tasks) > 1 else tasks,
                    models=tuple(m for m in there if m != INTERTRAIN_MEAN),
                )
            )
    return found


def _row(summary: Summary, model: str, suite: str, task: str, protocol: str) -> Row | None:
    return summary.row(model, suite, task, protocol)


def _headline(summary: Summary, suite: str, protocol: str) -> tuple[str, str, str]:
    """What a protocol shows on a suite, no more than its interval says."""
    scores = summary.scores
    tasks = counted(len(scores.suites[suite]), f"{suite} task")
    last = scores.last(suite, protocol)
    found = last and summary.difference(last, PRETRAINED, suite, ALL_TASKS, protocol)
    if not last or not found:
        return f"On {tasks}, ", "nothing to compare yet", ": the pretrained base and a round must both be measured."
    before = summary.row(PRETRAINED, suite, ALL_TASKS, protocol)
    after = summary.row(last, suite, ALL_TASKS, protocol)
    assert before is not None  # a difference has both sides
    assert after is not None
    figure = f"{signed(found.mean)} points"
    spoken = f" over the pretrained base after {last} ({score(before.mean)} \N{RIGHTWARDS ARROW} {score(after.mean)}; "
    if found.bare:
        return f"On {tasks}: ", figure, f"{spoken}measured once, so there is no interval and nothing is shown by it)."
    spoken += f"95\N{NO-BREAK SPACE}% interval {signed(found.low)} to {signed(found.high)})."
    if not found.clear:
        spoken += " The interval includes zero: this run does not tell whether there is a change."
    return f"On {tasks}: ", figure, spoken


def _others(scores: Scores) -> list[tuple[str, list[tuple[int, str]]]]:
    """Measured models that are no rounds, with their commits by seed."""
    names = [m for m in scores.models if m not in {*scores.rounds(), PRETRAINED, INTERTRAIN_MEAN}]
    return [(m, [(s, c) for s in scores.seeds if (c := scores.commit(m, s))]) for m in names]


def _facts(scores: Scores) -> list[tuple[str, str]]:
    study = scores.study
    if not study:
        return []
    base = study.get("base")
    seen = len(scores.suites["seen"])
    people = study.get("contributors") or seen
    fusing = study.get("fuse") or {}
    facts = [
        ("base", base if isinstance(base, str) else "pretrained in this run"),
        ("seeds", ", ".join(map(str, scores.seeds))),
        ("contributors", f"{people}" + (f", {study['per_round']} drawn a round" if study.get("per_round") else "")),
        ("examples a contributor", "all" if study.get("examples") is None else f"{study['examples']:,}"),
        ("fused by", str(fusing.get("method", ""))),
        ("tasks", f"{seen} seen, {len(scores.suites['unseen'])} unseen"),
    ]
    return [*facts, *((f"version of {name}", version) for name, version in sorted(scores.versions.items()))]


def _yaml(study: dict[str, Any]) -> str:
    import yaml

    return (
        yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None) if study else ""
    )


def _work(trained: Sequence[ContributionRecord], measured: Sequence[ScoreRecord]) -> list[tuple[str, int, float]]:
    """Kinds of work, how many pieces, and their seconds together."""
    found: dict[str, list[float]] = {}
    for contribution in trained:
        found.setdefault(_kind(contribution.folder), []).append(contribution.seconds)
    for record in measured:
        found.setdefault(f"measuring: {protocol_words(record.protocol)}", []).append(record.seconds)
    return [(kind, len(seconds), sum(seconds)) for kind, seconds in found.items()]


def _kind(folder: str) -> str:
    """What a contribution was made for, by its place below the run's folder.

    >>> _kind("contributions/seed-0/round-2/even-0"), _kind("contributions/seed-0/multitask")
    ('contributions to rounds', 'multitask finetuning')
    """
    parts = PurePosixPath(folder).parts[1:]
    if parts == ("base",):
        return "pretraining the base"
    place = parts[1] if len(parts) > 1 else ""
    if place.startswith("round-"):
        return "contributions to rounds"
    return {"alone": "one-task finetuning", "multitask": "multitask finetuning"}.get(place, "other training")


def _limits(scores: Scores) -> list[str]:
    said = []
    seeds = len(scores.seeds)
    if seeds == 1:
        said.append("One seed: no interval here holds how much runs differ from each other.")
    elif seeds < FEW_SEEDS:
        # The median of a symmetric law lies outside the range of n values with probability 2 / 2^n.
        covered = round(100 * (1 - 2 ** (1 - seeds)))
        said.append(
            f"{counted(seeds, 'seed')}: a bootstrap over so few is narrower than it should be. Where there is one draw "
            f"and one task it reaches from the worst to the best seed at most, and that holds the true mean in about "
            f"{covered} of 100 cases, not in 95."
        )
    for suite in SUITES:
        if len(scores.suites[suite]) == 1 and scores.protocols(suite):
            said.append(f"One {suite} task: the intervals say nothing about other tasks.")
    said.append(
        "Intervals hold the variation of seeds, draws and (for means) tasks, not that of a finite test set; "
        "the numbers of test examples stand in the table of tasks."
    )
    said.append("Where a score was measured once, there is no interval.")
    said.append("Many intervals stand side by side and are not corrected for it: of twenty, one misses by chance.")
    if scores.unfinished:
        said.append(f"{counted(scores.unfinished, 'measurement')} not finished; their seeds are left out.")
    return said
