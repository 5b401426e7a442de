"""Which weights to merge models with: a search over a grid, by a score on validation data.

Candidates are fused lazily and read once, into whatever evaluates them; nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checkpoint import Checkpoint, Hashed
from ...errors import TaskError
from ...fuse import METHODS, Fused, fuse
from ...progress import SILENT, Progress

# As many as the paper's grid of a pair has: 0, 0.02, ..., 1.
GRID = 51

Weights = tuple[float, ...]
Evaluate = Callable[[Checkpoint], float]


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search found.

    Attributes:
        weights: of the best candidate, one for each model, the target's first.
        score: its score.
        scores: every candidate's, by its weights, in the order of the grid.
        fused: the best candidate, lazy.
    """

    weights: Weights
    score: float
    scores: Mapping[Weights, float]
    fused: Checkpoint


def mixtures(models: int, count: int = GRID, seed: int = 0) -> list[Weights]:
    """Weights that sum to 1, to be tried.

    For two models the grid lambda = 1, ..., 0 in equal steps, (lambda, 1 - lambda). For more, equal weights, each model
    alone, and draws that are uniform over all mixtures.

    Source: Merging models with Fisher-weighted averaging, arXiv 2111.09832, sec. 4 (the grid; draws for more models).

    >>> mixtures(2, 3)
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    >>> len(mixtures(3)), {round(sum(w), 9) for w in mixtures(3)}
    (51, {1.0})
    """
    if models < 2 or count < 2:
        raise TaskError("nothing to search", got=f"{models} models, {count} mixtures", expected="at least 2 of each")
    if models == 2:
        shares = [i / (count - 1) for i in range(count)]
        return [(1.0 - share, share) for share in shares]
    alone = [tuple(float(i == j) for j in range(models)) for i in range(models)]
    found: list[Weights] = [(1.0 / models,) * models, *alone]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(models), max(0, count - len(found)))
    return [*found, *(tuple(map(float, row)) for row in drawn)][:count]


def search(
    models: Sequence[Checkpoint],
    evaluate: Evaluate,
    *,
    statistics: Mapping[str, Sequence[Checkpoint | None]] | None = None,
    method: str = "",
    weights: Sequence[Weights] | None = None,
    progress: Progress = SILENT,
    **parameters: Any,
) -> Searched:
    """The best mixture of some models, the target first.

    Args:
        models: the target and its donors.
        evaluate: a score of a checkpoint, the higher the better, on validation data: what is reported must be measured on
            other data, because the best of many is lucky.
        statistics: the models', as `fuse` takes them.
        method: `fisher` or `regmean` as the statistics are when not given; without statistics `linear`, the control.
        weights: mixtures to try; `mixtures(len(models))` when None.
        progress: told of every candidate.
        parameters: more of the method's.

    Returns:
        The best; among equal ones that with the most of the target. A score that is no finite number is the worst.

    Raises:
        TaskError: there is nothing to try, or no candidate has a finite score.
        FuseError: the models do not fit together, or statistics are another model's.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> models = [Memory({"x": torch.tensor([v])}) for v in (0.0, 1.0)]
    >>> found = search(models, lambda fused: -abs(float(fused.read("x")) - 0.3), weights=mixtures(2, 11))
    >>> [round(w, 1) for w in found.weights]
    [0.7, 0.3]
    """
    method = method or next(iter(statistics or ()), "")
    method = {"": "linear", "gram": "regmean"}.get(method, method)
    tried = mixtures(len(models)) if weights is None else [tuple(map(float, one)) for one in weights]
    scores: dict[Weights, float] = {}
    best: tuple[tuple[float, float], Weights, Checkpoint] | None = None
    first: Fused | None = None
    if statistics:  # whose they are is found out once, not for every candidate
        models = [model if isinstance(model, Hashed) else Hashed(model) for model in models]
    bar = progress.bar(f"searching, {method}", len(tried))
    for one in tried:
        fused = fuse(method, models, weights=one, statistics=statistics, **parameters)
        if first is None:
            first = fused
        elif METHODS[method].weightless:
            fused.surveyed_like(first)
        scores[one] = score = evaluate(fused)
        worth = score if math.isfinite(score) else -math.inf
        if best is None or (worth, one[0]) > best[0]:
            best = (worth, one[0]), one, fused
        bar.advance(1)
    if best is None:
        raise TaskError("nothing to search", got="no weights")
    if best[0][0] == -math.inf:
        raise TaskError("no candidate has a score", got=next(iter(scores.values())), expected="a finite number")
    return Searched(best[1], best[0][0], scores, best[2])


def search_donors(
    target: Checkpoint,
    donors: Mapping[str, Checkpoint],
    evaluate: Evaluate,
    *,
    statistics: Mapping[str, Mapping[str, Checkpoint | None]] | None = None,
    target_name: str = "target",
    method: str = "",
    weights: Sequence[Weights] | None = None,
    progress: Progress = SILENT,
    **parameters: Any,
) -> dict[str, Searched]:
    """The best mixture of the target with each donor, the best donor first.

    Args:
        target: the model that is to be better at its own task.
        donors: models finetuned on other tasks from the same base, by name.
        evaluate: the target's score on its validation data.
        statistics: by their name (`fisher`), then by the model's, the target's under `target_name`.
        target_name: see there.
        method: as `search` takes it.
        weights: mixtures of a pair.
        progress: told of every candidate.
        parameters: of the method.

    Source: the intermediate-task experiments of arXiv 2111.09832, sec. 4.3.
    """
    found = {}
    for name, donor in donors.items():
        own = {s: [given.get(target_name), given.get(name)] for s, given in (statistics or {}).items()}
        found[name] = search(
            [target, donor],
            evaluate,
            statistics=own or None,
            method=method,
            weights=weights,
            progress=progress,
            **parameters,
        )
    return dict(sorted(found.items(), key=lambda item: -item[1].score))
