"""Choosing what to fuse: laws of every way on models whose best mixture is known, and the learned soup against slow twins."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks.tiny import bert, opinion_task

from cofuse.checkpoint import Checkpoint, Memory, content_id
from cofuse.errors import FuseError, TaskError
from cofuse.fuse import Recipe, fuse, fuse_recipe
from cofuse.measure.choosing import WAYS, Learning, Pool, choose, held_out, mean_of
from cofuse.measure.choosing.ways.geometry import geometry
from cofuse.measure.choosing.ways.learned import groups, learn, recipe_of
from cofuse.measure.choosing.ways.mixing import Mixed
from cofuse.measure.loss import loss_of
from cofuse.measure.statistics.record import StatisticsRecord, with_record
from cofuse.measure.subject import open_subject
from cofuse.tasks import Task

from ..suites import SUITE
from ..suites import opened as open_document

SIZE = 6
SCORED = [way for way in WAYS if way not in ("learned", "similar", "fisher")]
vectors = st.lists(st.floats(-2, 2, width=32), min_size=SIZE, max_size=SIZE)


class Known:
    """Models that are vectors; the score of a mixture is how near it is to a target."""

    def __init__(self, values: Sequence[Sequence[float]], target: Sequence[float]) -> None:
        self.values = {f"m{i}": torch.tensor(v) for i, v in enumerate(values)}
        self.target = torch.tensor(target)
        self.checkpoints: dict[str, Checkpoint] = {
            name: Memory({"x": v.clone()}) for name, v in {**self.values, "base": torch.zeros(SIZE)}.items()
        }
        self.asked = 0

    def score(self, recipes: Sequence[Recipe]) -> list[float]:
        self.asked += len(recipes)
        return [self.of(fuse_recipe(r, self.checkpoints).read("x")) for r in recipes]

    def of(self, x: torch.Tensor) -> float:
        return -float((x.double() - self.target.double()).norm())

    def mean(self, names: Sequence[str]) -> float:
        return self.of(torch.stack([self.values[n] for n in names]).double().mean(0))

    def pool(self, **changes: Any) -> Pool:
        return Pool(**{"models": tuple(self.values), "score": self.score, "base": "base",
                       "checkpoints": self.checkpoints, **changes})  # fmt: skip


@given(st.lists(vectors, min_size=1, max_size=4), vectors)
@settings(max_examples=25)
def test_laws_of_every_way_that_scores(values: list[list[float]], target: list[float]) -> None:
    known = Known(values, target)
    found = {way: choose(way, known.pool()) for way in SCORED}
    score = {way: one.score for way, one in found.items()}
    for way, one in found.items():
        # What is said of a recipe is what the recipe gives, and it says something of every model.
        assert one.score == known.score([one.recipe])[0], way
        assert set(one.reasons) >= set(known.values), way
        assert Recipe.model_validate(one.recipe.canonical) == one.recipe
    single = max(known.mean([m]) for m in known.values)
    assert score["best"] == pytest.approx(single, abs=1e-6)
    assert score["greedy"] >= score["best"]
    assert score["exhaustive"] >= max(score["greedy"], score["uniform"], score["best"])
    # Against every set by hand.
    sets = [c for k in range(1, len(values) + 1) for c in combinations(known.values, k)]
    assert len(found["exhaustive"].tried) == len(sets)
    assert score["exhaustive"] == pytest.approx(max(known.mean(c) for c in sets), abs=1e-5)
    assert score["wise"] >= max(score["uniform"], known.score([mean_of(["base"])])[0]) - 1e-6
    assert score["search"] >= score["uniform"] - 1e-6


def test_greedy_keeps_what_helps_and_says_why() -> None:
    known = Known([[1.0] * SIZE, [-1.0] * SIZE, [9.0] * SIZE], [0.1] * SIZE)
    found = choose("greedy", known.pool())
    assert [m.model for m in found.recipe.models] == ["m0", "m1"]
    assert found.reasons["m0"].startswith("in: the best alone")
    assert found.reasons["m1"].startswith("in: ")
    assert found.reasons["m2"].startswith("out: ")
    assert known.asked == 3 + 2  # each alone, and each but the first with those before it


def test_gain_keeps_the_better_ones_or_the_base() -> None:
    target = [1.0] * SIZE
    known = Known([[0.5] * SIZE, [-1.0] * SIZE], target)
    assert [m.model for m in choose("gain", known.pool()).recipe.models] == ["m0"]
    worse = Known([[-0.5] * SIZE, [-1.0] * SIZE], target)
    assert [m.model for m in choose("gain", worse.pool()).recipe.models] == ["base"]


def test_the_mean_of_identical_models_is_that_model() -> None:
    models = {name: bert(3) for name in "abc"}
    assert content_id(fuse_recipe(mean_of("abc"), models)) == content_id(models["a"])


# Without data


@given(st.lists(vectors, min_size=2, max_size=4), vectors)
@settings(max_examples=25)
def test_geometry_is_that_of_the_dense_vectors(values: list[list[float]], weights: list[float]) -> None:
    known = Known(values, [0.0] * SIZE)
    base = known.checkpoints["base"]
    models = {m: known.checkpoints[m] for m in known.values}
    f = np.abs(np.asarray(weights, np.float32).astype(np.float64))
    record = StatisticsRecord(kind="fisher", model=content_id(base), examples=1)
    fisher = with_record({"x": torch.from_numpy(f.astype(np.float32))}, record)
    d = np.asarray(values, np.float32).astype(np.float64)
    for metric, given_fisher in ((np.ones(SIZE), None), (f, fisher)):
        found = geometry(base, models, given_fisher)
        np.testing.assert_allclose(found.gram, (d * metric) @ d.T, atol=1e-9)
        for i in range(len(d)):
            others = d.sum(0) - d[i]
            norms = np.sqrt((metric * d[i] ** 2).sum() * (metric * others**2).sum())
            if norms > 1e-6:
                assert found.together(i) == pytest.approx((metric * d[i] * others).sum() / norms, abs=1e-6)
            size = metric * np.abs(d[i])
            if size.sum():
                shares = [size[np.sign(d[i]) == np.sign(d[j])].sum() / size.sum() for j in range(len(d)) if j != i]
                assert found.agreement(i) == pytest.approx(np.mean(shares))


def test_similar_leaves_out_what_does_not_go_with_the_others() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(size=SIZE)
    values = [list(shared + 0.5 * random.normal(size=SIZE)) for _ in range(4)]
    values += [[-v for v in values[0]], values[1], [0.0] * SIZE, [400 * v for v in shared]]
    found = choose("similar", Known(values, [0.0] * SIZE).pool())
    assert [m.model for m in found.recipe.models] == ["m0", "m1", "m2", "m3"]
    assert "points away" in found.reasons["m4"]
    assert "nearly the change of m1" in found.reasons["m5"]
    assert "it is the base" in found.reasons["m6"]
    assert "out of line in size" in found.reasons["m7"]


def test_the_fisher_looks_where_it_matters() -> None:
    # The two go together but where nothing depends on it.
    known = Known([[5.0, 5, 5, 1, 1, 1], [-5.0, -5, -5, 1, 1, 2]], [0.0] * SIZE)
    with pytest.raises(FuseError, match="no model goes together"):
        choose("similar", known.pool())
    record = StatisticsRecord(kind="fisher", model=content_id(known.checkpoints["base"]), examples=1)
    fisher = with_record({"x": torch.tensor([0.0, 0, 0, 1, 1, 1])}, record)
    found = choose("fisher", known.pool(fisher=fisher))
    assert len(found.recipe.models) == 2
    assert "predicted KL 1.5 nats" in found.reasons["m0"]


# Learned weights


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("tasks") / "opinions", sizes=(40, 24, 24))


def pool_of(models: Sequence[Checkpoint], task: Task, **learning: Any) -> Pool:
    said = {"epochs": 1, "batch_size": 12, "max_length": 16, **learning}
    names = tuple(f"m{i}" for i in range(len(models)))
    return Pool(
        names, lambda recipes: [0.0] * len(recipes), None, dict(zip(names, models, strict=True)), None, (task,),
        Learning.model_validate(said),
    )  # fmt: skip


@pytest.mark.parametrize("per", ["model", "layer", "tensor"])
def test_the_gradient_of_the_weights_is_that_of_the_dense_model(task: Task, per: str) -> None:
    models = [bert(i) for i in range(3)]
    mean = fuse("linear", models)
    group = groups(mean, per)
    names = list(dict.fromkeys(group.values()))
    rows = {name: names.index(own) for name, own in group.items()}
    subject = open_subject(mean, task, max_length=16)
    twin = open_subject(mean, task, max_length=16)
    (batch,) = subject.batches(task.examples("validation"), 24)
    loss = loss_of(subject, task)
    random = torch.Generator().manual_seed(1)
    alpha = torch.softmax(torch.randn(len(names), 3, generator=random, dtype=torch.float64), 1).requires_grad_()
    value = loss(Mixed(subject, models, rows).logits(alpha, batch), batch)
    value.backward()
    assert alpha.grad is not None

    def dense(weights: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for name, parameter in twin.parameters().items():
                own = weights[rows[mean.resolve(name)]]
                parameter.copy_(sum(float(w) * m.read(name).double() for w, m in zip(own, models, strict=True)))
        return loss(twin.logits(batch), batch)

    expected = torch.zeros_like(alpha)
    at = dense(alpha.detach())
    parameters = twin.parameters()
    gradients = torch.autograd.grad(at, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            for i, model in enumerate(models):
                expected[rows[mean.resolve(name)], i] += (gradient.double() * model.read(name).double()).sum()
    assert float(value.detach()) == pytest.approx(float(at.detach()), rel=1e-5)
    torch.testing.assert_close(alpha.grad, expected, rtol=2e-3, atol=1e-5)
    # And against finite differences, along a change that keeps the sum.
    along = torch.randn(alpha.shape, generator=random, dtype=torch.float64)
    along -= along.mean(1, keepdim=True)
    step = 3e-3
    with torch.no_grad():
        slope = (dense(alpha.detach() + step * along) - dense(alpha.detach() - step * along)) / (2 * step)
    assert float(slope) == pytest.approx(float((alpha.grad * along).sum()), rel=0.05, abs=1e-3)


def test_one_model_has_all_the_weight(task: Task) -> None:
    models = [bert(0)]
    for per in ("model", "layer", "tensor"):
        pool = pool_of(models, task, per=per)
        assert all(own == [1.0] for own in learn(models, pool).values())


def test_learning_lowers_the_loss_and_gives_the_same_bits(task: Task) -> None:
    """All of the data in each step and small steps: gradient descent has to go down."""
    models = [bert(i) for i in range(3)]
    pool = pool_of(models, task, epochs=10, batch_size=24, learning_rate=0.02)
    (alphas,) = learn(models, pool).values()
    assert sum(alphas) == pytest.approx(1, abs=1e-5)
    again = learn(models, pool)
    assert list(again.values()) == [alphas]  # the same bits
    subject = open_subject(fuse("linear", models), task, max_length=16)
    mixed = Mixed(subject, models, dict.fromkeys(models[0].names(), 0))
    loss = loss_of(subject, task)
    (batch,) = subject.batches(task.examples("validation"), 24)
    with torch.no_grad():
        before, after = (
            float(loss(mixed.logits(torch.tensor([own], dtype=torch.float64), batch), batch))
            for own in ([1 / 3] * 3, alphas)
        )
    assert after < before


class Counting(Memory):
    """Counts how many of the tensors that were handed out are alive, over all models."""

    alive = 0
    most = 0

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        tensor = super().read(name, rows)
        cls = Counting
        cls.alive += 1
        cls.most = max(cls.most, cls.alive)
        weakref.finalize(tensor, self._gone)
        return tensor

    @staticmethod
    def _gone() -> None:
        Counting.alive -= 1


def test_memory_does_not_grow_with_the_models(task: Task) -> None:
    found = []
    for count in (2, 6):
        models = [Counting({n: b.read(n) for n in b.names()}, files=b.files) for b in map(bert, range(count))]
        subject = open_subject(fuse("linear", models), task, max_length=16)
        mixed = Mixed(subject, models, dict.fromkeys(models[0].names(), 0))
        (batch,) = subject.batches(task.examples("validation"), 24)
        alpha = torch.full((1, count), 1 / count, dtype=torch.float64, requires_grad=True)
        Counting.alive = Counting.most = 0
        loss_of(subject, task)(mixed.logits(alpha, batch), batch).backward()
        found.append(Counting.most)
        # The subject keeps nothing of its own body, beside the mixed one.
        own = {n for n, p in subject.module.named_parameters() if p.numel()}
        assert own <= {"head.linear.weight", "head.linear.bias"}
    assert found[0] == found[1] <= 2


@pytest.mark.parametrize("per", ["model", "layer", "tensor"])
def test_the_recipe_of_learned_weights_is_their_mixture(per: str) -> None:
    models = {name: bert(i) for i, name in enumerate("abc")}
    group = groups(models["a"], per)
    random = np.random.default_rng(0)
    alphas = {
        name: [round(float(a), 6) for a in random.dirichlet(np.ones(3))] for name in dict.fromkeys(group.values())
    }
    fused = fuse_recipe(recipe_of("abc", alphas), models)
    for name in fused.names():
        own = alphas[group[name]]
        expected = sum(a * m.read(name).double() for a, m in zip(own, models.values(), strict=True)) / sum(own)
        if fused.spec(name).dtype == "F32":
            torch.testing.assert_close(fused.read(name).double(), expected, rtol=1e-5, atol=1e-6)


# Held out


def test_held_out_tests_on_the_validation_split_under_another_id(task: Task) -> None:
    suite = open_document(SUITE)
    other = held_out(suite)
    assert other.hash != suite.hash
    assert {m.id for m in other.measures}.isdisjoint(m.id for m in suite.measures)
    for mine, theirs in zip(other.tasks, suite.tasks, strict=True):
        assert np.array_equal(mine.examples("test").inputs["image"], theirs.examples("validation").inputs["image"])
        assert np.array_equal(mine.examples("test").labels, theirs.examples("validation").labels)
        assert len(mine.examples("train")) == len(theirs.examples("train"))
        assert mine.id != theirs.id


@pytest.mark.parametrize(
    ("way", "changes", "says"),
    [
        ("greedi", {}, 'did you mean "greedy"'),
        ("similar", {"base": None}, "similar needs the base"),
        ("fisher", {}, "fisher needs the fisher"),
        ("learned", {}, "learned needs the tasks"),
        ("greedy", {"models": ()}, "no models"),
        ("greedy", {"models": ("m0", "m0")}, "a model stands twice"),
        ("greedy", {"models": ("m0", "base")}, "a model stands twice"),
        ("exhaustive", {"models": tuple(f"m{i}" for i in range(11))}, "11 models, 2,047 sets"),
    ],
)
def test_what_cannot_be_chosen_is_told(way: str, changes: dict[str, Any], says: str) -> None:
    known = Known([[0.0] * SIZE] * 11, [0.0] * SIZE)
    with pytest.raises(FuseError) as error:
        choose(way, known.pool(**changes))
    assert says in str(error.value)
    assert known.asked == 0


def test_other_architectures_are_refused(task: Task) -> None:
    models = [bert(0), bert(1, hidden_size=32)]
    pool = pool_of(models, task)
    with pytest.raises(FuseError):
        learn(models, pool)
    with pytest.raises(TaskError):
        open_subject(models[0], task, head="own")


def test_recipes_survive_yaml(tmp_path: Path) -> None:
    import yaml

    recipe = recipe_of("ab", {"h.0.": [0.25, 0.75], "": [0.5, 0.5]})
    assert Recipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.canonical))) == recipe
