"""Pretraining a small base from nothing on unlabelled data, for studies that must not need a download.

One table of objectives; a row is a function from a body and its data to a trained body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ..checkpoint import Memory
from ..document import Document
from ..errors import DivergedError, TaskError
from .model import new_body, seeded
from .sources import Source


class Pretraining(Document):
    """A from-scratch pretraining stage."""

    model: dict[str, Any]  # a transformers configuration with its model_type
    data: Source
    objective: Literal["masked_image"] = "masked_image"
    steps: int = Field(gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps
    mask: float = Field(0.5, gt=0, lt=1)  # share of the patches
    seed: int = 0


def pretrain(settings: Pretraining) -> Memory:
    """Train a body by its objective and give it back as a checkpoint.

    Raises:
        TaskError: transformers cannot build the model, the data are no images of its channels, or (DivergedError) training diverged.
    """
    return OBJECTIVES[settings.objective](settings)


def masked_image(settings: Pretraining) -> Memory:
    """Masked image modelling: predict the pixels of masked patches.

        loss = mean over masked patches of (decoder(body(image with patches masked)) - pixels)^2

    Labels are not looked at. Source: SimMIM, arXiv 2111.09886, sec. 3, with a squared instead of an absolute error.
    """
    from transformers import get_scheduler

    body = new_body(settings.model, seed=settings.seed, use_mask_token=True, add_pooling_layer=False)
    config: Any = body.config
    patch, channels = int(config.patch_size), int(config.num_channels)
    held = settings.data.columns("train", ("image", "label"))["image"]
    if not isinstance(held, np.ndarray) or held.shape[1] != channels:
        raise TaskError("pretraining wants arrays of images", got=type(held).__name__, expected=f"{channels} channels")
    images = torch.from_numpy(held)
    with seeded(settings.seed):
        decoder = nn.Linear(int(config.hidden_size), patch * patch * channels)
        parameters = [*body.parameters(), *decoder.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = get_scheduler("cosine", optimizer, round(settings.warmup * settings.steps), settings.steps)
        patches = torch.nn.functional.unfold(images, patch, stride=patch).transpose(1, 2)  # [n, patch, pixels]
        body.train()
        masked = max(1, round(settings.mask * patches.shape[1]))
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(settings.steps):
            if len(order) < settings.batch_size:
                order = torch.cat([order, torch.randperm(len(images))])
            rows, order = order[: settings.batch_size], order[settings.batch_size :]
            mask = torch.rand(len(rows), patches.shape[1]).argsort(1) < masked  # [batch, patch]
            hidden = body(pixel_values=images[rows], bool_masked_pos=mask).last_hidden_state[:, 1:]
            error = (decoder(hidden) - patches[rows]) ** 2
            loss = error[mask].mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    if not all(torch.isfinite(p).all() for p in body.parameters()):
        raise DivergedError("training diverged: a weight is not finite", hint="lower the learning rate")
    # The token that stood for masked patches belongs to the objective, as a head does.
    tensors = {n: t.detach().clone() for n, t in body.state_dict().items() if not n.endswith("mask_token")}
    return Memory(tensors, files={"config.json": config.to_json_string().encode()}, where="pretrained here")


OBJECTIVES: dict[str, Callable[[Pretraining], Memory]] = {"masked_image": masked_image}
