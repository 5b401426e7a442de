"""The learned soup: mixing weights by gradient descent on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....checkpoint import Checkpoint
from ....checkpoint.architecture import layer_of
from ....fuse import Recipe, fuse
from ....tasks import Task
from ....tasks.training import settle_process
from ...loss import Loss, loss_of
from ...subject import Batch, Subject, open_subject
from .mixing import Mixed
from .way import Chosen, Learning, Pool, Tried, mean_of

# Weights are rounded so, before they are scored: a recipe is read by people.
_DIGITS = 6
REST = ""  # the group of what stands in no layer

Weights = Mapping[str, Sequence[float]]


def learned(pool: Pool) -> Chosen:
    """Softmax weights a model, a layer or a tensor, learned on the validation splits by AdamW.

        min_z  mean_batches loss(sum_i softmax(z)_i theta_i)        z = 0 at the start: the uniform soup

    Dropout is off. The held-out score is of the data that the weights were learned on, and so too good by a little.

    Source: Model soups, arXiv 2203.05482 (learned soup): AdamW, rate 0.05, five epochs, no decay; without
    the temperature that is learned there beside the weights, and without holding the models in memory.
    """
    models = [pool.checkpoints[m] for m in pool.models]
    alphas = learn(models, pool)
    recipe, equal = recipe_of(pool.models, alphas), mean_of(pool.models)
    scores = pool.score([equal, recipe])
    tried = (Tried("uniform", equal, scores[0]), Tried("learned", recipe, scores[1]))
    reasons = {m: _said([own[i] for own in alphas.values()]) for i, m in enumerate(pool.models)}
    return Chosen(recipe, reasons, scores[1], tried)


def _said(weights: Sequence[float]) -> str:
    low, high = min(weights), max(weights)
    return f"weight {low:.3f}" if len(weights) == 1 else f"weights {low:.3f} to {high:.3f}"


def learn(models: Sequence[Checkpoint], pool: Pool) -> dict[str, list[float]]:
    """Mixing weights [models] of each group of tensors, summing to 1.

    Args:
        models: lazily opened, of the same names and shapes.
        pool: its tasks, on whose validation splits the weights are learned; how; and what is told of it.

    Raises:
        TaskError: a model and a task do not fit.
        FuseError: the models do not fit together.

    Memory: one mixed model with its gradients and activations, and one tensor of one model, whatever their number.
    """
    settle_process()
    settings = pool.learning
    mean = fuse("linear", models)
    group = groups(mean, settings.per)
    names = list(dict.fromkeys(group.values()))
    rows = {name: names.index(own) for name, own in group.items()}
    work: list[tuple[Mixed, Loss, Batch]] = []
    for task in pool.tasks:
        subject = pool.subject(mean, task) if pool.subject is not None else _with_head(mean, task, settings)
        loss = loss_of(subject, task)
        mixed = Mixed(subject, models, rows)
        examples = task.examples("validation").first(settings.examples)
        work += [(mixed, loss, batch) for batch in subject.batches(examples, settings.batch_size)]
    z = torch.zeros(len(names), len(models), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([z], lr=settings.learning_rate, weight_decay=0.0)
    bar = pool.progress.bar("learning weights", settings.epochs * len(work))
    for order in _orders(len(work), settings):
        for mixed, loss, batch in (work[i] for i in order):
            optimizer.zero_grad()
            loss(mixed.logits(torch.softmax(z, 1), batch), batch).backward()
            optimizer.step()
            bar.advance(1)
    alphas = torch.softmax(z.detach(), 1).tolist()
    return {name: [round(a, _DIGITS) for a in own] for name, own in zip(names, alphas, strict=True)}


def _with_head(mean: Checkpoint, task: Task, settings: Learning) -> Subject:
    return open_subject(mean, task, head=settings.head, max_length=settings.max_length)


def _orders(count: int, settings: Learning) -> list[npt.NDArray[np.int64]]:
    return [np.random.default_rng([settings.seed, epoch]).permutation(count) for epoch in range(settings.epochs)]


def groups(model: Checkpoint, per: str) -> dict[str, str]:
    """Each tensor's group: all one; its layer, as `encoder.layer.3.`; or its own name.

    >>> from cofuse.checkpoint import Memory
    >>> model = Memory({n: torch.zeros(1) for n in ("emb", "h.0.a", "h.0.b")})
    >>> groups(model, "layer")
    {'emb': '', 'h.0.a': 'h.0.', 'h.0.b': 'h.0.'}
    """
    if per == "tensor":
        return {name: name for name in model.names()}
    if per == "model":
        return dict.fromkeys(model.names(), REST)
    spots = {name: layer_of(name) for name in model.names()}
    return {name: REST if spot is None else f"{spot[0]}.{spot[1]}." for name, spot in spots.items()}


def recipe_of(models: Sequence[str], alphas: Weights) -> Recipe:
    """The recipe of learned weights: scalars, or rules by the tensors' names.

    >>> recipe_of(["a"], {"h.0.": [1.0], "": [0.5]}).canonical["models"][0]["parameters"]["weight"]
    [{'value': 1.0, 'filter': 'h.0.'}, {'value': 0.5}]
    """
    # A filter is a part of a name, and the first that fits counts: the longest first, so that no name takes another's.
    order = sorted(alphas, key=lambda name: (-len(name), name))

    def weight(i: int) -> Any:
        if list(alphas) == [REST]:
            return alphas[REST][i]
        return [{"value": alphas[name][i]} | ({"filter": name} if name else {}) for name in order]

    given = [{"model": m, "parameters": {"weight": weight(i)}} for i, m in enumerate(models)]
    return Recipe.model_validate({"merge_method": "linear", "models": given})
