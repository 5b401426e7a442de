"""The line between two models: its ends are the models, its barrier is what the definition says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tasks.tiny import BERT, bert, opinion_task, tokenizer_files
from transformers import AutoConfig, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from cofuse.checkpoint import Memory
from cofuse.errors import CofuseError, FuseError, TaskError
from cofuse.fuse import fuse
from cofuse.measure.choosing.ways.mixing import Mixed
from cofuse.measure.curve import Curve, Point, curve
from cofuse.measure.evaluation.as_is import PerplexityProtocol, ZeroshotProtocol, run_perplexity, run_zeroshot
from cofuse.measure.evaluation.protocols import Given
from cofuse.measure.loss import loss_and_score, loss_of
from cofuse.measure.subject import open_subject
from cofuse.report.curve import write_curve
from cofuse.tasks import Task
from cofuse.tasks.finetune import Finetuning, TaskModel, Tuned
from cofuse.tasks.heads import head_bytes, open_tuned
from cofuse.tasks.model import Head, body_width, load_body


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("tasks") / "opinions", sizes=(40, 16, 32))


def classifier(seed: int, labels: tuple[str, ...] = ("good", "bad")) -> Memory:
    """A model with a head of its own, whose labels stand in another order than the task's."""
    said = {**BERT, "architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(labels))}
    said["label2id"] = {name: i for i, name in enumerate(labels)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {k: v for k, v in said.items() if k not in ("model_type", "architectures")}
        module = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **settings))
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    files = {"config.json": json.dumps(said).encode(), **tokenizer_files(types=True)}
    return Memory({n: t.detach().clone() for n, t in module.state_dict().items()}, files=files)


def language_model(seed: int) -> Memory:
    """A causal model whose head is tied to its embedding."""
    config = GPT2Config(vocab_size=24, n_positions=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(config)
    state = {n: t.detach().clone() for n, t in module.state_dict().items() if n != "lm_head.weight"}
    said = {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    return Memory(state, files={"config.json": json.dumps(said).encode(), **tokenizer_files()})


def test_the_loss_of_language_models_is_their_perplexity(task: Task) -> None:
    one, other = language_model(0), language_model(1)
    found = curve(one, other, task, points=3, max_length=40)
    assert (found.head, found.metric) == ("own", "token accuracy")
    for model, point in ((one, found.points[0]), (other, found.points[-1])):
        (value,) = run_perplexity(model, task, PerplexityProtocol(max_length=40), 0, Given()).values
        assert point.loss == pytest.approx(-value, rel=1e-5)
        assert 0 <= point.score <= 100


def test_weights_of_language_models_are_learned_through_tied_heads(task: Task) -> None:
    """The gradient of a tied tensor is the sum over its uses: as finite differences of the whole say."""
    models = [language_model(seed) for seed in range(2)]
    subject = open_subject(fuse("linear", models), task, head="own", max_length=40)
    group = dict.fromkeys(models[0].names(), 0)
    mixed, loss = Mixed(subject, models, group), loss_of(subject, task)
    (batch,) = subject.batches(task.examples("validation"), 16)

    def at(share: float) -> torch.Tensor:
        alpha = torch.tensor([[1 - share, share]], dtype=torch.float64, requires_grad=True)
        value = loss(mixed.logits(alpha, batch), batch)
        value.backward()
        assert alpha.grad is not None
        return torch.stack([value.detach().double(), alpha.grad[0, 1] - alpha.grad[0, 0]])

    (low, _), (_, slope), (high, _) = (at(share) for share in (0.29, 0.3, 0.31))
    assert float(slope) == pytest.approx(float(high - low) / 0.02, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("head", ["own", "probe"])
def test_a_model_and_itself_have_no_barrier(task: Task, head: str) -> None:
    model = classifier(0)
    found = curve(model, model, task, points=4, head="own" if head == "own" else "probe", max_length=16)
    assert found.head == head
    assert (found.barrier, found.above_mean, found.score_barrier) == pytest.approx((0, 0, 0), abs=1e-6)


def test_the_ends_of_own_heads_are_what_zero_shot_measures(task: Task) -> None:
    one, other = classifier(1), classifier(2)
    found = curve(one, other, task, points=3, max_length=16)
    assert found.head == "own"
    for model, point in ((one, found.points[0]), (other, found.points[-1])):
        (value,) = run_zeroshot(model, task, ZeroshotProtocol(max_length=16), 0, Given()).values
        assert point.score == value
        logits = torch.tensor(
            run_zeroshot(model, task, ZeroshotProtocol(max_length=16), 0, Given()).outcomes[0].log_probabilities
        )
        labels = torch.from_numpy(task.examples("test").labels)
        assert point.loss == pytest.approx(-float(logits[torch.arange(len(labels)), labels].mean()), rel=1e-5)
    # The middle is the fused model.
    middle = open_subject(fuse("linear", [one, other]), task, head="own", max_length=16)
    assert found.points[1] == Point(0.5, *loss_and_score(middle, task, task.examples("test")))


def test_bodies_without_heads_get_a_probe_at_each_point(task: Task) -> None:
    one, other = bert(0), bert(1)
    found = curve(one, other, task, points=3, split="train", examples=20, max_length=16)
    assert (found.head, found.examples, found.split) == ("probe", 20, "train")
    rows = task.examples("train").first(20)
    for model, point in ((one, found.points[0]), (other, found.points[-1])):
        assert (point.loss, point.score) == loss_and_score(open_subject(model, task, max_length=16), task, rows)


def test_kept_heads_are_mixed_as_the_bodies_are(task: Task, tmp_path: Path) -> None:
    bodies = [bert(0), bert(1)]
    heads = []
    for seed, body in enumerate(bodies):
        module = load_body(body)
        head = Head(body_width(module), task.outputs, 0.0, seed)
        made = Tuned(TaskModel(module, head, task.what, "cls"), task, Finetuning(steps=1, pooling="cls"), body, 0, None)
        heads.append(tmp_path / f"head-{seed}.safetensors")
        heads[-1].write_bytes(head_bytes(made))
    found = curve(bodies[0], bodies[1], task, points=3, heads=heads)
    assert found.head == "kept"
    test = task.examples("test")
    for body, head_file, point in zip(bodies, heads, (found.points[0], found.points[-1]), strict=True):
        predicted = open_tuned(body, head_file, task).predict(test)
        assert point.score == task.score(predicted, test.labels)
    same = curve(bodies[0], bodies[0], task, points=3, heads=[heads[0], heads[0]])
    assert same.barrier == pytest.approx(0, abs=1e-6)


@given(st.lists(st.floats(0, 9), min_size=2, max_size=7))
def test_the_barrier_is_its_definition(losses: list[float]) -> None:
    shares = [i / (len(losses) - 1) for i in range(len(losses))]
    found = Curve(
        "t", "test", "accuracy", "own", 1, tuple(Point(s, v, -v) for s, v in zip(shares, losses, strict=True))
    )
    a, b = losses[0], losses[-1]
    by_hand = max(v - ((1 - s) * a + s * b) for s, v in zip(shares, losses, strict=True))
    assert found.barrier == pytest.approx(by_hand)
    assert found.barrier >= 0
    assert found.above_mean == pytest.approx(max(losses) - (a + b) / 2)
    assert found.above_mean >= abs(a - b) / 2 - 1e-9
    assert found.score_barrier == pytest.approx(found.barrier)  # a score that is minus the loss


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_the_picture_shows_every_point(tmp_path: Path, ending: str) -> None:
    points = tuple(Point(i / 4, 1 + i * (4 - i), 90 - i) for i in range(5))
    found = Curve("t<x>", "test", "accuracy", "own", 7, points)
    path = tmp_path / f"c{ending}"
    write_curve(path, found, ("a & b", "<other>"))
    first = path.read_bytes()
    write_curve(path, found, ("a & b", "<other>"))
    assert path.read_bytes() == first
    if ending == ".png":
        assert first.startswith(b"\x89PNG")
        return
    root = ET.fromstring(first)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}circle")) == 2 * len(points)
    assert len(root.findall(f"{space}polyline")) == 2
    (barrier,) = [e for e in root.findall(f"{space}line") if e.get("class") == "barrier"]
    assert barrier.find(f"{space}title").text == "barrier 4.0000 nats"  # type: ignore[union-attr]
    assert any("<other>" in (e.text or "") for e in root.iter())


def test_what_has_no_line_is_told(task: Task, tmp_path: Path) -> None:
    one = bert(0)
    with pytest.raises(TaskError, match="a line has two ends"):
        curve(one, one, task, points=1)
    with pytest.raises(TaskError, match="need a head in a file"):
        curve(one, one, task, head="kept")
    with pytest.raises(TaskError, match="no head that can be read"):
        curve(one, one, task, head="own")
    with pytest.raises(FuseError):
        curve(one, bert(0, hidden_size=32), task, points=3, max_length=16)
    with pytest.raises(CofuseError, match="no such kind of picture"):
        write_curve(tmp_path / "c.gif", Curve("t", "test", "m", "own", 1, (Point(0, 1, 1), Point(1, 1, 1))), ("a", "b"))
