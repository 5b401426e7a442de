"""Inner products of the inputs of linear layers, which RegMean merges by.

    G = E x x^T,   x the layer's input at one position of one example: [in, in]

the mean over the positions of all examples that are no padding. One forward pass an example; no gradients.

Source: Dataless knowledge fusion, arXiv 2212.09849, sec. 3.2 (their sum over inputs, divided by how many there are).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...checkpoint import Memory
from ...errors import TaskError
from ...progress import SILENT, Progress
from ...tasks import Examples
from ..subject import Batch, Subject
from .record import statistics_of


def gram(
    subject: Subject,
    examples: Examples,
    *,
    batch_size: int = 32,
    seed: int = 0,
    split: str = "",
    progress: Progress = SILENT,
) -> Memory:
    """Inner products of every linear layer's inputs as a checkpoint, float32, with a record.

    >>> import numpy as np
    >>> from ..subject import module_subject
    >>> examples = Examples({"input": np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)}, np.array([0, 1]))
    >>> gram(module_subject(torch.nn.Linear(2, 2)), examples).read("weight").tolist()
    [[5.0, 1.0], [1.0, 2.0]]

    Args:
        subject: the model, on its device; see `open_subject`.
        examples: what the mean is over.
        batch_size: examples at a time; it changes the rounding and nothing else.
        seed: of the examples, for the record.
        split: where the examples are from, for the record.
        progress: told of every batch.

    Returns:
        A checkpoint with a tensor under the name of each such weight: [in, in] for one of [out, in]; [in, in, 1] for one of
        [in, out] (Conv1D, GPT-2). It is bound to the model's content id; save it with `.save(folder)`. A weight that
        several layers share has the mean over all their inputs. Layers that are never called have none.

    Raises:
        TaskError: no examples, or an input that is not finite.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    bar = progress.bar("gram", len(examples))
    with _watched(subject, sums, counts) as look, torch.inference_mode():
        for batch in subject.batches(examples, batch_size):
            look(batch)
            bar.advance(len(batch))
    means = {}
    for name, total in sums.items():
        mean = (total / max(1, counts[name])).float().cpu()
        if not bool(torch.isfinite(mean).all()):
            raise TaskError("an input of a layer is not finite", where=name, hint="is the checkpoint damaged?")
        means[name] = mean
    return statistics_of(subject, means, examples, kind="gram", split=split, seed=seed)


def linear_layers(subject: Subject) -> dict[str, nn.Module]:
    """The layers whose weight is one of the measured matrices, by their names in the module."""
    from transformers.pytorch_utils import Conv1D

    return {
        name: module
        for name, module in subject.module.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and _weight(name) in subject.names
    }


def _weight(name: str) -> str:
    return f"{name}.weight" if name else "weight"


@contextmanager
def _watched(subject: Subject, sums: dict[str, torch.Tensor], counts: dict[str, int]) -> Iterator[Any]:
    """Inside it, what is yielded runs a batch and adds its layers' inputs to the sums."""
    batch_inside: list[Batch] = []
    read: list[torch.Tensor] = []  # what an encoder gave, which a decoder's layers see too
    # Queries, keys and values are made from one and the same input.
    last: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def seen(name: str, turned: bool, module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if not batch_inside:
            return
        (x,) = (*given, *named.values())
        if not (last and last[0][0] is x):
            written = "encoder" not in name.split(".") and not any(x is y for y in read)
            rows = counted(x, batch_inside[0], written=written).double()
            last[:] = [(x, rows.T @ rows, len(rows))]
        _, product, count = last[0]
        there = subject.names[_weight(name)]
        product = product.unsqueeze(2) if turned else product
        if there in sums:
            sums[there] += product
        else:
            sums[there] = product.clone()
        counts[there] = counts.get(there, 0) + count

    def given_on(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        read.append(output if isinstance(output, torch.Tensor) else output[0])

    def look(batch: Batch) -> None:
        batch_inside[:] = [batch.to(subject.device)]
        subject.logits(batch)
        batch_inside.clear()
        last.clear()
        read.clear()

    handles = [
        module.register_forward_pre_hook(partial(seen, name, not isinstance(module, nn.Linear)), with_kwargs=True)
        for name, module in linear_layers(subject).items()
    ]
    handles += [
        module.register_forward_hook(given_on)
        for name, module in subject.module.named_modules()
        if name.split(".")[-1] == "encoder"
    ]
    try:
        yield look
    finally:
        for handle in handles:
            handle.remove()


def counted(x: torch.Tensor, batch: Batch, *, written: bool = False) -> torch.Tensor:
    """A layer's inputs [..., in] as rows [positions, in], without those that are padding.

    Positions are told by a mask whose shape they have, or whose entries they have flattened. Where there is none (images, a
    pooled vector), all of them count. What a decoder writes counts where its labels do, unless it is given a mask.

    >>> import numpy as np
    >>> x, mask = torch.arange(4.0).reshape(1, 4, 1), torch.tensor([[1, 1, 0, 0]])
    >>> counted(x, Batch(np.array([0]), {"attention_mask": mask}, torch.zeros(1))).tolist()
    [[0.0], [1.0]]

    Args:
        x: the inputs.
        batch: what the model was given.
        written: they are of an encoder-decoder's decoder.
    """
    rows = x.reshape(-1, x.shape[-1])
    inputs = batch.inputs
    masks = [inputs.get("attention_mask")]
    if "decoder_input_ids" in inputs:
        own = [inputs.get("decoder_attention_mask", batch.mask)]
        masks = own + masks if written else masks + own
    for mask in masks:
        if mask is not None and mask.shape[-1] > 1 and len(rows) == mask.numel():
            return rows[mask.reshape(-1).bool()]
    return rows
