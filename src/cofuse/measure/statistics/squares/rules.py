"""The table: which rule a layer has. A new family of layers is one file and one row.

Layers are known by the name of their class or of one it inherits from; a name is only a guess, which the collector
checks on examples before it trusts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from .convolution import CONVOLUTION
from .embedding import EMBEDDING
from .linear import LINEAR, TRANSPOSED
from .norms import BATCH_NORM, GROUP_NORM, LAYER_NORM, RMS_NORM
from .rule import Rule

RULES: Mapping[str, Rule] = {
    "Linear": LINEAR,
    "Conv1D": TRANSPOSED,  # GPT-2's
    "Embedding": EMBEDDING,
    "LayerNorm": LAYER_NORM,
    "*RMSNorm": RMS_NORM,  # every family has one of its own
    "T5LayerNorm": RMS_NORM,
    "SwitchTransformersLayerNorm": RMS_NORM,
    "BatchNorm?d": BATCH_NORM,
    "GroupNorm": GROUP_NORM,
    "Conv1d": CONVOLUTION,
    "Conv2d": CONVOLUTION,
}


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a layer; None where there is none.

    >>> rule_of(nn.Linear(2, 2)) is LINEAR, rule_of(nn.GELU())
    (True, None)
    """
    names = [kind.__name__ for kind in type(module).__mro__]
    # The nearest class counts: a normalisation that inherits from another is what its own name says.
    return next((rule for name in names for glob, rule in RULES.items() if fnmatchcase(name, glob)), None)


__all__ = ["RULES", "Rule", "rule_of"]
