"""A checkpoint with the head that it brings: which class, what its outputs are, and what they are about."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import TaskError
from ..tasks import Examples, Task
from ..tasks.model import names_in, seeded

Targets = Sequence[Sequence[int]]
# Inputs of the model, labels, and which positions count.
Read = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """A row of the table: how a family of heads is read.

    Attributes:
        auto: the class of transformers that builds it.
        family: the table of transformers that lists its classes.
        outputs: what its logits are of.
        collate: the module, its inputs, the examples' labels and the targets -> what a batch is made of.
        logits: what the module returns -> logits.
        targets: token ids that stand for the task's labels; empty where none are needed.
    """

    auto: str
    family: str
    outputs: Literal["classes", "tokens"]
    collate: Callable[[nn.Module, dict[str, torch.Tensor], npt.NDArray[Any], Targets], Read]
    logits: Callable[[Any], torch.Tensor]
    targets: Callable[[Checkpoint, Task, int], Targets]

    def classes(self, module: nn.Module) -> int:
        """Outputs of a classifier."""
        return int(cast("Any", module).config.num_labels)


def _as_given(module: nn.Module, inputs: dict[str, torch.Tensor], labels: npt.NDArray[Any], targets: Targets) -> Read:
    return inputs, torch.from_numpy(labels), None


def _next_token(module: nn.Module, inputs: dict[str, torch.Tensor], labels: npt.NDArray[Any], targets: Targets) -> Read:
    return inputs, inputs["input_ids"][:, 1:], inputs["attention_mask"][:, 1:].bool()


def _label_name(module: nn.Module, inputs: dict[str, torch.Tensor], labels: npt.NDArray[Any], targets: Targets) -> Read:
    config = cast("Any", module).config
    longest = max(map(len, targets))
    ids = torch.zeros(len(labels), longest, dtype=torch.int64)
    mask = torch.zeros(len(labels), longest, dtype=torch.bool)
    for i, label in enumerate(labels):
        wanted = targets[int(label)]
        ids[i, : len(wanted)] = torch.tensor(wanted)
        mask[i, : len(wanted)] = True
    start = torch.full((len(labels), 1), int(config.decoder_start_token_id))
    # The decoder sees what came before; what stands after a target's end is seen by no position that counts.
    return {**inputs, "decoder_input_ids": torch.cat([start, ids[:, :-1]], 1)}, ids, mask


def _none(checkpoint: Checkpoint, task: Task, max_length: int) -> Targets:
    return ()


def _names(checkpoint: Checkpoint, task: Task, max_length: int) -> Targets:
    """Token ids of the names of the task's labels.

    Raises:
        TaskError: the task has no labels.
    """
    if not task.labels:
        raise TaskError("a sequence-to-sequence model needs labels to write", where=task.name)
    names = Examples({"text": list(task.labels)}, np.arange(len(task.labels)))
    return [row["input_ids"] for row in task.what.encode(names, checkpoint, max_length).rows]


READINGS = (
    Reading(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "classes",
        _as_given,
        lambda out: cast("torch.Tensor", out.logits),
        _none,
    ),
    Reading(
        "AutoModelForImageClassification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "classes",
        _as_given,
        lambda out: cast("torch.Tensor", out.logits),
        _none,
    ),
    Reading(
        "AutoModelForSeq2SeqLM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "tokens",
        _label_name,
        lambda out: cast("torch.Tensor", out.logits),
        _names,
    ),
    Reading(
        "AutoModelForCausalLM",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "tokens",
        _next_token,
        lambda out: cast("torch.Tensor", out.logits)[:, :-1],
        _none,
    ),
)


def own_head(checkpoint: Checkpoint) -> tuple[nn.Module, Reading]:
    """The checkpoint as the class that its config names, in float32 and evaluation mode, with how it is read.

    Raises:
        TaskError: no class that is known, or a tensor of it is missing or does not fit.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    named = checkpoint.config.get("architectures") or [""]
    wanted = named[0] if isinstance(named, list) and isinstance(named[0], str) else ""
    # A class is only ever looked up by the kind of model, in transformers' own tables: never by a name from a file.
    kind = str(checkpoint.config.get("model_type"))
    reading = next((r for r in READINGS if wanted and wanted == getattr(modeling_auto, r.family).get(kind)), None)
    if reading is None:
        raise TaskError(
            "the checkpoint has no head that can be read",
            where=f"{checkpoint.where}: config.json, architectures",
            got=wanted or "none",
            expected=", ".join(r.auto.removeprefix("Auto") for r in READINGS),
            hint="take another head: probe or random",
        )
    settings = {k: v for k, v in checkpoint.config.items() if k not in ("model_type", "transformers_version")}
    try:
        with seeded(0):
            config = transformers.AutoConfig.for_model(kind, **settings)
            module = getattr(transformers, reading.auto).from_config(config).float().eval()
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(
            "transformers cannot build the model", where=f"model_type {kind}", got=(str(error).splitlines() or ["?"])[0]
        ) from None
    _fill(module, checkpoint)
    return module, reading


def _fill(module: nn.Module, checkpoint: Checkpoint) -> None:
    own: Mapping[str, torch.Tensor] = module.state_dict(keep_vars=True)
    homes = names_in(module, {*checkpoint.names(), *checkpoint.aliases})
    filled = {own[name].data_ptr() for name in homes}
    for name, tensor in own.items():
        there = homes.get(name)
        if there is None and isinstance(tensor, nn.Parameter) and tensor.data_ptr() not in filled:
            raise TaskError(
                "a tensor of the head or the body is missing",
                where=checkpoint.where,
                got=f"no {name}",
                hint="take another head: probe or random",
            )
        if there is None:
            continue
        if checkpoint.spec(there).shape != tuple(tensor.shape):
            raise TaskError(
                "a tensor does not fit the model's config",
                where=f"{checkpoint.where}: {there}",
                got=list(checkpoint.spec(there).shape),
                expected=list(tensor.shape),
            )
        with torch.no_grad():
            tensor.copy_(checkpoint.read(there))


def label_order(config: Mapping[str, Any], task: Task) -> list[int]:
    """The model's output that stands for each of the task's labels.

    Names are compared without case, spaces and punctuation. Names that transformers made up (`LABEL_0`) say nothing:
    then the orders are taken to be the same.

    Raises:
        TaskError: the names are not the task's.
    """
    said = config.get("id2label")
    names = [str(said.get(str(i), said.get(i, ""))) for i in range(len(said))] if isinstance(said, Mapping) else []
    if not names or all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return list(range(len(task.labels)))
    theirs = [_folded(name) for name in names]
    ours = [_folded(name) for name in task.labels]
    if sorted(theirs) != sorted(ours):
        raise TaskError(
            "the labels of the model's head are not the task's",
            where=task.name,
            got=", ".join(names),
            expected=", ".join(task.labels),
            hint="name the labels alike in config.json (id2label) and in the task",
        )
    return [theirs.index(name) for name in ours]


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
