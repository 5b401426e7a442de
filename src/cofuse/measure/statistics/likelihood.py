"""What is propagated backward so that squared gradients add up to a Fisher.

With J_n the Jacobian of example n's logits in the parameters, the diagonal of the Fisher is a sum of squares

    F = 1/N sum_n sum_k (J_n' v_nk)^2,   sum_k v_nk v_nk' = the covariance of d log p(y | x_n) / d logits

so all that tells one kind of Fisher from another, and one likelihood from another, is the vectors v at the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ...errors import TaskError

if TYPE_CHECKING:
    from ..subject import Batch, Outputs

FisherKind = Literal["expected", "sampled", "empirical"]


def check_kind(kind: str, outputs: Outputs) -> None:
    """Refuse what cannot be computed.

    Raises:
        TaskError: no such kind, or the exact expectation over all sequences of tokens.
    """
    if kind not in ("expected", "sampled", "empirical"):
        raise TaskError("no such kind of Fisher", got=kind, expected="expected, sampled or empirical")
    if kind == "expected" and outputs == "tokens":
        raise TaskError(
            "the exact expectation is over every sequence of tokens",
            got="expected, of a language model",
            expected="sampled: each token drawn from the model, given the text's own tokens before it",
            hint="take --sampled or --empirical",
        )


def cotangents(
    kind: FisherKind, outputs: Outputs, logits: torch.Tensor, batch: Batch, seed: int
) -> Iterator[torch.Tensor]:
    """The vectors v of a batch, each shaped as the logits.

    Of classes, expected: the covariance is diag(p) - p p', of rank C - 1, and its Cholesky factor is known in closed
    form, so C - 1 vectors do what one for each of the C classes would:

        L_kk = sqrt(p_k s_k+1 / s_k),  L_jk = -p_j sqrt(p_k / (s_k s_k+1)) for j > k,  s_k = sum_{j >= k} p_j

    >>> from ..subject import Batch
    >>> logits = torch.tensor([[0.1, 0.7, -0.4]])
    >>> batch = Batch(np.array([0]), {}, torch.tensor([1]))
    >>> v = torch.cat(list(cotangents("expected", "classes", logits, batch, 0)))
    >>> p = logits[0].softmax(0)
    >>> torch.allclose(v.T @ v, p.diag() - torch.outer(p, p), atol=1e-7)
    True

    Args:
        kind: of labels: all, weighed by the model (`expected`), one drawn from it, or the data's.
        outputs: what the logits are.
        logits: [n, classes], [n, 1] or [n, time, vocabulary].
        batch: gives the labels, what counts, and the examples' numbers.
        seed: of drawn labels. With an example's number it decides them, so batches do not matter.
    """
    logits = logits.detach()
    if outputs == "values":
        yield _of_values(kind, logits, batch, seed)
        return
    if kind == "expected":
        yield from _cholesky(logits)
        return
    labels = batch.labels if kind == "empirical" else draw_labels(logits, batch, seed)
    at = labels.to(logits.device).unsqueeze(-1)
    # Classes are few: in float64, so that a model that is nearly sure loses no digits.
    v = (logits.double() if outputs == "classes" else logits.float()).softmax(-1).neg_().scatter_(-1, at, 0.0)
    # 1 - p of the label, as the sum of the others: where p is nearly 1, the difference would be rounding.
    v.scatter_(-1, at, -v.sum(-1, keepdim=True))
    if batch.mask is not None:
        v *= batch.mask.unsqueeze(-1).to(v.device)
    yield v.to(logits.dtype)


def _of_values(kind: FisherKind, logits: torch.Tensor, batch: Batch, seed: int) -> torch.Tensor:
    """Of log N(y; f, 1) in f: y - f, whose square's expectation is 1."""
    if kind == "expected":
        return torch.ones_like(logits)
    if kind == "empirical":
        return batch.labels.to(logits).unsqueeze(-1) - logits
    drawn = [_random(seed, int(row)).standard_normal() for row in batch.rows]
    return torch.tensor(drawn).to(logits).unsqueeze(-1)


def _cholesky(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    p = logits.double().softmax(-1)  # [n, classes]
    rest = p.flip(-1).cumsum(-1).flip(-1)  # s_k
    for k in range(p.shape[-1] - 1):
        here, after = rest[:, k], rest[:, k + 1]
        column = torch.zeros_like(p)
        column[:, k] = (p[:, k] * after / here.clamp_min(1e-300)).sqrt()
        scale = (p[:, k] / (here * after).clamp_min(1e-300)).sqrt()
        column[:, k + 1 :] = -p[:, k + 1 :] * scale.unsqueeze(-1)
        yield column.to(logits.dtype)


def draw_labels(logits: torch.Tensor, batch: Batch, seed: int) -> torch.Tensor:
    """A label from the model for each example [n], or each position [n, time], by the inverse of its distribution."""
    drawn = torch.empty(logits.shape[:-1], dtype=torch.int64)
    for i, row in enumerate(batch.rows):
        # A sequence's numbers start the same however far it is padded.
        uniform = torch.from_numpy(np.atleast_1d(_random(seed, int(row)).random(logits.shape[1:-1] or 1)))
        steps = logits[i].double().softmax(-1).cumsum(-1).reshape(len(uniform), -1)
        at = torch.searchsorted(steps, uniform.to(steps.device).unsqueeze(-1) * steps[:, -1:], right=True)
        drawn[i] = at.clamp_max(logits.shape[-1] - 1).reshape(drawn[i].shape).cpu()
    return drawn


def _random(seed: int, row: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(row << 64) | (seed & (2**64 - 1))))
