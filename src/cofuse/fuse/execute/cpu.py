"""Blocks computed by torch on the processor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...checkpoint import tensor_bytes
from ...checkpoint.dtypes import torch_dtype
from ...errors import FuseError
from ..methods import METHODS, keyword_arguments

if TYPE_CHECKING:
    import torch

    from ..fused import Fused


class CpuExecutor:
    """Computes each block in the thread that asks for it."""

    def block(self, fused: Fused, name: str, start: int, stop: int) -> bytearray:
        """Elements `start` to `stop` of a fused tensor, as bytes of its output dtype."""
        import torch

        plan = fused.plan.tensors[name]
        assert plan.method is not None  # copied tensors never come here
        method = METHODS[plan.method]
        dtypes = {plan.spec.dtype, *(model.spec(name).dtype for model in fused.models)}
        working = torch.float64 if "F64" in dtypes else torch.float32

        def blocks() -> Iterator[torch.Tensor]:
            for model in fused.models:
                yield model.read_flat(name, start, stop).to(working)

        base = None
        if method.needs_base and fused.base is not None:
            base = fused.base.read_flat(name, start, stop).to(working)
        result = method.function(blocks(), base, **keyword_arguments(plan.parameters))
        result = result.to(torch_dtype(plan.spec.dtype))
        # The sum is not finite when a value is not; it is ten times as quick as looking at each.
        if not math.isfinite(result.sum(dtype=working).item()) and not torch.isfinite(result).all():
            raise _not_finite(fused, name, start, stop)
        return bytearray(tensor_bytes(result))


def _not_finite(fused: Fused, name: str, start: int, stop: int) -> FuseError:
    """The error that says whose value it was."""
    import torch

    for model in (*fused.models, *((fused.base,) if fused.base is not None else ())):
        block = model.read_flat(name, start, stop)
        if not torch.isfinite(block).all():
            return FuseError("a value is not finite", where=f"{model.where}: {name}", hint="leave this model out")
    return FuseError(
        "the result is too large for its dtype",
        where=f"{fused.where}: {name}",
        got=fused.plan.tensors[name].spec.dtype,
        hint="smaller weights, or out_dtype: float32",
    )
