"""recipe -> plan -> execution; methods are pure functions on blocks."""

import sys
from types import ModuleType
from typing import Any

from .execute import CpuExecutor, Executor
from .fused import Fused
from .fusing import fuse, fuse_recipe
from .methods import METHODS, Method, Parameter, Place, Statistic
from .plan import Plan, TensorPlan, make_plan
from .recipe import ModelInput, Recipe, Slice, SliceSource, read_recipe
from .running import Running

__all__ = [
    "METHODS",
    "CpuExecutor",
    "Executor",
    "Fused",
    "Method",
    "ModelInput",
    "Parameter",
    "Place",
    "Plan",
    "Recipe",
    "Running",
    "Slice",
    "SliceSource",
    "Statistic",
    "TensorPlan",
    "fuse",
    "fuse_recipe",
    "make_plan",
    "read_recipe",
]


class _Callable(ModuleType):
    """The room, which is also what `cofuse.fuse(...)` calls: importing a submodule puts it under its name."""

    def __call__(self, *arguments: Any, **parameters: Any) -> Fused:
        return fuse(*arguments, **parameters)


sys.modules[__name__].__class__ = _Callable
