"""What goes into a fuse: contributions, their weights, and the recipe of them on a base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ...fuse import METHODS, ModelInput, Recipe
from ..database import Contribution
from ..policy import COUNT_THE_BASE, How, Weights


@dataclass(frozen=True, slots=True)
class Input:
    """A contribution as a round's record names it.

    Attributes:
        contribution: its number in the repository.
        account: who offered it.
        commit: its weights.
        base: the commit that they were tuned from.
        content: content id of its weights.
        weight: what it weighs in the fuse; 1 is as much as the usual one.
        title, licence, data, examples: as its contributor says.
        statistics: tree of the Fisher that came with it.
    """

    contribution: int
    account: str
    commit: str
    base: str
    content: str
    weight: float
    title: str = ""
    licence: str = ""
    data: str = ""
    examples: int | None = None
    statistics: str | None = None

    @classmethod
    def of(cls, row: Contribution, weight: float) -> Input:
        """A contribution that was screened."""
        return cls(
            contribution=row.number,
            account=row.account.name,
            commit=row.commit or "",
            base=row.base,
            content=row.content or "",
            weight=weight,
            title=row.title,
            licence=row.licence,
            data=row.data[:500],
            examples=row.examples,
            statistics=row.statistics,
        )

    def said(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def weigh(policy: Weights, offered: Sequence[tuple[str, int | None]]) -> list[float]:
    """What contributions weigh: at most `cap` times the median, each, and all those of one account together.

    Args:
        policy: by what.
        offered: account and number of examples of each.

    >>> weigh(Weights(by="examples"), [("a", 100), ("b", 300), ("c", 10**9)])
    [0.333333, 1.0, 2.0]
    >>> weigh(Weights(cap=1), [("a", None), ("b", None), ("c", None), ("c", None)])
    [1.0, 1.0, 0.5, 0.5]
    """
    raw = [1.0] * len(offered)
    if policy.by == "examples":
        told = [examples for _, examples in offered if examples]
        usual = float(median(told)) if told else 1.0
        raw = [min(policy.cap, max((examples or 0) / usual, 1e-6)) if told else 1.0 for _, examples in offered]
    whole: dict[str, float] = defaultdict(float)
    for (account, _), weight in zip(offered, raw, strict=True):
        whole[account] += weight
    # An account that offers many has no more to say than one that offers what is usual, but for the cap.
    most = policy.cap * float(median(whole.values())) if len(whole) > 1 else float("inf")
    # As many digits as do not depend on the order of sums.
    return [round(w * min(1.0, most / whole[a]), 6) for (a, _), w in zip(offered, raw, strict=True)]


def recipe_of(how: How, inputs: Iterable[Input], onto: str, *, seed: int | None = None) -> Recipe:
    """The recipe that fuses contributions on a base.

    A contribution that was tuned from another base keeps its task vector: it stands there as onto + (commit - base), which
    is approximate, as a training from `onto` would have gone another way.

    Args:
        how: the method.
        inputs: in the order of their numbers.
        onto: the commit or step that they are put on.
        seed: instead of the policy's.
    """
    row, given = METHODS[how.method], sorted(inputs, key=lambda one: one.contribution)
    method, parameters = how.method, dict(how.parameters)
    if len(given) < row.models[0]:  # what is left of a round after somebody was revoked
        method, parameters, row = "linear", {}, METHODS["linear"]
    weighed = "weight" in row.parameters and any(one.weight != 1.0 for one in given)
    models = []
    for one in given:
        here = one.base == onto
        statistics = {name: one.statistics for name in row.statistics if here and one.statistics is not None}
        models.append(
            ModelInput(
                model=one.commit if here else moved(one.commit, one.base, onto),
                parameters={"weight": one.weight} if weighed else {},
                statistics=statistics,
            )
        )
    if row.statistics and not any(model.statistics for model in models):
        method, parameters, row = "linear", {}, METHODS["linear"]
    based = row.needs_base or (row.needs_base is None and method not in COUNT_THE_BASE)
    return Recipe(
        merge_method=method,
        models=tuple(models),
        base_model=onto if based else None,
        parameters=parameters,
        seed=how.seed if seed is None else seed,
    )


def moved(commit: str, base: str, onto: str) -> Recipe:
    """A version's change, put on another base: onto + (commit - base)."""
    return Recipe(
        merge_method="task_arithmetic",
        base_model=onto,
        models=(ModelInput(model=commit), ModelInput(model=base, parameters={"weight": -1.0})),
    )


def step(recipe: Recipe, onto: str) -> dict[str, Any]:
    """A step of a round's record."""
    return {"onto": onto, "recipe": recipe.canonical, "seed": recipe.seed}


def read_input(said: Mapping[str, Any]) -> Input:
    """An input of a record that this hub has written."""
    return Input(**said)
