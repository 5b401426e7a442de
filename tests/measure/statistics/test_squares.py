"""Squares of per-example gradients, layer by layer, against one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cofuse.measure.statistics.fisher import fisher
from cofuse.measure.statistics.squares import Collector, DoubtError
from cofuse.measure.statistics.squares.fallback import Fallback
from cofuse.measure.statistics.squares.linear import add_outer_squares
from cofuse.measure.subject import Batch, Subject, module_subject
from cofuse.tasks import Examples

from .slow_fisher import assert_same, slow_fisher


class Flat(nn.Module):
    """A layer between two others, so that it has to pass its gradient on and gets one that is its examples' own."""

    def __init__(self, layer: nn.Module, ids: bool = False) -> None:
        super().__init__()
        self.layer, self.ids = layer, ids

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        x = given if self.ids else given + 0.1 * given.square()
        y = torch.tanh(self.layer(x)).flatten(1)
        return torch.stack([y.sum(1), y.square().sum(1), (y * torch.arange(y.shape[1]) / y.shape[1]).sum(1)], 1)


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    return module.double()


def same(subject: Subject, examples: Examples, batch: int = 3, **options: int) -> Collector:
    """The collector's means are the slow loop's; gives the collector."""
    with Collector(subject, **options) as squares:
        for one in subject.batches(examples, batch):
            p = subject.logits(one).detach().softmax(-1)
            v = torch.eye(p.shape[-1], dtype=p.dtype)[one.labels] - p
            squares.add(one, lambda logits, batch, v=v: [v])
    expected = slow_fisher(subject, examples, "empirical")
    found = squares.means()
    assert set(found) == set(expected)
    for name, right in expected.items():
        torch.testing.assert_close(
            found[name].double(), right, rtol=2e-6, atol=1e-12 + 1e-7 * float(right.max()), msg=name
        )
    return squares


def examples_of(*shape: int, count: int = 7, ids: int = 0) -> Examples:
    random = np.random.default_rng(0)
    x = random.integers(0, ids, (count, *shape)) if ids else random.normal(size=(count, *shape))
    return Examples({"given": x}, random.integers(0, 3, count))


# A layer, and the shape of one example.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 5), (4,)),
    "linear over time": (lambda: nn.Linear(4, 5), (6, 4)),
    "linear over time and place": (lambda: nn.Linear(4, 5, bias=False), (2, 3, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), (6, 4)),
    "layer norm over two dimensions": (lambda: nn.LayerNorm((6, 4)), (6, 4)),
    "layer norm without a shift": (lambda: nn.LayerNorm(4, bias=False), (4,)),
    "rms norm": (lambda: nn.RMSNorm(4), (6, 4)),
    "rms norm with eps": (lambda: nn.RMSNorm(4, eps=0.1), (6, 4)),
    "batch norm of channels": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (4, 3, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 6)),
    "convolution, strided": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        (4, 7, 6),
    ),
    "convolution, same": (lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), (4, 5, 5)),
    "convolution, circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 5, 5)),
    "convolution, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 7, 6)),
    "convolution, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
    "convolution, one dimension": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    "convolution, one dimension, grouped": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2), (4, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_a_rule(name: str) -> None:
    make, shape = LAYERS[name]
    subject = module_subject(randomised(Flat(make())))
    assert same(subject, examples_of(*shape)).fallback == ()


@pytest.mark.parametrize("padding", [None, 0, 2])
def test_a_table_counts_each_row_once_an_example(padding: int | None) -> None:
    subject = module_subject(randomised(Flat(nn.Embedding(5, 4, padding_idx=padding), ids=True)))
    assert same(subject, examples_of(6, ids=5)).fallback == ()


@pytest.mark.parametrize("budget", [1, 200, 1 << 26])
def test_memory_changes_nothing(budget: int) -> None:
    for name in ("linear over time", "convolution", "convolution, grouped", "layer norm"):
        make, shape = LAYERS[name]
        same(module_subject(randomised(Flat(make()))), examples_of(*shape), budget=budget)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 7), st.integers(1, 400))
def test_outer_products_are_summed_over_time_before_they_are_squared(
    n: int, time: int, rows: int, columns: int, budget: int
) -> None:
    generator = torch.Generator().manual_seed(n + 10 * time)
    left, right = (torch.randn(n, time, k, generator=generator, dtype=torch.float64) for k in (rows, columns))
    into = torch.ones(rows, columns, dtype=torch.float64)
    add_outer_squares(left, right, into, budget)
    torch.testing.assert_close(into, 1 + torch.einsum("ntr,ntc->nrc", left, right).square().sum(0))


class Reused(nn.Module):
    """A table that is the last layer too, and a layer that is gone through twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.middle = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.table.weight

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        x = self.table(given)
        for _ in range(2):
            x = self.norm(x + torch.tanh(self.middle(x)))
        return self.out(x).sum(1)


@pytest.mark.parametrize("budget", [1, 1 << 26])
def test_uses_of_one_weight_are_added_before_they_are_squared(budget: int) -> None:
    subject = module_subject(randomised(Reused()))
    squares = same(subject, examples_of(5, ids=6), budget=budget)
    assert squares.fallback == ()
    found = squares.means()
    assert found["out.weight"] is found["table.weight"]


class Bare(nn.Module):
    """Parameters outside of layers; a layer whose weight is used behind its back; positions that are all examples'."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.first = nn.Parameter(torch.ones(1, 1, 4))
        self.behind = nn.Linear(4, 4)
        self.positions = nn.Embedding(6, 4)
        self.places = nn.Embedding(6, 4)
        self.unused = nn.Parameter(torch.ones(3))
        self.never = nn.Linear(2, 2)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.first.expand(len(given), -1, -1), given * self.scale], 1)
        x = x + self.positions(torch.arange(x.shape[1]).unsqueeze(0))  # one row for all examples
        x = x + self.places(torch.arange(x.shape[1]))  # not even that
        x = self.behind(x) + F.linear(x.square(), self.behind.weight)
        return torch.tanh(x).sum(1)


def test_what_no_rule_covers_is_found_and_said() -> None:
    examples = Examples({"given": np.random.default_rng(0).normal(size=(7, 5, 4))}, np.arange(7) % 4)
    squares = same(module_subject(randomised(Bare())), examples)
    assert set(squares.fallback or ()) == {"scale", "unused", "behind.weight", "places.weight"}
    assert not squares.means()["unused"].any()
    assert not squares.means()["never.weight"].any()


class Deciding(nn.Module):
    """Control that depends on data: `vmap` does not go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given * (self.scale if float(given.detach().sum()) > 0 else self.scale.square())


def test_one_at_a_time_where_nothing_else_goes() -> None:
    examples = examples_of(3)
    examples = Examples({"given": np.abs(examples.inputs["given"])}, examples.labels)
    assert same(module_subject(randomised(Deciding())), examples).fallback == ("scale",)


class Shuffled(nn.Linear):
    """Has the name of what a rule is for, and does something else: it mixes what stands in a row."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return super().forward(given.flip(-1)) * 2


def test_a_name_is_only_a_guess() -> None:
    subject = module_subject(randomised(Flat(Shuffled(4, 5))))
    assert same(subject, examples_of(4)).fallback == ("layer.weight", "layer.bias")


class Routed(nn.Module):
    """Each position goes to one of three layers, by its first number."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3) for _ in range(3)])

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        rows = given.reshape(-1, 4)
        taken = rows[:, 0].long()
        out = rows.new_zeros(len(rows), 3)
        for number, expert in enumerate(self.experts):
            (mine,) = torch.where(taken == number)
            if len(mine):
                out = out.index_add(0, mine, torch.tanh(expert(rows[mine])))
        return out.reshape(*given.shape[:2], 3).sum(1)


def routed(routes: list[list[int]]) -> Examples:
    random = np.random.default_rng(0)
    x = random.normal(size=(*np.shape(routes), 4)).astype(np.float32)
    x[..., 0] = routes
    return Examples({"given": x}, random.integers(0, 3, len(routes)))


# Of examples in batches of two, three positions each: which layer a position goes to.
ROUTES = {
    "otherwise in a later batch": [[0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]],
    "as many rows as examples, by chance": [[0, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1], [0, 1, 1]],
    "not in the check": [[0, 1, 0], [0, 1, 0], [2, 1, 0], [2, 1, 2], [0, 2, 2], [2, 2, 2]],
}


@pytest.mark.parametrize("batch_size", [2, 3, 6])
@pytest.mark.parametrize("name", ROUTES)
def test_rows_that_depend_on_the_data_are_seen(name: str, batch_size: int) -> None:
    torch.manual_seed(0)
    subject, examples = module_subject(Routed()), routed(ROUTES[name])
    assert_same(
        fisher(subject, examples, kind="empirical", batch_size=batch_size), slow_fisher(subject, examples, "empirical")
    )


def test_what_a_rule_has_added_is_taken_back_where_the_rule_fails() -> None:
    subject, examples = module_subject(randomised(Routed()).float()), routed(ROUTES["otherwise in a later batch"])
    batches = list(subject.batches(examples, 2))
    with Collector(subject) as squares:
        squares.add(batches[0], lambda logits, batch: [torch.ones_like(logits)])
        assert squares.fallback == ()
        with pytest.raises(DoubtError, match="rows of a layer") as doubt:
            squares.add(batches[1], lambda logits, batch: [torch.ones_like(logits)])
    assert doubt.value.names >= {"experts.0.weight", "experts.0.bias"}


class Dead(nn.Module):
    """A layer with another layer's name, whose gradient is zero on the first examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Shuffled(4, 3)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.layer(given) * given[:, :1].clamp(min=0)


class Late(nn.Module):
    """A layer that always runs, and counts for some examples only: not for the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = Shuffled(4, 3), nn.Linear(4, 3)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        y = self.layer(given)
        return self.other(given) + (y if float(given[0, 0]) > 0 else 0)


def test_a_layer_that_counts_later_is_seen() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    x[:, 0] = [-1, -1, 1, 1, -1, -1]
    examples = Examples({"given": x}, np.arange(6) % 3)
    subject = module_subject(randomised(Late()).float())
    assert_same(fisher(subject, examples, kind="empirical", batch_size=2), slow_fisher(subject, examples, "empirical"))


def test_zero_for_zero_proves_no_rule() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    x[:, 0] = [-1, -1, 1, 1, 2, -1]
    assert same(module_subject(randomised(Dead())), Examples({"given": x}, np.arange(6) % 3)).fallback


class _Largest(TorchDispatchMode):
    """The most bytes that one tensor took."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel() * tensor.element_size())
        return out


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1000))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return (given.sum(1, keepdim=True) * self.scale).reshape(len(given), 4, 250).sum(2)


def test_the_fallback_holds_no_more_than_its_budget() -> None:
    subject, examples = module_subject(Wide()), examples_of(3, count=40)
    (batch,) = subject.batches(examples, 40)
    batch = Batch(batch.rows, {"given": batch.inputs["given"].float()}, batch.labels)
    found = {}
    for budget in (4 * 4000, 1 << 26):
        fallback = Fallback(subject, budget)
        fallback.take(["scale"])
        with _Largest() as seen:
            found[budget] = fallback.squares(batch, torch.ones(40, 4), nullcontext)["scale"]
        assert fallback.vmapped
        assert seen.most <= budget
    torch.testing.assert_close(found[4 * 4000], found[1 << 26])


class Hungry(nn.Module):
    """Wants more memory than there is where it is given examples one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if torch._C._functorch.is_gradtrackingtensor(self.scale):
            torch.empty(1 << 55)
        return given * self.scale


def test_want_of_memory_is_no_lack_of_a_rule() -> None:
    subject = module_subject(randomised(Hungry()))
    (batch,) = subject.batches(examples_of(3), 7)
    with pytest.raises(RuntimeError, match="allocate"), Collector(subject) as squares:
        squares.add(batch, lambda logits, batch: [torch.ones_like(logits)])


def test_the_model_is_left_as_it_was() -> None:
    subject = module_subject(randomised(Reused()))
    subject.module.get_parameter("norm.weight").requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in subject.module.named_parameters()}
    (batch,) = subject.batches(examples_of(5, ids=6), 7)

    def failing(logits: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Collector(subject) as squares:
        squares.add(batch, failing)
    assert list(before) == [name for name, _ in subject.module.named_parameters()]
    for name, parameter in subject.module.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in subject.module.modules())
