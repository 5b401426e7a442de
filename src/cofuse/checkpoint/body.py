"""What is exchanged between contributors: a model without the head of its task."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .views import Source, View


@dataclass(frozen=True, slots=True)
class BodyChoices:
    """What `body` decided, so that a record can tell."""

    prefix: str  # stripped from the tuned names (or put before them, when it starts with '+')
    dropped: tuple[str, ...]  # tensors of the tuned model that the base lacks: its head
    kept: tuple[str, ...]  # tensors that the tuned model lacks: the base's values stand


class Body(View):
    """A body, and how it was made."""

    choices: BodyChoices


def body(tuned: Checkpoint, *, like: Checkpoint) -> Body:
    """The part of a tuned model that has the names and shapes of its base.

    The class prefix that a task's class puts before the body's names (`bert.` in BertForSequenceClassification) is found
    from the names alone. What the base lacks is the head and is dropped; what the tuned class lacks (a pooler, a
    language-model head) keeps the base's values. Both are recorded in `choices`. Config and files are the base's.

    Args:
        tuned: a finetuned model of any class.
        like: the base it was finetuned from.

    Raises:
        CheckpointError: the two have no tensors in common, more than half of the base's are missing, or a tensor of
            both has another shape or dtype.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> base = Memory({"a.w": torch.zeros(2), "b.w": torch.zeros(2), "pooler.w": torch.zeros(2)})
    >>> tuned = Memory({"bert.a.w": torch.ones(2), "bert.b.w": torch.ones(2), "classifier.w": torch.ones(3)})
    >>> mine = body(tuned, like=base)
    >>> mine.names(), mine.choices.prefix, mine.choices.dropped, mine.choices.kept
    (('a.w', 'b.w', 'pooler.w'), 'bert.', ('classifier.w',), ('pooler.w',))
    """
    theirs = {**{n: n for n in tuned.names()}, **dict(tuned.aliases)}
    prefix = best_prefix(set(theirs), {*like.names(), *like.aliases})
    tied: dict[str, list[str]] = {}
    for alias, name in like.aliases.items():
        tied.setdefault(name, []).append(alias)
    sources: dict[str, Source] = {}
    kept: list[str] = []
    used: set[str] = set()
    for name in like.names():
        # A class without the name under which the base keeps a tied tensor may have it under the other one.
        spellings = (with_prefix(n, prefix) for n in (name, *tied.get(name, ())))
        there = next((n for n in spellings if n in theirs), None)
        if there is None:
            sources[name] = Source(like, name)
            kept.append(name)
            continue
        got, expected = tuned.spec(there), like.spec(name)
        if got.shape != expected.shape:
            raise CheckpointError(
                "tensor has another shape than the base's",
                where=f"{tuned.where}: {there}",
                got=list(got.shape),
                expected=list(expected.shape),
            )
        if got.dtype != expected.dtype:
            raise CheckpointError(
                "tensor has another dtype than the base's",
                where=f"{tuned.where}: {there}",
                got=got.dtype,
                expected=expected.dtype,
            )
        used.add(theirs[there])
        sources[name] = Source(tuned, there)
    lost = sum(like.spec(n).numel for n in kept)
    if lost * 2 > sum(like.spec(n).numel for n in like.names()) or (kept and len(kept) == len(like.names())):
        raise CheckpointError(
            "most of the base is missing",
            where=tuned.where,
            got=f"{len(like.names()) - len(kept)} of {len(like.names())} tensors",
            hint=f"is it finetuned from {like.where}? first missing: {kept[0]}",
        )
    # How the base was made is not how this was.
    files = {name: data for name, data in like.files.items() if name != "cofuse.json"}
    view = Body(sources, files=files, metadata=like.metadata, aliases=like.aliases, where=tuned.where)
    view.choices = BodyChoices(prefix, tuple(n for n in tuned.names() if n not in used), tuple(kept))
    return view


def with_prefix(name: str, prefix: str) -> str | None:
    """A base's name as the tuned model has it."""
    if prefix.startswith("+"):
        return name.removeprefix(prefix[1:]) if name.startswith(prefix[1:]) else None
    return prefix + name


def best_prefix(tuned: set[str], base: set[str]) -> str:
    """The prefix that makes the most names agree; the shortest of equals.

    `x.` when the tuned model says `x.name` for the base's `name`; `+x.` the other way round (a base saved from a class
    with a prefix, tuned as a bare body).
    """
    # Counted name by name: trying every prefix on every name would let a file of many prefixes take hours.
    agreement = Counter({"": len(tuned & base)})
    for name in tuned:
        parts = name.split(".", 2)
        for depth in range(1, len(parts)):
            if ".".join(parts[depth:]) in base:
                agreement[".".join(parts[:depth]) + "."] += 1
    for name in base:
        top, dot, rest = name.partition(".")
        if dot and rest in tuned:
            agreement[f"+{top}."] += 1
    return min(agreement, key=lambda prefix: (-agreement[prefix], len(prefix), prefix))
