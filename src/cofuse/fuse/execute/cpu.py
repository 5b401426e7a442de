"""Blocks computed by torch on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...checkpoint import tensor_bytes
from ...checkpoint.dtypes import torch_dtype
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
        working = torch.float64 if plan.spec.dtype == "F64" else torch.float32

        def blocks() -> Iterator[torch.Tensor]:
            for model in fused.models:
                yield model.read_flat(name, start, stop).to(working)

        base = None
        if method.needs_base and fused.base is not None:
            base = fused.base.read_flat(name, start, stop).to(working)
        result = method.function(blocks(), base, **keyword_arguments(plan.parameters))
        return bytearray(tensor_bytes(result.to(torch_dtype(plan.spec.dtype))))
