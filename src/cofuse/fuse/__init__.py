"""recipe -> plan -> execution; methods are pure functions on blocks."""

from .execute import CpuExecutor, Executor
from .fused import Fused
from .fusing import fuse, fuse_recipe
from .methods import METHODS, Method, Parameter, Place
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
    "TensorPlan",
    "fuse",
    "fuse_recipe",
    "make_plan",
    "read_recipe",
]
