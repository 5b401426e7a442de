"""A plan as people read it: tensors to which the same happens on one line, layers folded, with what it will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

from ..checkpoint import BLOCK_BYTES
from ..checkpoint.architecture import layer_of
from .methods import METHODS
from .plan import Input, Plan, TensorPlan
from .settings import Scalar

# Buffers that a method holds beside its inputs' blocks: the result, a mask, a temporary.
_BESIDE = 3


@dataclass(frozen=True, slots=True)
class Action:
    """What happens to a tensor: equal ones are folded."""

    method: str
    dtype: str
    parameters: str
    sources: str


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors with one action: their names folded into a pattern, how many, their bytes in the result."""

    names: str
    action: Action
    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Outline:
    """A plan in short.

    Attributes:
        groups: in the order of the result's names.
        tensors: how many.
        bytes_read, bytes_written: as in the plan.
        reads: how often the methods go over their inputs, at least.
        peak: bytes of memory, about, beside the interpreter's own.
        threads: for how many that holds.
        notes: the plan's.
    """

    groups: tuple[Group, ...]
    tensors: int
    bytes_read: int
    bytes_written: int
    reads: int
    peak: int
    threads: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [(g.names, g.action.method, g.action.dtype, g.action.sources, g.action.parameters) for g in self.groups]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        lines = [
            "  ".join((*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[4])).rstrip() for row in rows
        ]
        lines += [f"note: {note}" for note in self.notes]
        again = f", {self.reads} times or more" if self.reads > 1 else ""
        lines.append(
            f"{self.tensors} tensors; {self.bytes_read:,} bytes to read{again}, {self.bytes_written:,} to write;"
            f" about {max(1, round(self.peak / 1e6)):,} MB of memory on {self.threads} threads"
        )
        return "\n".join(lines)

    @property
    def data(self) -> dict[str, Any]:
        """The same for machines."""
        return asdict(self)


def outline(plan: Plan, threads: int = 1) -> Outline:
    """A plan in short.

    Args:
        plan: the whole.
        threads: how many will compute it.
    """
    templates = _by_template(plan)
    methods = {t.method for t in plan.tensors.values() if t.method is not None}
    return Outline(
        tuple(_fold("", templates, templates)),
        len(plan.tensors),
        plan.bytes_read,
        plan.bytes_written,
        2 if any(METHODS[m].survey is not None for m in methods) else 1,
        _peak(plan, threads),
        threads,
        plan.notes,
    )


class _Case(NamedTuple):
    """What has one action: the layers it happens in, how many tensors, their bytes."""

    layers: tuple[int, ...]
    tensors: int
    bytes: int


_Cases: TypeAlias = Mapping[Action, _Case]
# Names with {} for the layer, in parts.
_Templates: TypeAlias = Mapping[tuple[str, ...], _Cases]
_REST = " (the rest)"


def _by_template(plan: Plan) -> _Templates:
    found: dict[tuple[str, ...], dict[Action, _Case]] = {}
    for name, tensor in plan.tensors.items():
        spot = layer_of(name)
        template: tuple[str, ...] = tuple(name.split("."))
        layers: tuple[int, ...] = ()
        if spot is not None:
            stack, number = spot
            rest = name[len(stack) + 1 :].partition(".")[2]
            template, layers = (*stack.split("."), "{}", *rest.split(".")), (number,)
        cases = found.setdefault(template, {})
        action = _action(plan, tensor, layers)
        before = cases.get(action, _Case((), 0, 0))
        cases[action] = _Case((*before.layers, *layers), before.tensors + 1, before.bytes + tensor.spec.nbytes)
    return _numbers_folded(found)


def _numbers_folded(templates: _Templates) -> _Templates:
    """Names that differ in a number besides the layer's (experts) as one, where the same happens to all of them."""
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for template in templates:
        alike.setdefault(tuple("*" if part.isdigit() else part for part in template), []).append(template)
    found: dict[tuple[str, ...], _Cases] = {}
    for pattern, members in alike.items():
        if len({_sign(templates[m]) for m in members}) > 1:
            found.update((m, templates[m]) for m in members)
            continue
        found[pattern if len(members) > 1 else members[0]] = {
            action: _Case(
                case.layers,
                sum(templates[m][action].tensors for m in members),
                sum(templates[m][action].bytes for m in members),
            )
            for action, case in templates[members[0]].items()
        }
    return found


def _action(plan: Plan, tensor: TensorPlan, layers: Sequence[int]) -> Action:
    shown: list[str] = []
    row = METHODS[tensor.method].parameters if tensor.method is not None else {}
    for name, value in tensor.parameters.items():
        default = row[name].default
        values = value if isinstance(value, tuple) else (value,)
        if row[name].required or any(v != default for v in values):
            shown.append(f"{name} {_words(values)}")
    sources: tuple[Input, ...] = (*([tensor.base] if tensor.base is not None else []), *tensor.inputs)
    # Where layers are moved, or only one input is taken: from where.
    moved = plan.layers and (layers or len(sources) == 1)
    texts = [plan.inputs[i.checkpoint] + _shift(i, layers) for i in sources] if moved else []
    if tensor.method is None and not moved:
        texts = [plan.inputs[i.checkpoint] for i in sources]
    shown += [
        f"{name} {' '.join(plan.inputs[i.checkpoint] for i in chosen)}" for name, chosen in tensor.statistics.items()
    ]
    return Action(tensor.method or "copy", tensor.spec.dtype, "; ".join(shown), " + ".join(texts))


def _words(values: Sequence[Scalar]) -> str:
    same = values[:1] if len(set(values)) == 1 else values
    return " ".join(
        f"{v:g}" if isinstance(v, float) else str(v).lower() if isinstance(v, bool) else str(v) for v in same
    )


def _shift(source: Input, layers: Sequence[int]) -> str:
    spot = layer_of(source.name)
    if spot is None or not layers:
        return ""
    shift = spot[1] - layers[0]
    return f" {shift:+d}" if shift else ""


def _fold(prefix: str, templates: _Templates, everything: _Templates) -> Iterable[Group]:
    """Groups of some of the names below a prefix: one line where the same happens to all there are.

    Where it happens to most, those it does not happen to stand above, and the line is about the rest.
    """
    signs = {template: _sign(cases) for template, cases in templates.items()}
    layered = any("{}" in template for template in everything)  # a pattern says which layers it is about
    if prefix and not layered:
        (most, count), *others = Counter(signs.values()).most_common()
        whole = len(templates) == len(everything)
        alike = {t: cases for t, cases in templates.items() if signs[t] == most}
        if whole and not others and (count > 1 or () in templates):
            yield from _lines(prefix, "" if () in templates else ".*", alike)
            return
        if whole and count > 1:
            yield from _below(prefix, {t: c for t, c in templates.items() if t not in alike}, everything)
            yield from _lines(prefix, ".*" + _REST, alike)
            return
    yield from _below(prefix, templates, everything)


def _below(prefix: str, templates: _Templates, everything: _Templates) -> Iterable[Group]:
    if () in templates:
        yield from _lines(prefix, "", {(): templates[()]})
    for head in dict.fromkeys(template[0] for template in templates if template):
        own, every = (
            {t[1:]: cases for t, cases in some.items() if t and t[0] == head} for some in (templates, everything)
        )
        yield from _fold(f"{prefix}.{head}" if prefix else head, own, every)


def _sign(cases: _Cases) -> tuple[tuple[Action, tuple[int, ...]], ...]:
    return tuple((action, case.layers) for action, case in cases.items())


def _lines(prefix: str, ending: str, templates: _Templates) -> Iterable[Group]:
    cases = list(templates.values())
    for action, case in cases[0].items():
        count, size = (sum(getattr(c[action], what) for c in cases) for what in ("tensors", "bytes"))
        yield Group(_numbered(prefix, case.layers) + ending, action, count, size)


def _numbered(pattern: str, layers: Sequence[int]) -> str:
    return pattern.replace("{}", "{" + _ranges(layers) + "}") if layers else pattern


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers as ranges.

    >>> _ranges([0, 1, 2, 5])
    '0-2,5'
    """
    found: list[list[int]] = []
    for n in sorted(numbers):
        if found and found[-1][1] == n - 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in found)


def _peak(plan: Plan, threads: int) -> int:
    """Bytes alive at once, about: each thread's blocks of every input, in float32, and the part of the file it fills."""
    from .fused import BLOCK

    most = 0
    for tensor in plan.tensors.values():
        if tensor.method is None:
            continue
        unit = METHODS[tensor.method].unit
        row = tensor.spec.numel // max(1, tensor.spec.shape[0]) if len(tensor.spec.shape) > 1 else tensor.spec.numel
        step = {"block": BLOCK, "row": max(BLOCK, row), "tensor": tensor.spec.numel}[unit]
        width = 8 if tensor.spec.dtype == "F64" else 4
        inputs = len(tensor.inputs) + sum(map(len, tensor.statistics.values())) + (tensor.base is not None) + _BESIDE
        most = max(most, min(step, tensor.spec.numel) * width * inputs)
    return threads * (most + min(BLOCK_BYTES, plan.bytes_written))
