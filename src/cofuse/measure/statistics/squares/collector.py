"""Sums of squared per-example gradients, taken by hooks while a batch goes back through the model.

    S_j = sum_n sum_k ((J_n' v_nk)_j)^2

Going forward, a layer with a rule leaves its inputs; going backward, the gradient at its outputs. From the two its rule
makes each example's gradient of the layer's parameters. Torch itself computes none of them: parameters want no gradient,
so only what passes between layers is propagated, a third less work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ....errors import TaskError
from ..exhausted import exhausted
from .bare import bare_rows, own_rows
from .coverage import one_at_a_time, unlike
from .fallback import Fallback
from .rule import Rule, parts
from .rules import rule_of

if TYPE_CHECKING:
    from ...subject import Batch, Subject

BUDGET = 64 * 2**20  # bytes that per-example gradients of one parameter may take at a time
# Squares summed in float32 before they are added to the float64 sums: their rounding stays below 1e-6 of the sum.
_WINDOW = 128

Around = Callable[[], AbstractContextManager[Any]]
Cotangents = Callable[[torch.Tensor, "Batch"], Iterable[torch.Tensor]]
# How a layer's rows relate to a batch: so many for each example, or as many as an input is long: (its name, the axis).
_Shares = frozenset[int | tuple[str, int]]


class DoubtError(TaskError):
    """Squares that were added may be wrong: a layer's rows stood for examples by chance.

    Attributes:
        names: parameters of such layers, to begin anew with.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        super().__init__(
            "rows of a layer are not the examples'",
            where=", ".join(sorted(self.names)),
            hint="sum again with `apart` these names",
        )


@dataclass(slots=True)
class _Use:
    """One call of a layer: its inputs, and the gradient at its outputs once that is known."""

    module: nn.Module
    a: torch.Tensor
    count: int
    rows: int
    g: torch.Tensor | None = None

    def apart(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and gradient by example; rows of one example that stand one after the other are put together."""
        assert self.g is not None
        a, g = self.a.to(dtype) if self.a.is_floating_point() else self.a, self.g.to(dtype)
        if len(g) != self.count:
            a, g = (x.reshape(self.count, -1, *x.shape[1:]) for x in (a, g))
        return a, g

    def shares(self, batch: Batch) -> _Shares:
        """What may be behind the number of its rows; nothing where they do not go evenly into the examples."""
        each, rest = divmod(self.rows, self.count)
        if rest:
            return frozenset()
        inputs = batch.inputs.items()
        return frozenset(
            {each, *((name, axis) for name, x in inputs for axis, size in enumerate(x.shape[1:]) if size == each)}
        )


class Collector:
    """Squared gradients of a model's parameters, summed over the examples of batches.

    A context manager: inside it the parameters want no gradient, and the model has hooks. On the first examples it checks
    every parameter against gradients of one example at a time. Those that no rule covers exactly are found by
    `torch.func` from then on, and named in `fallback`. So is, later, what the check did not see: a layer that was not
    used in it, and one whose rows relate otherwise to the batch (experts that tokens are routed to).

    Args:
        subject: the model.
        budget: bytes that the gradients of one parameter may take at a time.
        around: what each forward pass runs inside: autocast.
        apart: parameters that no rule is to be asked for.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        budget: int = BUDGET,
        around: Around = nullcontext,
        apart: Iterable[str] = (),
    ) -> None:
        self.subject = subject
        self._budget, self._around = budget, around
        self._names: dict[int, str] = {}  # a parameter -> the first of its names
        for name, parameter in subject.parameters().items():
            self._names.setdefault(id(parameter), name)
        by_name = subject.parameters()
        self.parameters: Mapping[str, nn.Parameter] = {name: by_name[name] for name in self._names.values()}
        self._sums = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.parameters.items()}
        self._window = {
            n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for n, p in self.parameters.items()
        }
        self._in_window = 0
        self.examples = 0
        self.fallback: tuple[str, ...] | None = None  # not known before the first batch
        self._other = Fallback(subject, budget)
        self._rules: dict[nn.Module, Rule] = {}
        self._homes: dict[nn.Module, list[tuple[str, str]]] = {}  # a layer -> its parameters' names in it, and ours
        for module in subject.module.modules():
            rule = rule_of(module)
            own = (
                {} if rule is None else {a: p for a, p in module.named_parameters(recurse=False) if a in rule.gradients}
            )
            if rule is not None and (mine := [(a, self._names[id(p)]) for a, p in own.items() if id(p) in self._names]):
                self._rules[module], self._homes[module] = rule, mine
        covered = {name for homes in self._homes.values() for _, name in homes}
        self._bare = bare_rows(subject.module, {i: n for i, n in self._names.items() if n not in covered})
        self._uses: dict[str, list[_Use]] = {}
        self._left: dict[str, int] = {}
        self._count = 0  # examples of the batch that is inside; 0 where hooks are to do nothing
        self._expanding = True
        self._expanded: set[nn.Module] = set()  # layers whose one row was for all examples in the check
        self._apart = frozenset(apart)
        self._failed: set[str] = set()
        self._shares: dict[nn.Module, _Shares] = {}  # of every layer that was used
        self._reached: set[nn.Module] = set()  # layers that the check's gradient came to
        self._arrived_bare: set[str] = set()  # bare ones that the check saw
        self._added: set[str] = set()  # parameters whose squares a rule has added
        self._handles: list[Any] = []
        self._wanted: dict[nn.Parameter, bool] = {}

    def __enter__(self) -> Collector:
        self._wanted = {p: p.requires_grad for p in self.subject.module.parameters()}
        for parameter in self._wanted:
            parameter.requires_grad_(False)
        self._handles = [m.register_forward_hook(self._forward, with_kwargs=True) for m in self._homes]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter, wanted in self._wanted.items():
            parameter.requires_grad_(wanted)
        self._uses.clear()

    def add(self, batch: Batch, cotangents: Cotangents) -> None:
        """Add a batch.

        Args:
            batch: some examples.
            cotangents: logits and the batch -> the vectors v at the logits, one after the other.

        Raises:
            TaskError: logits or a gradient are not finite.
            DoubtError: squares of earlier batches were added by a rule that is now seen not to hold.
        """
        if self.fallback is None:
            self._check(batch.first(2))
        self._pass(batch, cotangents, self._around)
        self.examples += len(batch)

    def means(self) -> dict[str, torch.Tensor]:
        """The mean over all examples that were added, float32, by every name of the checkpoint; tied names share one.

        Raises:
            TaskError: a sum is not finite.
        """
        self._fold()
        found = {}
        for name, total in self._sums.items():
            mean = (total / max(1, self.examples)).float().cpu()
            if not bool(torch.isfinite(mean).all()):
                raise TaskError(
                    "a squared gradient is not finite", where=name, hint="the model's weights may be too large"
                )
            found[name] = mean
        return {name: found[self._names[id(p)]] for name, p in self.subject.parameters().items()}

    # One batch

    def _pass(self, batch: Batch, cotangents: Cotangents, around: Around) -> None:
        with around():
            logits = self._logits(batch)
        if not bool(torch.isfinite(logits).all()):
            where = f"examples {', '.join(map(str, batch.rows[:8]))}{', ...' if len(batch) > 8 else ''}"
            raise TaskError("the model's outputs are not finite", where=where, hint="is the checkpoint damaged?")
        self._compare(batch)
        before: torch.Tensor | None = None
        for v in cotangents(logits, batch):
            if before is not None:
                self._backward(logits, batch, before, last=False)
            before = v
        if before is not None:
            self._backward(logits, batch, before, last=True)
        self._uses.clear()

    def _logits(self, batch: Batch) -> torch.Tensor:
        self._uses = {}
        self._count = len(batch)
        try:
            with own_rows(self._bare if self._expanding else [], len(batch), self._arrived_rows):
                return self.subject.logits(batch)
        finally:
            self._count = 0

    def _backward(self, logits: torch.Tensor, batch: Batch, v: torch.Tensor, *, last: bool) -> None:
        self._left = {name: len(uses) for name, uses in self._uses.items()}
        if logits.requires_grad:
            torch.autograd.backward(logits, v.to(logits), retain_graph=not last)
        for name in [name for name, left in self._left.items() if left]:  # nothing came of some use
            self._square(name)
        for use in (use for uses in self._uses.values() for use in uses):
            use.g = None
        for name, squares in self._other.squares(batch, v, self._around).items():
            self._window[name].add_(squares)
        self._in_window += len(v)
        if self._in_window >= _WINDOW:
            self._fold()

    def _fold(self) -> None:
        for name, window in self._window.items():
            self._sums[name].add_(window)
            window.zero_()
        self._in_window = 0

    # Hooks

    def _forward(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not self._count or not len(output):
            return None
        a: torch.Tensor = (args[0] if args else next(iter(kwargs.values()))).detach()
        if self.fallback is None and len(output) == 1 < self._count and self._expanding:
            self._expanded.add(module)
        if len(output) == 1 < self._count and module in self._expanded:
            # The same for all examples (a table of positions): made into each one's own, so that gradients come apart.
            output, a = (x.expand(self._count, *x.shape[1:]) for x in (output, a))
        if not output.requires_grad:  # where what is propagated begins; a copy, for it may be changed in place
            output = output.detach().requires_grad_().clone()
        use = _Use(module, a, self._count, len(output))
        for _, name in self._homes[module]:
            self._uses.setdefault(name, []).append(use)
        output.register_hook(partial(self._arrived, use))  # type: ignore[no-untyped-call]
        return output

    def _arrived_rows(self, name: str, g: torch.Tensor) -> None:
        if self.fallback is None:
            self._arrived_bare.add(name)
        elif name not in self._arrived_bare:
            raise DoubtError([name])
        self._window[name].add_(g.detach().to(self._window[name].dtype).square().sum(0, keepdim=True))

    def _arrived(self, use: _Use, g: torch.Tensor) -> None:
        use.g = g.detach()
        if self.fallback is None:
            self._reached.add(use.module)
        elif use.module not in self._reached and self._homes[use.module]:
            raise DoubtError(name for _, name in self._homes[use.module])
        for _, name in self._homes[use.module]:
            self._left[name] -= 1
            if not self._left[name]:
                self._square(name)
        if all(len(self._uses[name]) == 1 for _, name in self._homes[use.module]):
            use.g = None

    def _square(self, name: str) -> None:
        """Add a parameter's squares, once all of its uses are known: their gradients are added before they are squared."""
        uses = [use for use in self._uses[name] if use.g is not None]
        try:
            if len(uses) == 1:
                (use,) = uses
                rule, attribute = self._rules[use.module], self._attribute(use, name)
                rule.add(attribute, use.module, *use.apart(self._window[name].dtype), self._window[name], self._budget)
            elif uses:
                self._square_together(name, uses)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if self.fallback is not None or exhausted(error):
                raise
            self._failed.add(name)  # the class only has the name of one that a rule is for

    def _square_together(self, name: str, uses: list[_Use]) -> None:
        window = self._window[name]
        pairs = [(use, *use.apart(window.dtype)) for use in uses]
        for part in parts(uses[0].count, 2 * window.numel() * window.element_size(), self._budget):
            whole: torch.Tensor | None = None
            for use, a, g in pairs:
                gradients = self._rules[use.module].gradients[self._attribute(use, name)]
                found = gradients(use.module, a[part], g[part])
                whole = found if whole is None else whole.add_(found)
            if whole is not None:
                window.add_(whole.square_().sum(0))

    def _attribute(self, use: _Use, name: str) -> str:
        return next(attribute for attribute, its in self._homes[use.module] if its == name)

    # What the rules cover

    def _check(self, batch: Batch) -> None:
        """Compare every parameter with gradients of one example at a time; what is not the same goes to the fallback."""
        truth, v = one_at_a_time(self.subject, batch, list(self.parameters.items()))
        try:
            self._pass(batch, lambda logits, _: [v], nullcontext)  # in float32, as the truth is
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if exhausted(error):
                raise
            # Somewhere in the model one row for all examples is wanted.
            self._expanding = False
            self._forget()
            self._expanded.clear()
            self._reached.clear()
            self._shares.clear()
            self._failed.clear()
            self._pass(batch, lambda logits, _: [v], nullcontext)
        ruled = {name for homes in self._homes.values() for _, name in homes}
        ruled |= {name for _, _, name in self._bare} if self._expanding else set()
        # A rule that gave zero for zero has shown nothing.
        used = {name for module in self._reached for _, name in self._homes[module]} | self._arrived_bare
        silent = {name for name in used if not bool(truth[name].any())}
        wrong = set(self._apart) | self._failed | (set(self.parameters) - ruled) | silent
        wrong |= set(unlike(self._window, truth))
        self._forget()
        self._to_fallback(wrong)
        self._bare = [row for row in self._bare if self._expanding]

    def _forget(self) -> None:
        """The check's squares are none of the sums'."""
        for window in self._window.values():
            window.zero_()
        self._in_window = 0

    def _to_fallback(self, names: set[str]) -> None:
        self.fallback = tuple(name for name in self.parameters if name in names or name in (self.fallback or ()))
        self._other.take(self.fallback)
        for module, homes in self._homes.items():
            self._homes[module] = [home for home in homes if home[1] not in names]
        self._bare = [row for row in self._bare if row[2] not in names]

    def _compare(self, batch: Batch) -> None:
        """Before squares are added: what is used otherwise than in the check goes to the fallback.

        Rows that depend on the data may be as many as there are examples and not be theirs.

        Raises:
            DoubtError: a rule has added squares of it before.
        """
        wrong: set[str] = set()
        for use in {id(use): use for uses in self._uses.values() for use in uses}.values():
            known = self._shares.get(use.module)
            shares = use.shares(batch)
            if known is None and self.fallback is None:
                known = shares
            # Of one example all rows are its own, however many.
            self._shares[use.module] = now = (
                frozenset() if known is None else known if use.count == 1 else known & shares
            )
            if not now:
                wrong |= {name for _, name in self._homes[use.module]}
        if self.fallback is None:
            self._failed |= wrong
            return
        if wrong & self._added:
            raise DoubtError(wrong & self._added)
        if wrong:
            self._to_fallback(wrong)
            for name in wrong:
                del self._uses[name]
        self._added |= set(self._uses)
