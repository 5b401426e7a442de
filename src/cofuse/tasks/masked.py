"""Training under a mask: gradients, clipping, decay and the optimizer's state know the chosen values alone.

A parameter of which some values are chosen stays as large as it is; for the length of a step it becomes the vector of
its chosen values, so the optimizer keeps as much state as was chosen and touches nothing else. Whoever looks at the
gradients in between (clipping) sees zeros elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint, Memory
from ..checkpoint.views import View, overlaid
from ..errors import TaskError
from ..patch.masks import Mask, places
from .model import names_in

# Numbers of a parameter's chosen elements [k], ascending; None where all of it is chosen.
Chosen = Mapping[nn.Parameter, torch.Tensor | None]


def homes(model: nn.Module, base: Checkpoint) -> dict[nn.Parameter, str]:
    """A model's parameters by the base's name for each: a tied one has the first of its names.

    Some checkpoints store a tied weight once a name. The others are copies: they are in no mask, and follow the first.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    found: dict[nn.Parameter, str] = {}
    for name, there in names_in(model, {*base.names(), *base.aliases}).items():
        if name in own:
            found.setdefault(own[name], base.resolve(there))
    return found


def chosen(model: nn.Module, base: Checkpoint, mask: Mask) -> dict[nn.Parameter, torch.Tensor | None]:
    """The parameters of a model that hold something of a mask, with the places of what is chosen.

    All others that the base knows get no gradient. What the base lacks, a task's head, is left as it is: it trains whole.

    Args:
        model: any class on the base's body; names are matched up to a class prefix.
        base: what its weights come from, and what the mask is of.
        mask: see `patch.masks`.

    Raises:
        TaskError: nothing of the model is chosen.
    """
    found: dict[nn.Parameter, torch.Tensor | None] = {}
    for parameter, name in homes(model, base).items():
        kept = places(mask, name) if name in mask.specs else ()
        parameter.requires_grad_(len(kept) > 0)
        if len(kept):
            found[parameter] = None if len(kept) == parameter.numel() else torch.as_tensor(kept)
    if not found:
        raise TaskError("the mask chooses nothing of the model", where=base.where, hint="a larger share, other names")
    return found


class MaskedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on the chosen values of a model.

    Unlike the reference code of FISH masks, which multiplies gradients by dense masks, the state is as large as what is
    chosen, and weight decay reaches nothing else. Works wherever an optimizer does, the transformers Trainer included.

    Args:
        params: parameters, or groups of them, as for `torch.optim.AdamW`.
        chosen: what `chosen` found; parameters that it does not name are trained whole.
        settings: AdamW's own: lr, betas, eps, weight_decay, fused.

    >>> weight = nn.Parameter(torch.ones(2, 2))
    >>> optimizer = MaskedAdamW([weight], {weight: torch.tensor([1])}, lr=0.5, weight_decay=0.0)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> weight.data, optimizer.state[weight]["exp_avg"].shape
    (tensor([[1.0000, 0.5000],
            [1.0000, 1.0000]]), torch.Size([1]))
    """

    def __init__(self, params: Any, chosen: Chosen, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._places = {p: kept for p, kept in chosen.items() if kept is not None}
        self._hooks: list[Any] = [
            p.register_post_accumulate_grad_hook(self._mask)  # type: ignore[no-untyped-call]
            for p in self._places
        ]

    def release(self) -> None:
        """Let the parameters have whole gradients again."""
        while self._hooks:
            self._hooks.pop().remove()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the chosen values."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad(), self._gathered():
            # The step as it was written: torch wraps a class's step to run hooks, and has done so for ours already.
            inspect.unwrap(torch.optim.AdamW.step)(self)
        return loss

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        whole = {p: (p.data, p.grad) for p in self._places if p.grad is not None}
        for p, (data, grad) in whole.items():
            kept = self._place(p)
            p.grad = None  # a gradient has its parameter's shape
            p.data = data.take(kept)
            p.grad = grad.take(kept) if grad is not None else None
        try:
            yield
        finally:
            for p, (data, grad) in whole.items():
                values = p.data
                p.grad = None
                p.data = data.put_(self._place(p), values)
                p.grad = grad

    def _mask(self, p: nn.Parameter) -> None:
        """Zero what a backward pass has left outside the mask."""
        if p.grad is not None:
            kept = self._place(p)
            values = p.grad.take(kept)
            p.grad.zero_().put_(kept, values)

    def _place(self, p: nn.Parameter) -> torch.Tensor:
        kept = self._places[p]
        if kept.device != p.device:
            kept = self._places[p] = kept.to(p.device)
        return kept


def masked_checkpoint(body: nn.Module, base: Checkpoint, trained: Chosen) -> View:
    """The base with the trained values in it, in the base's dtypes: every other bit is the base's.

    Copies of a tied weight get its trained values too; see `homes`.
    """
    own = dict(body.named_parameters(remove_duplicate=False))
    tensors: dict[str, torch.Tensor] = {}
    for name, there in names_in(body, {*base.names(), *base.aliases}).items():
        parameter = own.get(name)
        if parameter is None or parameter not in trained or base.resolve(there) in tensors:
            continue
        whole, kept = base.read(there), trained[parameter]
        now = parameter.detach().cpu()
        if kept is None:
            whole.copy_(now)
        else:
            whole.put_(kept, now.take(kept).to(whole.dtype))
        tensors[base.resolve(there)] = whole
    return overlaid(base, Memory(tensors, where="trained under a mask"))
