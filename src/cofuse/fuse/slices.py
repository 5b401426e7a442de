"""Which tensors of which models make each tensor of the result, before anything is known of parameters.

A recipe of `models` is one stretch with all tensors; `slices` are stretches of layers on top of one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..checkpoint.architecture import BEHIND, layer_of, main_stacks, stacks
from ..document import Keys
from ..errors import FuseError
from .recipe import COUNT_THE_BASE, Recipe
from .settings import Setting


class PlannedError(FuseError):
    """A recipe that does not fit its models; `keys` says which part of it, for the line of the file."""

    keys: Keys = ()

    def at(self, keys: Keys) -> PlannedError:
        """The same error, saying where in the recipe."""
        self.keys = keys
        return self


@dataclass(frozen=True, slots=True)
class Member:
    """A model's part in a stretch.

    Attributes:
        checkpoint: which of the opened ones.
        start: its first layer here.
        parameters: its own.
        statistics: which opened checkpoints hold them, by name.
        keys: where in the recipe it stands.
    """

    checkpoint: int
    start: int
    parameters: Mapping[str, Setting]
    statistics: Mapping[str, int]
    keys: Keys


@dataclass(frozen=True, slots=True)
class Stretch:
    """Models that are fused layer by layer.

    Attributes:
        members: in the recipe's order, without the base where the method takes one apart.
        base: what the method takes for its base, None where it takes none.
        leader: gives names and dtypes.
        layers: how many; None in a recipe of whole models.
        parameters: the stretch's own.
        keys: where in the recipe it stands.
    """

    members: tuple[Member, ...]
    base: Member | None
    leader: Member
    layers: int | None
    parameters: Mapping[str, Setting]
    keys: Keys


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor of the result.

    Attributes:
        name: its own.
        stretch: whose models and parameters make it.
        t: how far it is on the way from the stretch's first layer (0) to its last (1); 0 outside layers.
        layer: its number in the stretch, None outside layers or where models are fused whole.
        template: its name in the leader.
    """

    name: str
    stretch: int
    t: float
    layer: int | None
    template: str


def stretches(recipe: Recipe, places: Mapping[str, int], *, lead: int | None = None) -> tuple[Stretch, ...]:
    """A recipe's stretches.

    Args:
        recipe: what to do.
        places: which opened checkpoint each key of the recipe means.
        lead: the checkpoint that gives names where no base does.
    """
    method = recipe.method
    found: list[Stretch] = []
    for i, part in enumerate(recipe.slices or (None,)):
        given = recipe.models if part is None else part.sources
        keys: Keys = ("models",) if part is None else ("slices", i, "sources")
        base_key = recipe.base_key if part is None else recipe.base_of(part)
        members = [
            Member(
                places[one.key],
                getattr(one, "layer_range", (0, 0))[0],
                one.parameters,
                {name: places[address] for name, address in one.statistics.items()},
                (*keys, j),
            )
            for j, one in enumerate(given)
        ]
        base = None
        if base_key is not None:
            among = next((m for m, one in zip(members, given, strict=True) if one.key == base_key), None)
            if among is None and part is None:
                among = Member(places[base_key], 0, {}, {}, ("base_model",))
                if recipe.merge_method in COUNT_THE_BASE:
                    members.append(among)
            base = among
        others = members if method.needs_base is False else [m for m in members if m is not base]
        leader = base or others[0]
        if part is None and lead is not None:
            leader = Member(lead, 0, {}, {}, ())
        found.append(
            Stretch(
                tuple(others),
                None if method.needs_base is False else base,
                leader,
                None if part is None else part.sources[0].layer_range[1] - part.sources[0].layer_range[0],
                {} if part is None else part.parameters,
                keys if part is None else ("slices", i),
            )
        )
    return tuple(found)


def rows(found: Sequence[Stretch], checkpoints: Sequence[Checkpoint]) -> Iterator[Row]:
    """Every tensor of the result, in the order of its names.

    Raises:
        PlannedError: layers are asked for that a model has not, or that cannot be told from one another.
    """
    first = checkpoints[found[0].leader.checkpoint]
    if found[0].layers is None:
        counts = stacks(first.names())
        for name in (*first.names(), *_apart(found[0], checkpoints)):
            spot = layer_of(name)
            yield Row(name, 0, 0.0 if spot is None else _t(spot[1], counts[spot[0]]), None, name)
        return
    stack = _the_stack(first, found[0].keys)
    last = checkpoints[found[-1].leader.checkpoint]
    loose = [n for n in first.names() if _number(n, stack) is None]
    for name in loose:
        if not _behind(name, stack):
            yield Row(name, 0, 0.0, None, name)
    number = 0
    for i, stretch in enumerate(found):
        layers = _layers(stretch, checkpoints, stack)
        assert stretch.layers is not None  # all are slices
        for own in range(stretch.layers):
            for template in layers[stretch.leader.start + own]:
                rest = template[len(stack) + 1 :].partition(".")[2]
                yield Row(f"{stack}.{number}.{rest}", i, _t(own, stretch.layers), own, template)
            number += 1
    # What the last slice feeds comes from its models, and from the first's what those lack.
    behind = [n for n in loose if _behind(n, stack)]
    more = [n for n in last.names() if _behind(n, stack) and n not in first]
    more += [n for n in _apart(found[-1], checkpoints) if _behind(n, stack) and n not in behind]
    for name in (*behind, *more):
        yield Row(name, len(found) - 1 if name in last else 0, 0.0, None, name)


def source_name(row: Row, stretch: Stretch, member: Member) -> str:
    """What a row's tensor is called in one of its models."""
    if row.layer is None:
        return row.template
    spot = layer_of(row.template)
    assert spot is not None  # rows with a layer have one in their name
    stack = spot[0]
    rest = row.template[len(stack) + 1 :].partition(".")[2]
    return f"{stack}.{member.start + row.layer}.{rest}"


def _t(number: int, count: int) -> float:
    # mergekit's: the only layer of a slice of one is its last.
    return number / (count - 1) if count > 1 else 1.0


def _apart(stretch: Stretch, checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """Names that the leader ties and a model has apart: both are fused."""
    leader = checkpoints[stretch.leader.checkpoint]
    models = [checkpoints[m.checkpoint] for m in stretch.members]
    for alias, kept in leader.aliases.items():
        if any(alias in m and m.resolve(alias) != m.resolve(kept) for m in models):
            yield alias


def _the_stack(checkpoint: Checkpoint, keys: Keys) -> str:
    found = main_stacks((*checkpoint.names(), *checkpoint.aliases))
    if len(found) == 1:
        return next(iter(found))
    raise PlannedError(
        "slices want a model with one stack of layers",
        where=checkpoint.where,
        got=", ".join(found) or "no names with a layer's number",
        hint="fuse it whole: give models instead of slices",
    ).at(keys)


def _number(name: str, stack: str) -> int | None:
    spot = layer_of(name)
    return spot[1] if spot is not None and spot[0] == stack else None


def _behind(name: str, stack: str) -> bool:
    return _number(name, stack) is None and BEHIND.search(name) is not None


def _layers(stretch: Stretch, checkpoints: Sequence[Checkpoint], stack: str) -> dict[int, list[str]]:
    """The leader's tensors by layer; every model's layers are looked for."""
    found: dict[int, list[str]] = {}
    members = [*stretch.members, *([stretch.base] if stretch.base is not None else [])]
    for member in [*members, stretch.leader]:
        checkpoint = checkpoints[member.checkpoint]
        found = {}
        for name in (*checkpoint.names(), *checkpoint.aliases):
            number = _number(name, stack)
            if number is not None:
                found.setdefault(number, []).append(name)
        assert stretch.layers is not None
        for number in range(member.start, member.start + stretch.layers):
            if number not in found:
                highest = max(found, default=-1)
                raise PlannedError(
                    "the model has no such layer",
                    where=checkpoint.where,
                    got=f"layers {member.start} to {member.start + stretch.layers - 1}",
                    expected=f"0 to {highest}" if found else f"names that start with {stack}",
                    hint=f"layer_range: [{min(member.start, highest)}, {highest + 1}]" if found else None,
                ).at((*member.keys, "layer_range"))
    return found
