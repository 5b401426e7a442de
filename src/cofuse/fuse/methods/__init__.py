"""The merge methods: pure functions on blocks, one family a file, one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .arcee_fusion import arcee_fusion, survey_importance
from .breadcrumbs import breadcrumbs, breadcrumbs_masks, breadcrumbs_ties
from .consensus import consensus
from .dare import dare_linear, dare_masks, dare_ties
from .della import check_probabilities, della, della_linear, della_masks
from .ema import ema
from .fisher import fisher, fisher_scales
from .geometric_median import geometric_median, geometric_median_shares
from .gram import mixed
from .iso_c import iso_c
from .karcher import karcher, karcher_shares
from .krum import check_counts, krum, krum_shares, multi_krum, multi_krum_shares
from .linear import linear, linear_shares
from .method import Array, Look, Method, Parameter, Place, Scan, Scope, Statistic, Unit
from .model_stock import model_stock, model_stock_shares
from .multislerp import multislerp, multislerp_shares
from .nearswap import nearswap
from .norm_clip import norm_clip, norm_clip_shares
from .nuslerp import nuslerp, nuslerp_ends
from .order import median, trimmed_mean
from .passthrough import passthrough
from .pcb import pcb, survey_balance
from .ram import ram, ramplus_tl, survey_shares
from .regmean import gram_shapes, regmean
from .sce import sce, sce_selection
from .slerp import slerp, slerp_ends
from .task_arithmetic import task_arithmetic, task_arithmetic_shares
from .ties import ties, ties_masks
from .tsv import tsv
from .weights import refuse_cancelled
from .wise_ft import wise_ft, wise_ft_shares

WEIGHT = Parameter(1.0, per_model=True)
SHARE = Parameter(1.0, per_model=True, low=0.0)
OWN_SCOPE = Parameter("model", choices=("model", "tensor"))
CHANGE = Parameter(1e-5, low=0.0)  # what counts as a change
SPARSE = {
    "weight": WEIGHT,
    "density": Parameter(1.0, per_model=True, low=0.0, high=1.0),
    "lambda": Parameter(1.0),
    "rescale_by": Parameter("l1", choices=("l1", "density")),
    "int8_mask": Parameter(False),
}
ELECTED = {**SPARSE, "sign": Parameter("sum", choices=("sum", "count"))}
GAMMA = Parameter(0.01, per_model=True, low=0.0, high=1.0)
EPSILON = Parameter(0.15, per_model=True, low=0.0, high=0.5)
YES, NO = Parameter(True), Parameter(False)
BYZANTINE = Parameter(-1, low=-1)


def _sparse(
    function: Callable[..., Array],
    masks: Callable[..., Any],
    parameters: Mapping[str, Parameter],
    *,
    unit: Unit = "block",
    check: Callable[..., None] | None = None,
) -> Method:
    """A row of those that make task vectors sparse: masks found by a survey, compiled steps."""
    kernel = f"methods:{function.__name__}"
    return Method(function, unit, True, parameters, masks, placed=True, kernel=kernel, check=check)


METHODS: dict[str, Method] = {
    "linear": Method(
        linear, "block", False, {"weight": WEIGHT, "normalize": YES}, mix=linear_shares, check=refuse_cancelled
    ),
    "task_arithmetic": Method(
        task_arithmetic,
        "block",
        True,
        {"weight": WEIGHT, "lambda": Parameter(1.0), "normalize": NO},
        mix=task_arithmetic_shares,
        check=refuse_cancelled,
    ),
    "ties": _sparse(ties, ties_masks, {**ELECTED, "normalize": YES, "rescale": NO}),
    "dare_linear": _sparse(dare_linear, dare_masks, {**SPARSE, "normalize": NO, "rescale": YES}),
    "dare_ties": _sparse(dare_ties, dare_masks, {**ELECTED, "normalize": NO, "rescale": YES}),
    "della": _sparse(
        della,
        della_masks,
        {**ELECTED, "epsilon": EPSILON, "normalize": YES, "rescale": YES},
        unit="row",
        check=check_probabilities,
    ),
    "della_linear": _sparse(
        della_linear,
        della_masks,
        {**SPARSE, "epsilon": EPSILON, "normalize": NO, "rescale": YES},
        unit="row",
        check=check_probabilities,
    ),
    "breadcrumbs": _sparse(breadcrumbs, breadcrumbs_masks, {**SPARSE, "gamma": GAMMA, "normalize": NO, "rescale": NO}),
    "breadcrumbs_ties": _sparse(
        breadcrumbs_ties, breadcrumbs_masks, {**ELECTED, "gamma": GAMMA, "normalize": NO, "rescale": NO}
    ),
    "sce": Method(
        sce,
        "block",
        True,
        {"select_topk": Parameter(1.0, low=0.0, high=1.0), "int8_mask": NO},
        sce_selection,
        placed=True,
        kernel="methods:sce",
    ),
    "consensus": Method(
        consensus,
        "block",
        True,
        {
            "weight": WEIGHT,
            "threshold": Parameter(0.4, per_model=True, low=0.0),
            "least": Parameter(2, low=0),
            "lambda": Parameter(1.0),
        },
    ),
    "slerp": Method(slerp, "block", True, {"t": Parameter(0.5, required=True)}, slerp_ends, mix=mixed, models=(1, 1)),
    "nuslerp": Method(
        nuslerp,
        "row",
        None,
        {
            "weight": Parameter(1.0, per_model=True, required=True),
            "nuslerp_flatten": Parameter(True),
            "nuslerp_row_wise": Parameter(False),
        },
        nuslerp_ends,
        mix=mixed,
        placed=True,
        models=(2, 2),
    ),
    "multislerp": Method(
        multislerp,
        "block",
        None,
        {
            "weight": Parameter(1.0, per_model=True, required=True),
            "normalize_weights": Parameter(True),
            "eps": Parameter(1e-8, low=0.0),
        },
        multislerp_shares,
        mix=mixed,
        check=refuse_cancelled,
    ),
    "karcher": Method(
        karcher,
        "block",
        False,
        {"max_iter": Parameter(10, low=0), "tol": Parameter(1e-5, low=0.0)},
        karcher_shares,
        mix=mixed,
    ),
    "model_stock": Method(
        model_stock,
        "row",
        True,
        {"filter_wise": Parameter(False)},
        model_stock_shares,
        mix=mixed,
        placed=True,
        models=(2, None),
    ),
    "passthrough": Method(passthrough, "block", False, {"scale": WEIGHT}, models=(1, 1)),
    "nearswap": Method(nearswap, "block", True, {"t": Parameter(0.0, required=True)}, models=(1, 1)),
    "wise_ft": Method(
        wise_ft, "block", True, {"alpha": Parameter(0.5, low=0.0, high=1.0)}, mix=wise_ft_shares, models=(1, 1)
    ),
    "ema": Method(ema, "block", None, {"decay": Parameter(0.9, low=0.0, high=1.0)}),
    "median": Method(median, "block", False),
    "trimmed_mean": Method(trimmed_mean, "block", False, {"trim": Parameter(0.2, low=0.0, high=0.5)}),
    "geometric_median": Method(
        geometric_median,
        "block",
        False,
        {
            "weight": Parameter(1.0, per_model=True, low=0.0),
            "eps": Parameter(1e-6, low=1e-30),
            "max_iter": Parameter(1000, low=1),
            "scope": OWN_SCOPE,
        },
        geometric_median_shares,
        mix=mixed,
        check=refuse_cancelled,
        scope="model",
        placed=True,
    ),
    "krum": Method(
        krum,
        "block",
        False,
        {"byzantine": BYZANTINE},
        krum_shares,
        mix=mixed,
        scope="model",
        models=(3, None),
        check=check_counts,
    ),
    "multi_krum": Method(
        multi_krum,
        "block",
        False,
        {"byzantine": BYZANTINE, "m": Parameter(-1, low=-1)},
        multi_krum_shares,
        mix=mixed,
        scope="model",
        models=(3, None),
        check=check_counts,
    ),
    "norm_clip": Method(
        norm_clip,
        "block",
        True,
        {
            "weight": WEIGHT,
            "bound": Parameter(0.0, low=0.0),
            "normalize": Parameter(True),
            "scope": OWN_SCOPE,
        },
        norm_clip_shares,
        mix=mixed,
        check=refuse_cancelled,
        scope="model",
        placed=True,
    ),
    "arcee_fusion": Method(
        arcee_fusion,
        "row",
        True,
        survey=survey_importance,
        placed=True,
        models=(1, 1),
        kernel="arcee_fusion:arcee_fusion",
    ),
    "ram": Method(ram, "block", True, {"epsilon": CHANGE}, kernel="ram:ram"),
    "ramplus_tl": Method(
        ramplus_tl,
        "block",
        True,
        {"r": Parameter(0.1), "alpha": Parameter(0.2, low=0.0), "epsilon": CHANGE},
        survey_shares,
        kernel="ram:ramplus_tl",
    ),
    "tsv": Method(tsv, "tensor", True, {"weight": WEIGHT, "lambda": Parameter(1.0)}),
    "iso_c": Method(iso_c, "tensor", True, {"weight": WEIGHT, "lambda": Parameter(1.0)}),
    "pcb": Method(
        pcb,
        "block",
        True,
        {"weight": WEIGHT, "density": Parameter(0.1, low=0.0, high=1.0), "lambda": Parameter(1.0)},
        survey_balance,
        scope="model",
    ),
    "fisher": Method(
        fisher,
        "block",
        False,
        {
            "weight": SHARE,
            "normalize_by": Parameter("mean", choices=("mean", "rms", "none")),
            "floor": Parameter(1e-6, low=0.0),
            "floor_on": Parameter("all", choices=("all", "target")),
        },
        fisher_scales,
        scope="model",
        weightless=True,
        kernel="fisher:fisher",
        check=refuse_cancelled,
        statistics={"fisher": Statistic(low=0.0)},
    ),
    "regmean": Method(
        regmean,
        "tensor",
        False,
        {
            "weight": SHARE,
            "alpha": Parameter(0.9, low=0.0, high=1.0),
            "ridge": Parameter(1e-6, low=0.0),
            "normalize_by": Parameter("none", choices=("mean", "none")),
        },
        placed=True,
        check=refuse_cancelled,
        statistics={"gram": Statistic(gram_shapes)},
    ),
}

# Parameters whose usual name is a Python keyword.
SPELLINGS: dict[str, str] = {"lambda": "scale"}


def keyword_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by the names that the functions give them.

    >>> keyword_arguments({"lambda": 0.5})
    {'scale': 0.5}
    """
    return {SPELLINGS.get(name, name): value for name, value in parameters.items()}


__all__ = [
    "METHODS",
    "Array",
    "Look",
    "Method",
    "Parameter",
    "Place",
    "Scan",
    "Scope",
    "Statistic",
    "Unit",
    "keyword_arguments",
]
