"""The transformers Trainer as this room runs it: quiet, seeded, leaving nothing behind; and what it is fed."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ..checkpoint import SafetensorsFile
from ..errors import DivergedError, TaskError
from ..progress import SILENT, Progress
from .kinds import Encoded, Kind
from .masked import Chosen, MaskedAdamW
from .model import uses_bf16

if TYPE_CHECKING:
    from .finetune import Finetuning

# How often a training that can be taken up again is kept.
_KEPT = 10
_STATE = "trainer_state.json"


def train(
    model: nn.Module,
    batches: torch.utils.data.Dataset[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    settings: Finetuning,
    *,
    steps: int,
    seed: int,
    batch_size: int,
    validation: torch.utils.data.Dataset[Any] | None = None,
    score: Callable[[Any], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    shuffled: bool = True,
    chosen: Chosen | None = None,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[int, float | None]:
    """Run the transformers Trainer: no logging, no files but the best checkpoint while early stopping looks for it.

    `shuffled` draws the order of examples from the seed; without it they are taken as they come. Of parameters that
    `chosen` names, only those places are trained. With a `folder` the Trainer's state is kept there a few times, and a
    training that finds one goes on from it, to the same end; one that finds an end takes it.

    Returns:
        The steps taken, and the best validation score where there was one.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState, TrainingArguments

    settle_process()
    searching = validation is not None
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cofuse-trainer-")))
        stack.enter_context(_random_state_kept())
        arguments = TrainingArguments(
            output_dir=str(place),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=64,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=math.ceil(settings.warmup * steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=1.0,
            bf16=uses_bf16(settings.precision),
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            data_seed=seed,
            disable_tqdm=True,
            report_to=[],
            logging_strategy="no",
            log_level="error",
            eval_strategy="steps" if searching else "no",
            eval_steps=evaluate_every if searching else None,
            save_strategy="steps" if searching or folder else "no",
            save_steps=evaluate_every if searching else max(1, steps // _KEPT),
            save_total_limit=1,
            save_only_model=folder is None,
            restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
            load_best_model_at_end=searching,
            metric_for_best_model="score" if searching else None,
            greater_is_better=True if searching else None,
            train_sampling_strategy="random" if shuffled else "sequential",
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_pin_memory=False,
        )
        groups = _groups(model, settings)
        if chosen is None:
            optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        else:
            moving = {p: kept for p, kept in chosen.items() if p.requires_grad}  # `freeze` may have taken some
            optimizer = MaskedAdamW(groups, moving, lr=settings.learning_rate, fused=True)
            stack.callback(optimizer.release)
        stopping = (
            EarlyStoppingCallback(settings.patience, settings.min_gain) if searching and settings.patience else None
        )
        stack.callback(model.to, "cpu")  # the Trainer leaves it on the GPU, where there is one
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=cast("Any", batches),
            eval_dataset=cast("Any", validation),
            data_collator=cast("Any", collate),
            compute_metrics=cast("Any", score) if searching else None,
            callbacks=[_telling(progress, steps), *([stopping] if stopping else [])],
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        kept = _last_kept(place)
        if kept is not None and _finished(kept):
            trainer.state = TrainerState.load_from_json(str(kept / _STATE))
            # Tied weights stand there once. The folder may have been moved since.
            weights = place / Path(trainer.state.best_model_checkpoint or kept).name / "model.safetensors"
            with contextlib.closing(SafetensorsFile(weights)) as file:
                model.load_state_dict({name: file.read(name) for name in file.names()}, strict=False)
        else:
            trainer.train(resume_from_checkpoint=None if kept is None else str(kept))
        best = trainer.state.best_metric
        taken = int(trainer.state.global_step)
    model.eval()
    for name, parameter in model.named_parameters():
        # A sum is finite only where every term is; one that is not may have overflowed.
        if not math.isfinite(float(parameter.detach().sum())) and not torch.isfinite(parameter).all():
            raise DivergedError("training diverged: a weight is not finite", where=name, hint="lower the learning rate")
    return taken, None if best is None else float(best)


def _telling(progress: Progress, steps: int) -> Any:
    from transformers import TrainerCallback

    class Telling(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = progress.bar("training", steps)
            self.bar.advance(state.global_step)  # done before an interruption

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.advance()

    return Telling()


def _last_kept(folder: Path) -> Path | None:
    """The last state that the Trainer wrote to its end: what it writes last is trainer_state.json."""
    found = {int(p.parent.name.rpartition("-")[2]): p.parent for p in folder.glob(f"checkpoint-*/{_STATE}")}
    return found[max(found)] if found else None


def _finished(kept: Path) -> bool:
    """Whether a kept state is an end, by its steps or by early stopping: the Trainer would take a step more."""
    said = json.loads((kept / _STATE).read_text(encoding="utf-8"))
    return bool(said["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """The Trainer seeds the global generators; whoever called has theirs as they were."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def _groups(model: nn.Module, settings: Finetuning) -> list[dict[str, Any]]:
    """Parameters with their learning rate and decay: biases and norms do not decay, frozen ones are left out.

    Raises:
        TaskError: a pattern freezes nothing, or everything is frozen.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    unused = set(settings.freeze)
    for name, parameter in model.named_parameters():
        inside = name.split("body.", 1)[1] if "body." in name else None
        frozen = {p for p in settings.freeze if inside is not None and fnmatchcase(inside, p)}
        unused -= frozen
        if frozen:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups.setdefault((inside is None, parameter.dim() > 1), []).append(parameter)
    if unused:
        raise TaskError(
            "a pattern freezes nothing", got=", ".join(sorted(unused)), hint="patterns match the body's names"
        )
    if not any(not head for head, _ in groups):
        raise TaskError("the whole body is frozen", got=", ".join(settings.freeze))
    return [
        {
            "params": parameters,
            "lr": (settings.head_learning_rate or settings.learning_rate) if head else settings.learning_rate,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in sorted(groups.items())
    ]


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded examples, as a data loader wants them."""

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"row": self.encoded.rows[i], "label": self.encoded.labels[i]}


class Collator:
    """Items of `Rows` -> a batch with its labels."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.kind.collate([item["row"] for item in items])
        batch["labels"] = torch.from_numpy(np.asarray([item["label"] for item in items]))
        return batch


@cache
def settle_process() -> None:
    """Once a process: quiet the libraries, and take what they loaded out of the garbage collector's rounds.

    The Trainer collects garbage whenever it starts, which takes 0.3 s with transformers imported and nothing after
    the modules are frozen.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    gc.collect()
    gc.freeze()
