"""What each row of METHODS promises: the settings under which each law holds, or why it does not.

A method that is added comes with its line here; `test_methods.py` puts every line to the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.checkpoint.floats import FLOATS
from cofuse.fuse import METHODS

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Laws:
    """The laws of one method.

    Attributes:
        ordinary: settings that a user would choose; blocks, dtypes, schedules, inputs are tested with these.
        identical: settings under which identical models give that model; a str says why there are none.
        one_hot: settings under which a weight of one on one model and zero on the others gives that model.
        order: whether the order of the models does not matter, beyond rounding.
        models: how many an ordinary fuse takes.
        random: draws masks: float64 inputs draw the same ones.
        sharp: has thresholds, at which float32 and float64 may decide differently for some entries.
        cut: whether another cut into blocks gives the same bytes (True) or the same but for rounding of sums (False).
    """

    ordinary: Settings = field(default_factory=dict)
    identical: Settings | str = field(default_factory=dict)
    one_hot: Settings | str = field(default_factory=dict)
    order: bool = True
    models: int = 3
    sharp: bool = False
    cut: bool = True


WEIGHTS = {"weights": [0.5, 1.0, 0.3]}
DENSE = {"density": 1.0}

LAWS: dict[str, Laws] = {
    "linear": Laws({"weights": [0.5, 1.0, 0.3]}),
    "task_arithmetic": Laws({"weights": [0.5, 1.0, 0.3], "scale": 0.7}, {"normalize": True}),
    "ties": Laws({**WEIGHTS, "density": 0.5, "scale": 0.7}, DENSE, DENSE, sharp=True),
    "dare_linear": Laws({**WEIGHTS, "density": 0.5}, {**DENSE, "normalize": True}, DENSE, order=False, cut=False),
    "dare_ties": Laws({**WEIGHTS, "density": 0.5}, {**DENSE, "normalize": True}, DENSE, order=False, cut=False),
    "della": Laws({**WEIGHTS, "density": 0.5}, DENSE, DENSE, order=False, sharp=True, cut=False),
    "della_linear": Laws(
        {**WEIGHTS, "density": 0.5}, {**DENSE, "normalize": True}, DENSE, order=False, sharp=True, cut=False
    ),
    "breadcrumbs": Laws(
        {**WEIGHTS, "density": 0.5, "gamma": 0.1},
        {**DENSE, "normalize": True},
        {**DENSE, "normalize": True},
        sharp=True,
    ),
    "breadcrumbs_ties": Laws(
        {**WEIGHTS, "density": 0.5, "gamma": 0.1},
        {**DENSE, "normalize": True},
        {**DENSE, "normalize": True},
        sharp=True,
    ),
    "sce": Laws({"select_topk": 0.5}, {}, sharp=True, cut=False),
    "consensus": Laws(WEIGHTS, "the deltas are summed", {"least": 0}, sharp=True),
    "slerp": Laws({"t": 0.3}, {"t": 1.0}, order=False, models=1, cut=False),
    "nuslerp": Laws({"weights": [0.3, 0.7]}, {"weight": 1.0}, models=2, cut=False),
    "multislerp": Laws(WEIGHTS, {"weight": 1.0}, cut=False),
    "karcher": Laws(cut=False),
    "model_stock": Laws(cut=False),
    "passthrough": Laws({"scale": 0.5}, models=1),
    "nearswap": Laws({"t": 0.05}, {"t": 1e9}, order=False, models=1),
    "wise_ft": Laws({"alpha": 0.3}, {"alpha": 1.0}, order=False, models=1),
    "ema": Laws({"decay": 0.6}, order=False),
    "median": Laws(models=4),
    "trimmed_mean": Laws({"trim": 0.25}, models=5),
    "geometric_median": Laws(WEIGHTS, cut=False),
    "krum": Laws(models=5, cut=False),
    "multi_krum": Laws(models=5, cut=False),
    "norm_clip": Laws(WEIGHTS, one_hot={"bound": 1e9}, cut=False),
    "arcee_fusion": Laws({}, "takes the base's value where the change is small", models=1, sharp=True),
    "ram": Laws({}, {"epsilon": 0.0}),
    "ramplus_tl": Laws({"r": 0.5}, {"epsilon": 0.0}),
    "tsv": Laws(
        {"weights": [0.5, 1.0, 0.3], "scale": 0.7}, "the leading directions alone are kept, once for each model"
    ),
    "iso_c": Laws({"weights": [0.5, 1.0, 0.3]}, "the singular values are replaced", "as for identical models"),
    "pcb": Laws({"weights": [0.5, 1.0, 0.3]}, "the lowest scores are dropped", "as for identical models", sharp=True),
    "fisher": Laws(WEIGHTS),
    "regmean": Laws(WEIGHTS),
}


def statistics(method: str, models: Sequence[Checkpoint]) -> dict[str, list[Checkpoint]] | None:
    """What the method wants to know of each model; it depends on the model's values alone, whatever their dtype."""
    wanted = METHODS[method].statistics
    return {name: [STATISTICS[name](model) for model in models] for name in wanted} if wanted else None


def _values(model: Checkpoint, name: str) -> torch.Tensor:
    return torch.nan_to_num(model.read(name).double(), nan=0.5, posinf=0.5, neginf=0.5)


def a_fisher(model: Checkpoint) -> Checkpoint:
    """Numbers above zero, of very different sizes, and some that are zero."""
    found = {name: torch.sin(1e3 * _values(model, name)) for name in model.names()}
    return Memory({name: (x.clamp_min(0) ** 8 * 1e-3).float() for name, x in found.items()}, where="a fisher")


def a_gram(model: Checkpoint) -> Checkpoint:
    """Inner products of twenty inputs of each matrix."""
    found = {}
    for name in model.names():
        if model.spec(name).dtype in FLOATS and len(model.spec(name).shape) == 2:
            width = model.spec(name).shape[1]
            inputs = torch.sin(torch.arange(20 * width).reshape(20, width) + 50 * _values(model, name).sum())
            found[name] = (inputs.T @ inputs / 20).float()
    return Memory(found, where="a gram")


STATISTICS = {"fisher": a_fisher, "gram": a_gram}
