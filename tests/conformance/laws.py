"""Where two right answers may differ, and by what law: which entries of a tensor these are.

A law takes the inputs in the dtype that mergekit computes in and gives a mask of the entries it allows to differ. It is
stated about the inputs alone, never about the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from .cases import Case

Law: TypeAlias = Callable[[Case, torch.Tensor | None, list[torch.Tensor]], torch.Tensor]

# mergekit's quantiles of larger tensors come from a random sample of this size.
SAMPLE = 1_000_000
OPPOSITE = 1.001e-3


def _deltas(base: torch.Tensor | None, models: list[torch.Tensor]) -> list[torch.Tensor]:
    assert base is not None
    return [model - base for model in models]


def _nth_largest(magnitude: torch.Tensor, n: int) -> torch.Tensor:
    """The n-th largest value, counted from 1."""
    return magnitude.flatten().kthvalue(magnitude.numel() - n + 1).values


def _tied(delta: torch.Tensor, *ranks: int) -> torch.Tensor:
    """Entries whose magnitude is that of one of these ranks, the largest being 1.

    Magnitudes are in mergekit's dtype. Rounding is monotone, so what is larger after it was larger before: whoever rounds
    keeps the same entries but for those that tie.
    """
    magnitude = delta.abs().float() if delta.dtype == torch.bfloat16 else delta.abs()
    found = torch.zeros_like(delta, dtype=torch.bool)
    for rank in ranks:
        if 0 < rank <= delta.numel():
            found |= magnitude == _nth_largest(magnitude, rank)
    return found


def tied_at_the_threshold(case: Case, base: torch.Tensor | None, models: list[torch.Tensor]) -> torch.Tensor:
    """Entries where some model's change is as large as the smallest one that TIES keeps."""
    found = torch.zeros_like(models[0], dtype=torch.bool)
    for delta, density in zip(_deltas(base, models), case.values("density", 1.0), strict=False):
        kept = max(1, int(density * delta.numel()))
        if 0 < density < 1:
            found |= _tied(delta, kept, kept + 1)
    return found


def tied_at_two_thresholds(case: Case, base: torch.Tensor | None, models: list[torch.Tensor]) -> torch.Tensor:
    """The same for breadcrumbs, which leaves out int(gamma n) at the top, fewer where too few would be left."""
    found = torch.zeros_like(models[0], dtype=torch.bool)
    own = zip(_deltas(base, models), case.values("density", 1.0), case.values("gamma", 0.01), strict=False)
    for delta, density, gamma in own:
        kept = int(density * delta.numel())
        above = min(int(gamma * delta.numel()), delta.numel() - kept)
        if 0 < density < 1:
            found |= _tied(delta, above, above + 1, above + kept, above + kept + 1)
    return found


def sign_of_a_cancelled_sum(case: Case, base: torch.Tensor | None, models: list[torch.Tensor]) -> torch.Tensor:
    """Entries whose weighted changes, each kept or not, sum to zero up to the rounding of the products: either sign wins."""
    deltas = torch.stack([d.double() for d in _deltas(base, models)])
    rounding = torch.finfo(models[0].dtype).eps * 2
    weights = torch.tensor(case.values("weight", 1.0), dtype=torch.float64).reshape(-1, *[1] * (deltas.ndim - 1))
    terms = deltas * weights
    found = torch.zeros_like(models[0], dtype=torch.bool)
    # A mask keeps any of the models' changes: every subset may be what is summed.
    for subset in range(1, 2 ** len(deltas)):
        kept = torch.stack([terms[i] for i in range(len(deltas)) if subset >> i & 1])
        if len(kept) > 1:
            found |= kept.sum(0).abs() <= rounding * kept.abs().sum(0)
    return found & (terms.abs().sum(0) > 0)


def variance_at_the_threshold(case: Case, base: torch.Tensor | None, models: list[torch.Tensor]) -> torch.Tensor:
    """SCE keeps the entries of largest variance: those as large as the smallest one kept, up to its rounding."""
    topk = case.parameters.get("select_topk", 1.0)
    deltas = torch.stack([d.double() for d in _deltas(base, models)])
    variance = deltas.var(0, unbiased=False)
    kept = int(topk * int((variance > 0).sum()))
    if not 0 < topk < 1 or not kept:
        return torch.zeros_like(models[0], dtype=torch.bool)
    threshold = _nth_largest(variance, kept)
    return (variance - threshold).abs() <= 4 * torch.finfo(models[0].dtype).eps * threshold


def change_at_epsilon(case: Case, base: torch.Tensor | None, models: list[torch.Tensor]) -> torch.Tensor:
    """RAM counts changes above epsilon: those as large as epsilon, up to rounding."""
    epsilon = case.parameters.get("epsilon", 1e-5)
    rounding = 2 * torch.finfo(models[0].dtype).eps * epsilon
    found = torch.zeros_like(models[0], dtype=torch.bool)
    for delta in _deltas(base, models):
        found |= (delta.double().abs() - epsilon).abs() <= rounding
    return found


def importance_at_the_threshold(_: Case, base: torch.Tensor | None, models: list[torch.Tensor]) -> torch.Tensor:
    """Arcee Fusion keeps important entries: those as important as the threshold.

    Up to the rounding of the importance; and where mergekit draws a sample for its quantiles, up to five standard errors of them.
    """
    assert base is not None
    old, new = base.double(), models[0].double()
    p, q = new.softmax(-1) + 1e-8, old.softmax(-1) + 1e-8
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    importance = (new - old).abs() * divergence
    ordered = importance.flatten().sort().values

    def quantile(share: float, off: float) -> torch.Tensor:
        error = 5 * (share * (1 - share) / SAMPLE) ** 0.5 if ordered.numel() > SAMPLE else 0.0
        return ordered[int(min(max(share + off * error, 0.0), 1.0) * (ordered.numel() - 1))]

    low = quantile(0.5, -1) + 1.5 * (quantile(0.75, -1) - quantile(0.25, 1))
    high = quantile(0.5, 1) + 1.5 * (quantile(0.75, 1) - quantile(0.25, -1))
    slack = max(64 * torch.finfo(models[0].dtype).eps, 4 * torch.finfo(torch.float32).eps)  # ours are float32
    return (importance >= low - slack * low.abs()) & (importance <= high + slack * high.abs())


def antipodal(case: Case, base: torch.Tensor | None, models: list[torch.Tensor]) -> torch.Tensor:
    """NuSLERP between opposite vectors: through which great circle is left to the rounding of their cosine.

    Opposite is what lacks at most 1e-3 of a straight angle: there a cosine in float32 leaves 6 % of error in what is lacking,
    which the result is divided by. We mix such vectors linearly; mergekit does from about 1e-8 on, or from where its cosine
    rounds to -1.
    """
    vectors = _deltas(base, models[:2]) if case.base else models[:2]
    a, b = (v.double() for v in vectors)
    if case.parameters.get("nuslerp_flatten", True):
        a, b = a.flatten(), b.flatten()
    elif case.parameters.get("nuslerp_row_wise", False):
        a, b = a.transpose(0, -1), b.transpose(0, -1)
    a, b = (v / v.norm(dim=-1, keepdim=True).clamp(min=1e-300) for v in (a, b))
    # |a + b| is the sine of what their angle lacks of a straight one, without the cancellation of 1 - cos^2.
    opposite = (a + b).norm(dim=-1, keepdim=True) <= max(OPPOSITE, torch.finfo(models[0].dtype).eps ** 0.5)
    found = opposite.expand_as(a)
    if case.parameters.get("nuslerp_row_wise", False) and not case.parameters.get("nuslerp_flatten", True):
        found = found.transpose(0, -1)
    return found.reshape(models[0].shape)


ELECTED = {"a cancelled sum's sign": sign_of_a_cancelled_sum}
TIES = {"ties at a threshold": tied_at_the_threshold}
CRUMBS = {"ties at a threshold": tied_at_two_thresholds}

LAWS: Mapping[str, Mapping[str, Law]] = {
    "nuslerp": {"opposite vectors": antipodal},
    "ties": TIES | ELECTED,
    "breadcrumbs": CRUMBS,
    "breadcrumbs_ties": CRUMBS | ELECTED,
    "dare_ties": ELECTED,
    "della": ELECTED,
    "sce": {"ties at a threshold": variance_at_the_threshold} | ELECTED,
    "ram": {"change at epsilon": change_at_epsilon},
    "ramplus_tl": {"change at epsilon": change_at_epsilon},
    "arcee_fusion": {"importance at the threshold": importance_at_the_threshold},
}
