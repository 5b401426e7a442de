"""What is merged: settings of every method that mergekit 0.1.5 has, as rows of one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .inputs import Inputs

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One setting of a method.

    Attributes:
        what: its name in the report.
        parameters: of the whole recipe.
        own: each model's own parameters; there are as many models as rows.
        base: whether the recipe names the base.
        listed: whether the base also stands among the models, first, without parameters of its own.
    """

    what: str
    parameters: Parameters = field(default_factory=dict)
    own: tuple[Parameters, ...] = ({}, {}, {})
    base: bool = True
    listed: bool = False

    def recipe(self, method: str, inputs: Inputs, **keys: str) -> dict[str, Any]:
        """The recipe for these inputs, in mergekit's words."""
        models = [{"model": str(inputs.base)}] if self.listed else []
        models += [
            {"model": str(path), **({"parameters": dict(own)} if own else {})}
            for path, own in zip(inputs.tuned, self.own, strict=False)
        ]
        found: dict[str, Any] = {"merge_method": method, "models": models, **keys}
        if self.base:
            found["base_model"] = str(inputs.base)
        if self.parameters:
            found["parameters"] = dict(self.parameters)
        return found

    def write(self, path: Path, method: str, inputs: Inputs, **keys: str) -> Path:
        """The recipe as a file; JSON is YAML."""
        path.write_text(json.dumps(self.recipe(method, inputs, **keys), indent=1))
        return path

    def values(self, parameter: str, default: float) -> list[float]:
        """A parameter's value for each model."""
        return [own.get(parameter, self.parameters.get(parameter, default)) for own in self.own]


def weighted(*weights: float, **own: tuple[float, ...]) -> tuple[Parameters, ...]:
    """Each model's weight, and its own value of other parameters."""
    rows = []
    for i, weight in enumerate(weights):
        rows.append({"weight": weight} | {name: values[i] for name, values in own.items()})
    return tuple(rows)


EQUAL = weighted(0.3, 0.3, 0.3)
UNEQUAL = weighted(0.7, 0.2, 0.4)
SIGNED = weighted(0.8, -0.3, 0.6)
# Of each kind of mask: what is deterministic. Random masks have their own tests.
DENSE = (
    Case("density 1", {"density": 1.0}, UNEQUAL),
    Case("density 1, normalize, lambda", {"density": 1.0, "normalize": True, "lambda": 0.7}, EQUAL),
    Case("density 1, not normalized, signed", {"density": 1.0, "normalize": False, "rescale": False}, SIGNED),
)
TRIMMED = (
    Case("density 0.5", {"density": 0.5}, EQUAL),
    Case("own densities", {}, weighted(0.7, 0.2, 0.4, density=(0.2, 0.5, 1.0))),
    Case("not normalized, lambda", {"density": 0.3, "normalize": False, "lambda": 1.3, "int8_mask": True}, UNEQUAL),
    Case("normalize, rescale", {"density": 0.4, "normalize": True, "rescale": True}, UNEQUAL),
    Case("signed weights, base listed", {"density": 0.7}, SIGNED, listed=True),
)
CRUMBS = (
    *TRIMMED,
    Case("own gammas", {"density": 0.6}, weighted(0.5, 0.3, 0.2, gamma=(0.01, 0.1, 0.5))),
    Case("half dropped at the top", {"density": 0.3, "gamma": 0.5}, EQUAL),
)

CASES: Mapping[str, tuple[Case, ...]] = {
    "linear": (
        Case("equal", {"weight": 1.0}, base=False),
        Case("unequal, signed", {}, SIGNED, base=False),
        Case("not normalized", {"normalize": False}, UNEQUAL, base=False),
    ),
    "task_arithmetic": (
        Case("equal", {}, EQUAL),
        Case("signed, lambda, base listed", {"lambda": 0.6}, SIGNED, listed=True),
        Case("normalize", {"normalize": True}, UNEQUAL),
        Case("what it takes and has no use for", {"density": 0.5, "int8_mask": True, "rescale": True}, UNEQUAL),
    ),
    "slerp": (
        Case("t 0.3", {"t": 0.3}, ({},), listed=True),
        Case("t 0.5", {"t": 0.5}, ({},)),
        Case("t 0", {"t": 0.0}, ({},)),
        Case("t 1", {"t": 1.0}, ({},)),
    ),
    "nuslerp": (
        Case("flat", {}, weighted(0.6, 0.4), base=False),
        Case("flat, on the deltas", {}, weighted(0.3, 0.9)),
        Case("last axis", {"nuslerp_flatten": False}, weighted(0.6, 0.4), base=False),
        Case("last axis, on the deltas", {"nuslerp_flatten": False}, weighted(0.2, 0.8)),
        Case("first axis", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, weighted(0.6, 0.4), base=False),
        Case("first axis, on the deltas", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, weighted(0.7, 0.3)),
        Case("weights that cancel", {}, weighted(0.5, -0.5), base=False),
    ),
    "multislerp": (
        Case("equal", {}, EQUAL, base=False),
        Case("unequal", {}, UNEQUAL, base=False),
        Case("on the deltas", {}, UNEQUAL),
        Case("weights as they are", {"normalize_weights": False, "eps": 1e-6}, UNEQUAL),
    ),
    "karcher": (
        Case("as it comes", base=False),
        Case("three steps, loose", {"max_iter": 3, "tol": 1e-3}, base=False),
        Case("with the base", base=True),
    ),
    "model_stock": (
        Case("whole tensors"),
        Case("filters", {"filter_wise": True}),
        Case("two models, filters", {"filter_wise": True}, ({}, {})),
    ),
    "passthrough": (
        Case("as it is", {}, ({},), base=False),
        Case("scaled", {"scale": 0.7}, ({},), base=False),
        Case("its own scale", {}, ({"scale": -1.25},), base=False),
    ),
    "nearswap": (
        Case("t 0.001", {"t": 0.001}, ({},)),
        Case("t 0.0001, base listed", {"t": 0.0001}, ({},), listed=True),
        Case("t 0", {"t": 0.0}, ({},)),
        Case("t 1", {"t": 1.0}, ({},)),
    ),
    "arcee_fusion": (Case("as it comes", {}, ({},)), Case("base listed", {}, ({},), listed=True)),
    "ram": (Case("as it comes"), Case("epsilon 0.001", {"epsilon": 1e-3}), Case("one model", {}, ({},))),
    "ramplus_tl": (
        Case("as it comes"),
        Case("r 0.5, alpha 0.8", {"r": 0.5, "alpha": 0.8, "epsilon": 1e-4}),
        Case("epsilon 0.001", {"epsilon": 1e-3}),
    ),
    "ties": (*TRIMMED, Case("one entry", {"density": 1e-9}, EQUAL), Case("density 0", {"density": 0.0}, EQUAL)),
    "breadcrumbs": CRUMBS,
    "breadcrumbs_ties": CRUMBS,
    "dare_linear": DENSE,
    "dare_ties": DENSE,
    "della": DENSE,
    "della_linear": DENSE,
    "sce": (
        Case("all entries"),
        Case("a tenth", {"select_topk": 0.1}),
        Case("half, int8 mask", {"select_topk": 0.5, "int8_mask": True}),
        Case("none", {"select_topk": 0.0}),
    ),
}

# Random masks: one model, on a base of zeros, so that what is kept can be counted (test_masks.py).
RANDOM: Mapping[str, tuple[Case, ...]] = {
    method: (
        Case("density 0.3", {"density": 0.3, "weight": 1.0, "int8_mask": True, **extra}, ({},)),
        Case("density 0.8, not rescaled", {"density": 0.8, "weight": 1.0, "rescale": False, **extra}, ({},)),
    )
    for method, extra in {
        "dare_linear": {},
        "dare_ties": {},
        "della": {"epsilon": 0.1},
        "della_linear": {"epsilon": 0.1},
    }.items()
}
