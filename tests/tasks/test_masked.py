"""Training under a mask: exactly the chosen values move, as dense training with masked gradients would move them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cofuse.checkpoint import Checkpoint, Memory, body, content_id
from cofuse.errors import TaskError
from cofuse.measure.finetuning.masks import trainable
from cofuse.patch import Patch, apply, make
from cofuse.patch.masks import BIASES, Mask, Named, at_random, places, top
from cofuse.progress import Bar, Silent
from cofuse.tasks import Task
from cofuse.tasks.finetune import Finetuning, Tuned, finetune
from cofuse.tasks.masked import MaskedAdamW, chosen, masked_checkpoint
from cofuse.tasks.model import body_checkpoint
from cofuse.tasks.training import Collator, Rows

from .tiny import bert, body_of, opinion_task

FAST: dict[str, Any] = {
    "steps": 4, "batch_size": 8, "learning_rate": 1e-2, "max_length": 16, "precision": "fp32", "weight_decay": 0.3
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1,
    "num_decoder_layers": 1, "num_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("task") / "t")


def random_mask(base: Checkpoint, share: float, seed: int = 0) -> Mask:
    return top(at_random(base, seed), {name: base.spec(name) for name in base.names()}, share)


def tune(task: Task, base: Checkpoint, mask: Mask | None, **changes: Any) -> Tuned:
    extra = {k: changes.pop(k) for k in ("folder", "progress") if k in changes}
    validation = task.examples("validation") if "patience" in changes else None
    wanted = Finetuning(**{**FAST, **changes})
    return finetune(base, task, task.examples("train"), wanted, seed=0, mask=mask, validation=validation, **extra)


def result(tuned: Tuned, base: Checkpoint) -> Checkpoint:
    assert tuned.chosen is not None
    return masked_checkpoint(tuned.model.body, base, tuned.chosen)


def outside(base: Checkpoint, after: Checkpoint, mask: Mask) -> int:
    """Values not of the mask whose bits differ."""
    count = 0
    for name in base.names():
        differs = base.read(name).flatten().view(torch.uint8) != after.read(name).flatten().view(torch.uint8)
        values = differs.view(base.spec(name).numel, -1).any(1)
        if name in mask.specs:
            values[places(mask, name)] = False
        count += int(values.sum())
    return count


@settings(max_examples=8, deadline=None)
@given(
    share=st.sampled_from([0.0002, 0.005, 0.1, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    decay=st.sampled_from([0.0, 0.5]),
)
def test_only_the_chosen_values_differ_in_the_dtype_of_the_base(
    share: float, dtype: torch.dtype, decay: float, task: Task
) -> None:
    base = body_of({**bert().config}, dtype=dtype)
    mask = random_mask(base, share)
    tuned = tune(task, base, mask, weight_decay=decay)
    after = result(tuned, base)
    assert outside(base, after, mask) == 0
    assert {name: after.spec(name) for name in base.names()} == {name: base.spec(name) for name in base.names()}
    # Nor was it made so afterwards: the module that trained had the base's values there all along.
    trained = body_checkpoint(tuned.model.body, base)
    if dtype is not torch.float64:  # the module is in float32
        assert outside(base, trained, mask) == 0
        assert content_id(body(trained, like=base)) == content_id(after)


def test_every_chosen_value_that_the_loss_depends_on_moves(task: Task) -> None:
    base = bert()
    mask = Named({name: base.spec(name) for name in base.names()}, ("encoder.layer.1.output.*",))
    after = result(tune(task, base, mask), base)
    for name in base.names():
        moved = (base.read(name) != after.read(name)).float().mean()
        assert moved == 1.0 if name.startswith("encoder.layer.1.output.") else moved == 0.0


def test_the_patch_of_a_masked_training_gives_it_back_bit_for_bit(task: Task, tmp_path: Path) -> None:
    base = body_of({**bert().config}, dtype=torch.bfloat16)
    mask = random_mask(base, 0.05)
    after = result(tune(task, base, mask), base)
    made = make(base, after, tmp_path / "x.patch")
    assert made.exact
    assert content_id(apply(base, Patch.load(made.path))) == content_id(after)
    changed = sum(int((base.read(n) != after.read(n)).sum()) for n in base.names())
    assert sum(values for _, values, _, _ in made.sizes()) == changed <= sum(len(places(mask, n)) for n in mask.specs)


class Small(nn.Module):
    """Two layers, an embedding that the output shares, a head; all kinds of being chosen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(6, 4)
            self.inner = nn.Linear(4, 4)
            self.frozen = nn.Linear(4, 4)
            self.out = nn.Linear(4, 6, bias=False)
            self.out.weight = self.table.weight  # tied
            self.head = nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.frozen(torch.tanh(self.inner(self.table(ids))))
        return self.head(self.out(hidden))  # type: ignore[no-any-return]


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        ids = torch.randint(6, (5,), generator=generator)
        yield ids, ids % 2


def run(model: Small, optimizer: torch.optim.Optimizer, after_backward: Any, norm: float) -> None:
    for i, (ids, labels) in enumerate(batches()):
        # Two backward passes a step now and then, as gradient accumulation has them.
        for _ in range(1 + i % 2):
            nn.functional.cross_entropy(model(ids), labels).mul(5).backward()
            after_backward()
        nn.utils.clip_grad_norm_(model.parameters(), norm)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("norm", [0.3, 1e9])
def test_it_is_dense_training_with_masked_gradients_and_decay_by_hand(fused: bool, norm: float) -> None:
    masks: Mapping[str, torch.Tensor | None] = {
        "table.weight": torch.tensor([0, 5, 23]), "inner.weight": torch.tensor([7]), "inner.bias": None
    }  # fmt: skip
    trained = {*masks, "head.weight", "head.bias"}
    lr, decay = 0.05, 0.2

    fast = Small()
    own = dict(fast.named_parameters())
    for name, parameter in own.items():
        parameter.requires_grad_(name in trained)
    optimizer = MaskedAdamW(
        [p for p in own.values() if p.requires_grad],
        {own[name]: kept for name, kept in masks.items()},
        lr=lr, weight_decay=decay, fused=fused,
    )  # fmt: skip
    run(fast, optimizer, lambda: None, norm)

    slow = Small()
    dense = {n: torch.zeros_like(p) for n, p in slow.named_parameters()}
    for name in trained:
        kept = masks.get(name)
        dense[name].view(-1)[slice(None) if kept is None else kept] = 1.0
    plain = torch.optim.AdamW(slow.parameters(), lr=lr, weight_decay=0.0)

    def mask_gradients() -> None:
        for name, p in slow.named_parameters():
            assert p.grad is not None
            p.grad *= dense[name]

    def decay_by_hand(*_: Any) -> None:
        with torch.no_grad():
            for name, p in slow.named_parameters():
                p.sub_(lr * decay * p * dense[name])

    plain.register_step_pre_hook(decay_by_hand)
    run(slow, plain, mask_gradients, norm)

    start = dict(Small().named_parameters())
    for name, p in slow.named_parameters():
        torch.testing.assert_close(own[name], p, rtol=1e-5, atol=1e-7)
        kept = dense[name].bool()
        assert torch.equal(own[name][~kept], start[name][~kept])
        assert not torch.isclose(own[name][kept], start[name][kept], atol=1e-4, rtol=0).any()
    sizes = sum(t.numel() for state in optimizer.state.values() for k, t in state.items() if k != "step")
    assert sizes == 2 * (3 + 1 + 4 + sum(p.numel() for p in fast.head.parameters()))


def test_gradients_are_zero_elsewhere_until_it_is_released() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = MaskedAdamW([weight], {weight: torch.tensor([1, 5])}, lr=0.1)
    weight.mul(2).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [0, 2, 0, 0, 0, 2]
    weight.grad = None
    optimizer.release()
    weight.sum().backward()
    assert weight.grad.flatten().tolist() == [1] * 6


def test_closures_and_step_hooks_run_once_and_see_whole_parameters() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    torch.optim.AdamW([weight])  # whoever makes one wraps its class's step
    optimizer = MaskedAdamW([weight], {weight: torch.tensor([1])}, lr=0.1)
    seen: list[tuple[int, ...]] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(tuple(weight.shape)))

    def closure() -> torch.Tensor:
        seen.append(tuple(weight.shape))
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 6.0
    assert seen == [(2, 3), (2, 3)]
    assert (weight != 1).flatten().tolist() == [False, True, False, False, False, False]


def test_in_a_trainer_of_ones_own(task: Task, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    base = bert()
    config = BertConfig.from_dict({**base.config, "num_labels": 2})
    model = BertForSequenceClassification(config)
    missing, _ = model.load_state_dict({f"bert.{n}": base.read(n) for n in base.names()}, strict=False)
    head = sum(dict(model.named_parameters())[name].numel() for name in missing if name.startswith("classifier"))
    mask = random_mask(base, 0.03)

    optimizer = MaskedAdamW(model.parameters(), chosen(model, base, mask), lr=1e-2, weight_decay=0.1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no",
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    rows = Rows(task.what.encode(task.examples("train"), base, 16))
    collate: Any = Collator(task.what)
    Trainer(model, arguments, collate, rows, optimizers=(optimizer, None)).train()

    held = {n: p.detach() for n, p in model.state_dict().items()}
    after = body(Memory(held), like=base)
    assert outside(base, after, mask) == 0
    assert content_id(after) != content_id(base)
    sizes = sum(t.numel() for state in optimizer.state.values() for k, t in state.items() if k != "step")
    assert sizes == 2 * (sum(len(places(mask, n)) for n in mask.specs) + head)


class Stopped(Silent):
    """Progress that somebody interrupts after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def bar(self, what: str, total: float, unit: str = "") -> Bar:
        return self

    def advance(self, amount: float = 1) -> None:
        self.left -= int(amount)
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("share", [0.05, None])
def test_an_interrupted_training_goes_on_to_the_same_end(share: float | None, task: Task, tmp_path: Path) -> None:
    base = bert()
    mask = None if share is None else random_mask(base, share)

    def end(tuned: Tuned) -> str:
        return content_id(body_checkpoint(tuned.model.body, base))

    straight = end(tune(task, base, mask, steps=20, dropout=0.1))
    with pytest.raises(KeyboardInterrupt):
        tune(task, base, mask, steps=20, dropout=0.1, folder=tmp_path, progress=Stopped(13))
    (tmp_path / "checkpoint-14").mkdir()  # killed while it was written
    tune(task, bert(3), None)  # somebody else's training in between
    watched = Stopped(10**6)
    assert end(tune(task, base, mask, steps=20, dropout=0.1, folder=tmp_path, progress=watched)) == straight
    assert watched.left == 10**6 - 20
    assert outside(base, bert(), random_mask(base, 0.05)) == 0


PATIENT: dict[str, Any] = {"evaluate_every": 4, "patience": 3, "learning_rate": 5e-3, "dropout": 0.0}


@pytest.mark.parametrize("changes", [{"steps": 10, "schedule": "constant"}, {"steps": 80, **PATIENT}])
def test_a_training_that_is_at_its_end_stays_there(changes: dict[str, Any], task: Task, tmp_path: Path) -> None:
    """By its steps, or by early stopping; also where the folder has been moved."""
    base, ends = bert(), set()
    for place in (None, tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        if place == tmp_path / "b":
            (tmp_path / "a").rename(place)
        tuned = tune(task, base, random_mask(base, 0.2), folder=place, **changes)
        ends.add((tuned.steps, tuned.validation, content_id(body_checkpoint(tuned.model.body, base))))
        assert tuned.steps <= changes["steps"]
    assert len(ends) == 1


def test_early_stopping_waits_as_long_after_an_interruption(task: Task, tmp_path: Path) -> None:
    base = bert()

    def end(**extra: Any) -> tuple[Any, ...]:
        tuned = tune(task, base, None, steps=80, **PATIENT, **extra)
        return tuned.steps, tuned.validation, content_id(body_checkpoint(tuned.model.body, base))

    straight = end()
    assert straight[0] < 80
    with pytest.raises(KeyboardInterrupt):  # after evaluations without gain
        end(folder=tmp_path, progress=Stopped(straight[0] - 1))
    assert end(folder=tmp_path) == straight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_frozen_is_in_no_mask(dtype: torch.dtype, task: Task) -> None:
    base = body_of({**bert().config}, dtype=dtype)
    mask = random_mask(base, 0.2)
    tuned = tune(task, base, mask, freeze=("embeddings.*",))
    after = result(tuned, base)
    assert outside(base, after, mask) == 0
    moved = {name for name in base.names() if not torch.equal(base.read(name), after.read(name))}
    assert {name.split(".")[0] for name in moved} == {"encoder"}
    with pytest.raises(TaskError, match="whole body is frozen"):
        tune(task, base, mask, freeze=("*",))


def test_early_stopping_under_a_mask_keeps_the_best(task: Task) -> None:
    base = bert()
    mask = random_mask(base, 0.2)
    tuned = tune(task, base, mask, steps=40, evaluate_every=4, patience=2, head_learning_rate=1e-2, dropout=0.0)
    assert outside(base, result(tuned, base), mask) == 0
    validation = task.examples("validation")
    assert task.score(tuned.predict(validation), validation.labels) == tuned.validation


def test_tied_weights_are_one(task: Task) -> None:
    base = body_of(T5)
    mask = random_mask(base, 0.1)
    tuned = tune(task, base, mask)
    after = result(tuned, base)
    assert outside(base, after, mask) == 0
    assert (after.read("shared.weight") != base.read("shared.weight")).any()
    assert after.names() == base.names()


def test_a_tied_weight_that_is_stored_twice_is_chosen_once_and_its_copy_follows(task: Task) -> None:
    once = body_of(T5)
    tensors = {name: once.read(name) for name in once.names()}
    copy = "encoder.embed_tokens.weight"
    base = Memory({**tensors, copy: tensors["shared.weight"].clone()}, files=once.files)
    specs = trainable(base)
    assert set(specs) == set(trainable(once))
    mask = top(at_random(base, 0), specs, 0.1)
    after = result(tune(task, base, mask), base)
    assert torch.equal(after.read("shared.weight"), after.read(copy))
    assert (after.read(copy) != base.read(copy)).any()
    without = {name: base.spec(name) for name in base.names() if name != copy}
    assert outside(*(Memory({n: c.read(n) for n in without}) for c in (base, after)), mask) == 0


def test_a_mask_leaves_nothing_behind_in_the_module_that_is_kept(task: Task) -> None:
    base = bert()
    first = content_id(body_checkpoint(tune(task, base, None).model.body, base))
    tune(task, base, random_mask(base, 0.01))
    assert content_id(body_checkpoint(tune(task, base, None).model.body, base)) == first


def test_what_cannot_be_trained_is_refused(task: Task) -> None:
    from cofuse.tasks.peft import Lora

    base = bert()
    specs = {name: base.spec(name) for name in base.names()}
    with pytest.raises(TaskError, match="chooses nothing"):
        tune(task, base, Named(specs, ("nothing",)))
    with pytest.raises(TaskError, match="not both"):
        finetune(
            base, task, task.examples("train"), Finetuning(**FAST), seed=0, mask=Named(specs, BIASES), adapt=Lora()
        )
