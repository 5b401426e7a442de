"""The methods whose steps are compiled. float64 blocks, which are rare, take the plain steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..methods.breadcrumbs import breadcrumbs as plain_breadcrumbs
from ..methods.breadcrumbs import breadcrumbs_ties as plain_breadcrumbs_ties
from ..methods.dare import dare_linear as plain_dare_linear
from ..methods.dare import dare_ties as plain_dare_ties
from ..methods.della import della as plain_della
from ..methods.della import della_linear as plain_della_linear
from ..methods.method import Array
from ..methods.sce import sce as plain_sce
from ..methods.steps import steps_for
from ..methods.ties import ties as plain_ties


def with_steps(method: Callable[..., Array]) -> Callable[..., Array]:
    """The method with the steps for the kind of array that it is given."""

    def fused(models: Iterable[Array], base: Array, **parameters: Any) -> Array:
        return method(models, base, steps=steps_for(base), **parameters)

    return fused


ties = with_steps(plain_ties)
dare_linear = with_steps(plain_dare_linear)
dare_ties = with_steps(plain_dare_ties)
della = with_steps(plain_della)
della_linear = with_steps(plain_della_linear)
breadcrumbs = with_steps(plain_breadcrumbs)
breadcrumbs_ties = with_steps(plain_breadcrumbs_ties)
sce = with_steps(plain_sce)
