"""A trained head in a file of its own, beside the body that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, SafetensorsFile, build_header
from ..checkpoint.checkpoint import TensorSpec, tensor_bytes
from ..errors import TaskError
from .finetune import Finetuning, TaskModel, Tuned
from .model import Head, Pooling, Precision, body_width, load_body
from .task import Task

HEAD = "head.safetensors"
_KEY = "cofuse.head"


def head_bytes(tuned: Tuned, made: Mapping[str, Any] | None = None) -> bytes:
    """The head of a finetuned model as a safetensors file: `weight` [outputs, width], `bias` [outputs].

    Its metadata say what a head needs to be used (the task, its labels, the pooling, the longest sequence) and how it
    was made.
    """
    linear = tuned.model.head.linear
    tensors = {"bias": linear.bias, "weight": linear.weight}
    said = {
        "task": tuned.task.name,
        "task_id": tuned.task.id,
        "labels": list(tuned.task.labels),
        "pooling": tuned.settings.pooling,
        "max_length": tuned.settings.max_length,
        "made": dict(made or {}),
    }
    specs = {name: TensorSpec("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    header = build_header(specs, {_KEY: json.dumps(said, sort_keys=True)})
    return header.raw + b"".join(tensor_bytes(tensors[name].detach().float().cpu()) for name in header.entries)


def open_tuned(body: Checkpoint, head: Path, task: Task, *, precision: Precision = "auto") -> Tuned:
    """A body with a head that was kept, ready to predict.

    Args:
        body: what the head was trained on, or what replaces it.
        head: the file, or the folder that holds it.
        task: what the head is of.
        precision: what it predicts in.

    Raises:
        TaskError: it is no head, or not of this task or body.
        CheckpointError: the file cannot be read.
    """
    file = SafetensorsFile(head / HEAD if head.is_dir() else head)
    try:
        said = json.loads(file.metadata[_KEY])
        pooling: Pooling = "cls" if said["pooling"] == "cls" else "mean"
        labels, max_length = tuple(said["labels"]), int(said["max_length"])
        tensors = {name: file.read(name) for name in ("weight", "bias")}
    except (KeyError, ValueError, TypeError) as error:
        raise TaskError("not a head", where=file.where, got=f"{type(error).__name__}: {error}") from None
    finally:
        file.close()
    if labels != task.labels:
        raise TaskError("the head is of another task", where=file.where, got=", ".join(labels), expected=task.name)
    module = load_body(body)
    made = Head(body_width(module), task.outputs, 0.0, 0)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = getattr(made.linear, name)
            if parameter.shape != tensor.shape:
                raise TaskError(
                    "the head does not fit the body",
                    where=f"{file.where}: {name}",
                    got=list(tensor.shape),
                    expected=list(parameter.shape),
                )
            parameter.copy_(tensor)
    settings = Finetuning(steps=1, pooling=pooling, max_length=max_length, precision=precision)
    return Tuned(TaskModel(module, made, task.what, pooling), task, settings, body, 0, None)
