"""recipe -> plan: what will happen to each tensor, decided before a byte is read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from ..checkpoint import Checkpoint, TensorSpec
from ..checkpoint.architecture import HEAD, VOCABULARY
from ..checkpoint.dtypes import FLOATING
from ..checkpoint.floats import FLOATS
from ..document import Keys, nearest
from ..errors import FuseError
from .frozen import Frozen
from .methods import Parameter, Statistic, keyword_arguments
from .recipe import DTYPE_WORDS, Recipe
from .settings import Scalar, Setting, value_at
from .slices import Member, PlannedError, Row, Stretch, rows, source_name, stretches

# Floats whose values mean something only with a scale that stands elsewhere, or that nobody computes with.
REFUSED = frozenset({*FLOATING, "C64"} - FLOATS)
# What a model computes for itself when it is loaded: some files have it, some do not, and nobody trains it.
COMPUTED = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|position_ids|attn\.(?:masked_)?bias|attn\.attention\.masked_bias)$"
)


# What is done with a tensor of which a model has no statistics.
WITHOUT_STATISTICS = "linear"
NAMED = 6  # names that a note lists


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that goes into the fuse: which of the opened checkpoints has it, under which name."""

    checkpoint: int
    name: str


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the result.

    `method` is None for what is copied from the one input: integers and buffers are never averaged. Parameters that
    each model has for itself are tuples, in the order of the inputs, and so are statistics.
    """

    name: str
    spec: TensorSpec
    method: str | None
    inputs: tuple[Input, ...]
    base: Input | None = None
    parameters: Mapping[str, Scalar | tuple[Scalar, ...]] = field(default_factory=Frozen)
    statistics: Mapping[str, tuple[Input, ...]] = field(default_factory=Frozen)


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe resolved against the models' names and shapes.

    Attributes:
        recipe: as written.
        inputs: what the recipe calls the opened checkpoints, in their order.
        tensors: what happens to each tensor of the result, in the order of its names.
        leader: which checkpoint gives files, metadata and tied names.
        aliases: names of the result that are tied, each with the name it is kept under.
        layers: where the result's layers come from, (checkpoint, number); empty where no layers are moved.
        bytes_read: of the inputs, each counted once, although a survey reads them again.
        bytes_written: of the result.
        notes: what somebody should know although nothing is wrong.
    """

    recipe: Recipe
    inputs: tuple[str, ...]
    tensors: Mapping[str, TensorPlan]
    leader: int
    aliases: Mapping[str, str]
    layers: tuple[tuple[int, int], ...]
    bytes_read: int
    bytes_written: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from .outline import outline

        return str(outline(self))


def make_plan(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint] | Sequence[Checkpoint], *, lead: int | None = None
) -> Plan:
    """Resolve a recipe.

    Args:
        recipe: what to do.
        checkpoints: the opened ones by the keys of `recipe.parts` (and the addresses of statistics), or in the order
            of those parts.
        lead: which of them gives names, dtypes and files; the base does when None, or the first model without one.

    Raises:
        FuseError: a tensor is missing, or has another shape; it names the model and the tensor.
    """
    opened = _in_order(recipe, checkpoints)
    inputs, found = tuple(opened), list(opened.values())
    places = {key: i for i, key in enumerate(inputs)}
    spread = stretches(recipe, places, lead=lead)
    leader = lead if lead is not None else places[recipe.base_key] if recipe.base_key else spread[0].leader.checkpoint
    settings = [_Settings(recipe, stretch) for stretch in spread]
    out_dtype = DTYPE_WORDS.get(recipe.out_dtype or recipe.dtype or "")
    tensors: dict[str, TensorPlan] = {}
    lacking: Lacking = {}
    read = written = 0
    listed = list(rows(spread, found))
    # Heads that the leader ties and a model does not.
    heads = _more_heads(spread, found, {row.name for row in listed})
    for row in (*listed, *(Row(name, len(spread) - 1, 0.0, None, name) for name in heads)):
        planned = _tensor(row, spread[row.stretch], settings[row.stretch], found, recipe, out_dtype, lacking)
        tensors[row.name] = planned
        statistics = (i for chosen in planned.statistics.values() for i in chosen)
        sources = (*planned.inputs, *([planned.base] if planned.base else []), *statistics)
        read += sum(found[i.checkpoint].spec(i.name).nbytes for i in sources)
        written += planned.spec.nbytes
    _refuse_more(spread, found, tensors)
    if recipe.method.scope == "model":
        _refuse_unequal(recipe, tensors)
    aliases = {a: kept for a, kept in found[leader].aliases.items() if a not in tensors and kept in tensors}
    layers = tuple(
        (stretch.leader.checkpoint, stretch.leader.start + i) for stretch in spread for i in range(stretch.layers or 0)
    )
    notes = [f"{name}: {recipe.merge_method} has no such parameter; nothing changes" for name in recipe.idle]
    notes += _notes_of(lacking, inputs)
    return Plan(recipe, inputs, Frozen(tensors), leader, Frozen(aliases), layers, read, written, tuple(notes))


def _in_order(recipe: Recipe, given: Mapping[str, Checkpoint] | Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    keys = [part.key for part in recipe.parts]
    if isinstance(given, Mapping):
        missing = [key for key in keys if key not in given]
        if missing:
            raise FuseError("a model of the recipe is not opened", got=missing[0], expected=", ".join(keys))
        return {**{key: given[key] for key in keys}, **given}
    if len(given) < len(keys):
        raise FuseError("models and recipe disagree", got=len(given), expected=len(keys))
    more = [f"{len(keys) + i}" for i in range(len(given) - len(keys))]
    return dict(zip((*keys, *more), given, strict=True))


class _Settings:
    """A stretch's parameters, looked up for one tensor after another."""

    def __init__(self, recipe: Recipe, stretch: Stretch) -> None:
        self._recipe, self._stretch = recipe, stretch
        self._shared = (stretch.parameters, recipe.parameters)
        self._constant: Frozen[str, Scalar | tuple[Scalar, ...]] | None = None
        scopes = [*self._shared, *(m.parameters for m in stretch.members)]
        self._varies = any(isinstance(setting, tuple) for scope in scopes for setting in scope.values())

    def of(self, row: Row, names: Sequence[str]) -> Frozen[str, Scalar | tuple[Scalar, ...]]:
        """Every parameter of the method, for a tensor and the names its models have for it."""
        if self._varies or self._constant is None:
            self._constant = self._look_up(row, names)
        return self._constant

    def _look_up(self, row: Row, names: Sequence[str]) -> Frozen[str, Scalar | tuple[Scalar, ...]]:
        found: dict[str, Scalar | tuple[Scalar, ...]] = {}
        for name, parameter in self._recipe.method.parameters.items():
            if parameter.per_model:
                found[name] = tuple(
                    self._value(name, parameter, (member.parameters, *self._shared), own, row.t, member.keys)
                    for member, own in zip(self._stretch.members, names, strict=True)
                )
            else:
                found[name] = self._value(name, parameter, self._shared, row.name, row.t, self._stretch.keys)
        if self._recipe.method.check is not None:
            try:
                self._recipe.method.check(len(names), **keyword_arguments(found))
            except FuseError as error:
                raise PlannedError(
                    error.what,
                    where=f"{self._recipe.merge_method}: {row.name}",
                    got=error.got,
                    expected=error.expected,
                    hint=error.hint,
                ).at(self._stretch.keys) from None
        return Frozen(found)

    def _value(
        self,
        name: str,
        parameter: Parameter,
        scopes: Iterable[Mapping[str, Setting]],
        tensor: str,
        t: float,
        keys: Keys,
    ) -> Scalar:
        for scope in scopes:
            if name in scope:
                try:
                    value = value_at(name, scope[name], parameter, tensor, t)
                except ValueError as error:
                    raise PlannedError("a value between those given cannot be", where=tensor, got=error).at(
                        keys
                    ) from None
                if value is not None:
                    return value
        if parameter.required:
            raise PlannedError(
                f'no value of "{name}"',
                where=tensor,
                expected=f"one for every tensor: {self._recipe.merge_method} has no default",
                hint="give a last rule without a filter",
            ).at(keys)
        return parameter.default


def _tensor(
    row: Row,
    stretch: Stretch,
    settings: _Settings,
    checkpoints: Sequence[Checkpoint],
    recipe: Recipe,
    out_dtype: str | None,
    lacking: Lacking,
) -> TensorPlan:
    lead = checkpoints[stretch.leader.checkpoint]
    own = _find(row, stretch, stretch.leader, checkpoints)
    members = stretch.members
    found = [_find(row, stretch, member, checkpoints) for member in members]
    base = None if stretch.base is None else _find(row, stretch, stretch.base, checkpoints)
    if COMPUTED.search(row.name) and (None in found or own is None or (stretch.base is not None and base is None)):
        there = next(i for i in (own, base, *found) if i is not None)
        return TensorPlan(row.name, checkpoints[there.checkpoint].spec(there.name), None, (there,))
    asked = [(own, stretch.leader), (base, stretch.base), *zip(found, members, strict=True)]
    for one, member in asked:
        if one is None and member is not None:
            raise _missing(row, stretch, member, checkpoints)
    assert own is not None  # or it was missing
    spec = checkpoints[own.checkpoint].spec(own.name)
    if spec.dtype in REFUSED:
        raise PlannedError(
            "a tensor of this dtype cannot be averaged",
            where=f"{lead.where}: {own.name}",
            got=spec.dtype,
            expected=", ".join(sorted(FLOATS)),
            hint="dequantise the models first",
        ).at(stretch.leader.keys)
    for one, member in asked:
        if one is not None and member is not None:
            _check_same(checkpoints[one.checkpoint], one.name, spec, member.keys)
    fused = spec.dtype in FLOATS
    if not fused:
        return TensorPlan(row.name, spec, None, (own,))
    inputs = tuple(i for i in found if i is not None)
    method, parameters = recipe.merge_method, settings.of(row, [i.name for i in inputs])
    statistics: dict[str, tuple[Input, ...]] = {}
    for name, statistic in recipe.method.statistics.items():
        chosen = [
            _statistic(name, statistic, member, i, spec.shape, checkpoints)
            for member, i in zip(members, inputs, strict=True)
        ]
        if recipe.tokenizer_settings is not None and VOCABULARY.search(row.name):
            chosen = [None] * len(members)  # its rows may be other tokens' than those that were measured
        statistics[name] = tuple(i for i in chosen if i is not None)
        without = tuple(i.checkpoint for i, one in zip(inputs, chosen, strict=True) if one is None)
        if without:
            lacking.setdefault((name, without if statistic.shapes(spec.shape) else ()), []).append(row.name)
            method = WITHOUT_STATISTICS
    if method != recipe.merge_method:
        statistics, parameters = {}, Frozen({"weight": parameters["weight"], "normalize": True})
    return TensorPlan(
        row.name,
        TensorSpec(out_dtype, spec.shape) if out_dtype else spec,
        method,
        inputs,
        base,
        parameters,
        Frozen(statistics),
    )


# Which tensors have no such statistic in which checkpoints; in none of them where there can be none.
Lacking = dict[tuple[str, tuple[int, ...]], list[str]]


def _statistic(
    name: str,
    statistic: Statistic,
    member: Member,
    tensor: Input,
    shape: tuple[int, ...],
    checkpoints: Sequence[Checkpoint],
) -> Input | None:
    """A model's statistic of one of its tensors; None where it has none."""
    allowed, place = statistic.shapes(shape), member.statistics.get(name)
    if not allowed or place is None or tensor.name not in checkpoints[place]:
        return None
    measured = checkpoints[place]
    got = measured.spec(tensor.name)
    if got.shape in allowed and got.dtype in FLOATS:
        return Input(place, tensor.name)
    raise PlannedError(
        "a statistic has another shape" if got.dtype in FLOATS else "a statistic has another dtype",
        where=f"{measured.where}: {tensor.name}",
        got=f"{got.dtype} {list(got.shape)}",
        expected=" or ".join(str(list(one)) for one in allowed),
        hint=f"is it the {name} of this model?",
    ).at((*member.keys, "statistics", name))


def _notes_of(lacking: Lacking, inputs: Sequence[str]) -> Iterator[str]:
    for (name, without), tensors in lacking.items():
        listed = ", ".join(tensors[:NAMED]) + (f" and {len(tensors) - NAMED} more" if len(tensors) > NAMED else "")
        whose = ", ".join(inputs[i] for i in without)
        said = f"no {name} of {whose} for" if whose else f"tensors of these shapes have no {name}:"
        yield f"{said} {listed}; the mean of the models is taken"


def _find(row: Row, stretch: Stretch, member: Member, checkpoints: Sequence[Checkpoint]) -> Input | None:
    """The tensor of a row in one of its models; a head that is not there is the embedding that it is tied to."""
    name = source_name(row, stretch, member)
    checkpoint = checkpoints[member.checkpoint]
    if name in checkpoint:
        return Input(member.checkpoint, name)
    tied = _tied_to(name, checkpoint)
    return None if tied is None else Input(member.checkpoint, tied)


def _tied_to(name: str, checkpoint: Checkpoint) -> str | None:
    if not HEAD.search(name) or checkpoint.config.get("tie_word_embeddings") is False:
        return None
    found = [n for n in checkpoint.names() if n.endswith(".weight") and VOCABULARY.search(n) and not HEAD.search(n)]
    return found[0] if len(found) == 1 else None


def _more_heads(spread: Sequence[Stretch], checkpoints: Sequence[Checkpoint], names: Set[str]) -> list[str]:
    """Heads that a model has for itself and the leader ties to its embedding."""
    lead = checkpoints[spread[-1].leader.checkpoint]
    found = dict.fromkeys(
        name
        for member in spread[-1].members
        for name in checkpoints[member.checkpoint].names()
        if name not in names and name not in lead and _tied_to(name, lead) is not None
    )
    return list(found)


def _missing(row: Row, stretch: Stretch, member: Member, checkpoints: Sequence[Checkpoint]) -> PlannedError:
    checkpoint = checkpoints[member.checkpoint]
    name = source_name(row, stretch, member)
    known = checkpoint.names()
    close = nearest(name, known[:2000])
    return PlannedError(
        "a tensor is missing",
        where=checkpoint.where,
        got=f"no {name}",
        hint=(f"{close} " if close.startswith("did") else "")
        + "do the models come from one base? (a part of a model: partial: true; other names: prefix)",
    ).at(member.keys)


def _refuse_more(
    spread: Sequence[Stretch], checkpoints: Sequence[Checkpoint], tensors: Mapping[str, TensorPlan]
) -> None:
    """Refuse tensors of a model that nothing is done with."""
    if any(stretch.layers is not None for stretch in spread):
        return  # layers are left out on purpose
    used = {(i.checkpoint, i.name) for t in tensors.values() for i in (*t.inputs, *([t.base] if t.base else []))}
    lead = checkpoints[spread[0].leader.checkpoint]
    for member in spread[0].members:
        checkpoint = checkpoints[member.checkpoint]
        extra = [
            n
            for n in checkpoint.names()
            if n not in lead and (member.checkpoint, n) not in used and not COMPUTED.search(n)
        ]
        if extra:
            raise PlannedError(
                "a model has tensors that the base lacks",
                where=checkpoint.where,
                got=", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else ""),
                hint="take its body first: cofuse body TUNED OUT --like BASE",
            ).at(member.keys)


def _refuse_unequal(recipe: Recipe, tensors: Mapping[str, TensorPlan]) -> None:
    """A method that looks at the whole model has one set of parameters, and the same models everywhere."""
    fused = [t for t in tensors.values() if t.method == recipe.merge_method]
    for tensor in fused[1:]:
        first = fused[0]
        for name in first.parameters:
            if tensor.parameters[name] != first.parameters[name]:
                raise PlannedError(
                    f"{recipe.merge_method} looks at whole models: its parameters are the same for every tensor",
                    where=f'"{name}" of {tensor.name}',
                    got=tensor.parameters[name],
                    expected=f"{first.parameters[name]}, as of {first.name}",
                    hint="give one value, without filters and gradients",
                ).at(("parameters", name))
        if [i.checkpoint for i in tensor.inputs] != [i.checkpoint for i in first.inputs]:
            raise PlannedError(
                f"{recipe.merge_method} looks at whole models: they are the same in every slice", where=tensor.name
            ).at(("slices",))


def _check_same(model: Checkpoint, name: str, spec: TensorSpec, keys: Keys) -> None:
    got = model.spec(name)
    if got.shape != spec.shape:
        raise PlannedError(
            "a tensor has another shape",
            where=f"{model.where}: {name}",
            got=list(got.shape),
            expected=list(spec.shape),
            hint="say what to do with other vocabularies: tokenizer_source" if VOCABULARY.search(name) else None,
        ).at(keys)
    if (got.dtype in FLOATS) != (spec.dtype in FLOATS):
        raise PlannedError(
            "a tensor has another kind of dtype", where=f"{model.where}: {name}", got=got.dtype, expected=spec.dtype
        ).at(keys)
