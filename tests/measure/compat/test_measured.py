"""KL on data and the full quadratic form: against explicit Jacobians, and each other where a change is small."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from cofuse.checkpoint import Memory, content_id
from cofuse.errors import TaskError
from cofuse.measure.compat import predict
from cofuse.measure.compat.measured import measure_change
from cofuse.measure.compat.quadratic import _twice_backward, along
from cofuse.measure.statistics.fisher import fisher
from cofuse.measure.statistics.record import StatisticsRecord, with_record
from cofuse.measure.subject import Outputs, Subject, module_subject
from cofuse.tasks import Examples

Tensors = dict[str, torch.Tensor]


class Attending(nn.Module):
    """Embedding, fused attention, norm; logits of a class, or of a token at each position, from the tied embedding."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs = outputs
        self.embedding = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False) if outputs == "tokens" else nn.Linear(8, 3)
        if outputs == "tokens":
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(self.embedding(ids)).unsqueeze(1).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        hidden: torch.Tensor = self.norm(mixed + self.embedding(ids))
        logits: torch.Tensor = self.head(hidden if self.outputs == "tokens" else hidden.mean(1))
        return logits


class Valued(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.two(torch.tanh(self.one(x)))
        return found


def subject_of(outputs: Outputs) -> tuple[Subject, Examples]:
    """A model in double precision, whose parameters move a second one's way, and examples."""
    torch.manual_seed(0)
    module = (Valued() if outputs == "values" else Attending(outputs)).double()
    random = np.random.default_rng(0)
    if outputs == "values":
        examples = Examples({"x": random.normal(size=(7, 4))}, random.normal(size=7))
    else:
        ids = random.integers(0, 11, (7, 5))
        labels = random.integers(-4, 11, (7, 5)) if outputs == "tokens" else random.integers(0, 3, 7)
        examples = Examples({"ids": ids}, labels)
    return module_subject(module, outputs), examples


def moved(subject: Subject, size: float, seed: int = 1) -> Memory:
    random = torch.Generator().manual_seed(seed)
    return Memory(
        {
            n: p.detach() + size * torch.randn(p.shape, generator=random).to(p.dtype)
            for n, p in subject.module.named_parameters()
        }
    )


def jacobian_of(module: nn.Module, at: Tensors, inputs: tuple[torch.Tensor, ...]) -> Any:
    with sdpa_kernel(SDPBackend.MATH):  # others warn that they are slow
        return jacrev(lambda p: functional_call(module, p, inputs))(at)


def explicit(subject: Subject, changed: Memory, examples: Examples) -> tuple[float, float]:
    """KL and 1/2 delta' F delta with F written out, one example and one position at a time."""
    module = subject.module
    before = {n: p.detach() for n, p in module.named_parameters()}
    after = {n: changed.read(n) for n in before}
    kls = forms = 0.0
    for batch in subject.batches(examples, 1):
        inputs = tuple(batch.inputs.values())
        jacobian = jacobian_of(module, before, inputs)
        old, new = (functional_call(module, p, inputs).detach()[0] for p in (before, after))
        flat = torch.cat([jacobian[n][0].reshape(*old.shape, -1) for n in before], -1)
        delta = torch.cat([(after[n] - before[n]).reshape(-1) for n in before])
        if subject.outputs == "classes":
            old, new, flat = old[None], new[None], flat[None]
        for t in range(len(old)):
            if batch.mask is not None and not batch.mask[0, t]:
                continue
            if subject.outputs == "values":
                middle = torch.ones(1, 1, dtype=torch.double)
                kls += 0.5 * float((new[t] - old[t]) ** 2)
                rows = flat[t][None]
            else:
                p, q = old[t].softmax(0), new[t].softmax(0)
                kls += float((p * (p / q).log()).sum())
                middle, rows = p.diag() - p[:, None] * p[None], flat[t]
            forms += 0.5 * float(delta @ (rows.T @ middle @ rows) @ delta)
    return kls / len(examples), forms / len(examples)


ALL: list[Outputs] = ["classes", "tokens", "values"]


@pytest.mark.parametrize("outputs", ALL)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_both_are_those_of_the_explicit_fisher(outputs: Outputs, batch_size: int) -> None:
    subject, examples = subject_of(outputs)
    changed = moved(subject, 0.3)
    kl, form = explicit(subject, changed, examples)
    found = measure_change(subject, changed, examples, quadratic=True, batch_size=batch_size)
    assert found.kl == pytest.approx(kl, rel=1e-9)
    assert found.quadratic == pytest.approx(form, rel=1e-9)
    assert measure_change(subject, changed, examples).kl == pytest.approx(kl, rel=1e-9)


@pytest.mark.parametrize("outputs", ALL)
def test_a_small_change_does_what_the_quadratic_form_says(outputs: Outputs) -> None:
    subject, examples = subject_of(outputs)
    off = []
    for size in (1e-2, 1e-3, 1e-4):
        found = measure_change(subject, moved(subject, size), examples, quadratic=True)
        assert found.quadratic is not None
        off.append(abs(found.kl / found.quadratic - 1))
    assert off[2] < 1e-3
    assert off[0] > 3 * off[1] > 9 * off[2]  # the error is of the next order


@pytest.mark.parametrize("outputs", ALL)
def test_twice_backward_is_once_forward(outputs: Outputs) -> None:
    subject, examples = subject_of(outputs)
    module = subject.module
    batch = next(subject.batches(examples, 7))
    before = {n: p.detach() for n, p in module.named_parameters()}
    delta = {n: moved(subject, 1.0).read(n) for n in before}

    def function(tensors: Any) -> torch.Tensor:
        found: torch.Tensor = functional_call(module, dict(tensors), tuple(batch.inputs.values()))
        return found

    with sdpa_kernel(SDPBackend.MATH):
        slow = _twice_backward(function, before, delta)
    for one, two in zip(along(function, before, delta), slow, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


class _NoForwardMode(torch.autograd.Function):
    """An operation that has a derivative backward alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = 2 * ctx.saved_tensors[0] * gradient[0]
        return found


def test_an_operation_without_forward_mode_is_done_twice_backward() -> None:
    at, change = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([0.5, 3.0])}
    value, derivative = along(lambda p: _NoForwardMode.apply(p["w"]), at, change)  # type: ignore[no-untyped-call]
    assert value.tolist() == [1.0, 4.0]
    assert derivative.tolist() == [1.0, -12.0]


def diagonal(subject: Subject, examples: Examples) -> Memory:
    """The diagonal of the explicit Fisher."""
    module, n = subject.module, len(examples)
    before = {name: p.detach() for name, p in module.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in before.items()}
    for batch in subject.batches(examples, 1):
        inputs = tuple(batch.inputs.values())
        jacobian = jacobian_of(module, before, inputs)
        p = functional_call(module, before, inputs).detach()[0].softmax(0)
        for name in before:
            rows = jacobian[name][0].reshape(len(p), -1)
            total[name] += ((p[:, None] * rows.square()).sum(0) - (p @ rows).square()).reshape(total[name].shape) / n
    return fisher_of(subject, total)


def fisher_of(subject: Subject, tensors: Tensors) -> Memory:
    return with_record(tensors, StatisticsRecord(kind="fisher", model=content_id(subject.checkpoint), examples=1))


def test_of_one_changed_value_the_diagonal_is_the_whole_form() -> None:
    subject, examples = subject_of("classes")
    exact = diagonal(subject, examples)
    start = {n: p.detach() for n, p in subject.module.named_parameters()}
    for name, place in (("mix.weight", 5), ("norm.bias", 2), ("head.weight", 9)):
        changed = {n: t.clone() for n, t in start.items()}
        changed[name].view(-1)[place] += 0.25
        found = measure_change(subject, Memory(changed), examples, quadratic=True)
        assert predict(subject.checkpoint, Memory(changed), exact).total == pytest.approx(found.quadratic, rel=1e-9)


def test_over_all_signs_of_a_change_the_diagonal_is_the_mean_of_the_form() -> None:
    subject, examples = subject_of("classes")
    statistics = fisher(subject, examples)
    start = {n: p.detach() for n, p in subject.module.named_parameters()}
    places = (("mix.weight", 5), ("mix.weight", 40), ("norm.weight", 2))
    forms, predicted = [], set()
    for signs in itertools.product((1, -1), repeat=len(places)):
        changed = {n: t.clone() for n, t in start.items()}
        for sign, (name, place) in zip(signs, places, strict=True):
            changed[name].view(-1)[place] += 0.25 * sign
        forms.append(measure_change(subject, Memory(changed), examples, quadratic=True).quadratic)
        predicted.add(round(predict(subject.checkpoint, Memory(changed), statistics).total, 12))
    assert len({round(form or 0.0, 9) for form in forms}) > 2  # values that move together do something else than apart
    assert predicted.pop() == pytest.approx(np.mean(np.asarray(forms)), rel=1e-5)  # statistics are float32
    assert not predicted


def test_where_parameters_act_apart_the_diagonal_is_the_whole_form() -> None:
    # One-hot inputs into one linear layer of values: no two weights act on the same example.
    module = nn.Linear(4, 1, bias=False).double()
    examples = Examples({"input": np.eye(4)[[0, 1, 1, 3]]}, np.zeros(4))
    subject = module_subject(module, "values")
    apart = fisher_of(subject, {"weight": torch.tensor([[1, 2, 0, 1]], dtype=torch.double) / 4})
    changed = moved(subject, 1.0)
    found = measure_change(subject, changed, examples, quadratic=True)
    predicted = predict(subject.checkpoint, changed, apart).total
    assert found.quadratic == pytest.approx(predicted, rel=1e-12)
    assert found.kl == pytest.approx(predicted, rel=1e-12)  # a linear model of values has no higher order


def test_what_acts_together_is_missed_by_the_diagonal() -> None:
    # Two copies of one input: moved alike they do twice what the diagonal says, moved against each other nothing.
    module = nn.Linear(2, 1, bias=False).double()
    examples = Examples({"input": np.ones((3, 2))}, np.zeros(3))
    subject = module_subject(module, "values")
    alike = fisher_of(subject, {"weight": torch.ones(1, 2, dtype=torch.double)})
    for direction, form in ((1.0, 2.0), (-1.0, 0.0)):
        changed = Memory({"weight": module.weight.detach() + torch.tensor([[1.0, direction]], dtype=torch.double)})
        found = measure_change(subject, changed, examples, quadratic=True)
        assert found.quadratic == pytest.approx(form, abs=1e-12)
        assert predict(subject.checkpoint, changed, alike).total == pytest.approx(1.0)


@pytest.mark.parametrize("outputs", ALL)
def test_no_change_is_no_difference_and_the_model_stays_as_it_was(outputs: Outputs) -> None:
    subject, examples = subject_of(outputs)
    before = copy.deepcopy(subject.module.state_dict())
    same = measure_change(subject, subject.checkpoint, examples, quadratic=True)
    assert not same.kls.any()
    assert same.quadratics is not None
    assert not same.quadratics.any()
    assert same.agreement == (None if outputs == "values" else 1.0)
    assert same.flips == ((0, 0) if outputs == "classes" else None)
    measure_change(subject, moved(subject, 0.5), examples, quadratic=True)
    assert all(torch.equal(before[n], t) for n, t in subject.module.state_dict().items())


def test_answers_that_change_are_counted() -> None:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.eye(2))
    subject = module_subject(module)
    examples = Examples({"input": np.array([[1, 0], [1, 0], [0, 1], [2, 1]], np.float32)}, np.array([0, 1, 1, 0]))
    swapped = Memory({"weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]])})
    found = measure_change(subject, swapped, examples, batch_size=3)
    assert found.flips == (3, 1)
    assert found.agreement == 0.0
    p = 1 / (1 + math.exp(-1))
    assert found.kls == pytest.approx([(2 * p - 1)] * 4, rel=1e-6)  # KL of (p, 1-p) and (1-p, p): (2p-1) log(p/(1-p))


def test_another_model_is_refused() -> None:
    subject, examples = subject_of("values")
    for wrong in (Memory({"one.weight": torch.ones(2, 2)}), Memory({})):
        with pytest.raises(TaskError, match="does not fit the base"):
            measure_change(subject, wrong, examples)
