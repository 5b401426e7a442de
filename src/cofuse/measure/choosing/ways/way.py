"""What a way of choosing is handed, what it gives, and what the ways share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ....checkpoint import Checkpoint
from ....document import Document
from ....errors import FuseError
from ....fuse import ModelInput, Recipe
from ....progress import SILENT, Progress
from ....tasks import Task
from ...subject import Subject

Score = Callable[[Sequence[Recipe]], list[float]]
Need = Literal["base", "fisher", "tasks"]


class Learning(Document):
    """How mixing weights are learned.

    Attributes:
        per: what has weights of its own: the whole model, each layer, or each tensor.
        head: what stands on the mixed body: `probe`, fitted once to the equal mean, or the models' `own`, mixed too.
        epochs, learning_rate, batch_size: of AdamW, without decay; batches in examples.
        examples: of each task's validation split; all when None.
        max_length: tokens.
        seed: of the order of the batches.
    """

    per: Literal["model", "layer", "tensor"] = "model"
    head: Literal["probe", "own"] = "probe"
    epochs: int = 5
    learning_rate: float = 0.05
    batch_size: int = 32
    examples: int | None = 1000
    max_length: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Pool:
    """What there is to choose from.

    Attributes:
        models: by address, in the order they were given.
        score: held-out scores of recipes over these addresses.
        base: address of what the models were tuned from; None where nobody said.
        checkpoints: of the models and the base, lazily opened.
        fisher: the diagonal of the base's Fisher; None where there is none.
        tasks: whose validation splits weights are learned on.
        learning: how.
        subject: puts a task's head on a mixed body, where weights are learned; as `learning.head` says when None.
        progress: told what is done.
    """

    models: tuple[str, ...]
    score: Score
    base: str | None = None
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    fisher: Checkpoint | None = None
    tasks: tuple[Task, ...] = ()
    learning: Learning = field(default_factory=Learning)
    subject: Callable[[Checkpoint, Task], Subject] | None = None
    progress: Progress = SILENT

    def has(self, need: Need) -> bool:
        """Whether something that a way needs is there."""
        return bool(self.tasks) if need == "tasks" else getattr(self, need) is not None


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate: what it is called, its recipe, and its held-out score."""

    name: str
    recipe: Recipe
    score: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a way chose.

    Attributes:
        recipe: what `cofuse fuse` makes of it.
        reasons: of each model, why it is in or not, or its weight.
        score: held-out score of the recipe; None until it is measured.
        tried: all that was scored on the way, in that order.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    score: float | None = None
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the table: how it chooses, what it is in a line, and what it needs besides the models."""

    run: Callable[[Pool], Chosen]
    says: str
    needs: tuple[Need, ...] = ()


def mean_of(models: Sequence[str], weights: Sequence[float] | None = None) -> Recipe:
    """The recipe of a mean; equal weights when None.

    >>> mean_of(["a", "b"], [0.25, 0.75]).canonical["models"][1]
    {'model': 'b', 'parameters': {'weight': 0.75}}
    """
    own = [{}] * len(models) if weights is None else [{"weight": w} for w in weights]
    given = tuple(ModelInput.model_validate({"model": m, "parameters": w}) for m, w in zip(models, own, strict=True))
    return Recipe(merge_method="linear", models=given)


def mean_among(pool: Pool, chosen: Collection[str]) -> Recipe:
    """The recipe of the mean of some of a pool's models, in the pool's order: one recipe a set, whoever asks for it."""
    return mean_of([m for m in pool.models if m in chosen])


def singles(pool: Pool) -> list[Tried]:
    """Each model alone, the best first; equal ones in the order of their names, so that the order given is no matter."""
    recipes = [mean_of([m]) for m in pool.models]
    scores = pool.score(recipes)
    found = [Tried(m, r, s) for m, r, s in zip(pool.models, recipes, scores, strict=True)]
    return sorted(found, key=lambda t: (-t.score, t.name))


def base_of(pool: Pool) -> str:
    """The base's address.

    Raises:
        FuseError: there is none.
    """
    if pool.base is None:
        raise FuseError("this way needs the base", hint="say which: --base B")
    return pool.base
