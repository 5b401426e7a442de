"""A body in torch with a task's head on it, and back to a checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..checkpoint import Checkpoint, Memory
from ..checkpoint.body import best_prefix, with_prefix
from ..checkpoint.dtypes import torch_dtype
from ..errors import TaskError
from .kinds import Encoded, Kind

# Names that configurations give their dropout rates.
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "dropout_rate",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
)

Pooling = Literal["mean", "cls"]
Precision = Literal["auto", "bf16", "fp32"]


def load_body(checkpoint: Checkpoint, *, dropout: float | None = None) -> nn.Module:
    """The checkpoint as a transformers model without a head, in float32.

    The class follows from config.json. Names are matched up to a class prefix, as `body` does; parameters that the
    checkpoint lacks (a pooler) keep an initialisation that is always the same.

    One module a configuration is kept and filled anew, because building one takes far longer than filling it: a
    module that this returns is only good until the next call.

    Args:
        checkpoint: the body.
        dropout: overrides every dropout rate of the config.

    Raises:
        TaskError: the config is missing or unknown to transformers, or tensors do not fit it.
    """
    raw = checkpoint.files.get("config.json")
    if raw is None:
        raise TaskError("no config.json, so no architecture", where=checkpoint.where)
    module, fresh = _build(raw, dropout)
    own = dict(module.state_dict(keep_vars=True))
    homes = homes_of(module, checkpoint)
    # A tied tensor has several names here and often one in the checkpoint: what one name found, another must not reset.
    filled = {own[name].data_ptr() for name in homes if own[name].numel()}
    with torch.no_grad():
        for name, parameter in own.items():
            there = homes.get(name)
            if there is None:
                if parameter.data_ptr() not in filled:
                    parameter.copy_(fresh[name])
                continue
            parameter.copy_(checkpoint.read(there))
    for parameter in module.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return module


def homes_of(module: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Names of a module's tensors -> where a checkpoint that belongs to it has them.

    Raises:
        TaskError: the checkpoint is of another architecture, or a tensor of another shape.
    """
    own = module.state_dict()
    known = {*checkpoint.names(), *checkpoint.aliases}
    homes = names_in(module, known)
    # Half of a model may be enough (an encoder alone), but then it is most of the checkpoint.
    if len(homes) * 2 < min(len(own), len(known)) or not homes:
        raise TaskError(
            "the weights do not belong to the config",
            where=checkpoint.where,
            got=f"{len(homes)} of {len(own)} tensors found",
        )
    for name, there in homes.items():
        if checkpoint.spec(there).shape != tuple(own[name].shape):
            raise TaskError(
                "a tensor does not fit the model's config",
                where=f"{checkpoint.where}: {there}",
                got=list(checkpoint.spec(there).shape),
                expected=list(own[name].shape),
            )
    return homes


def names_in(module: nn.Module, known: Collection[str]) -> dict[str, str]:
    """Names of a module's tensors -> their names among `known`, as far as they are there.

    transformers calls the tensors of some architectures (ViT) otherwise in memory than on disk. Both spellings are tried,
    each up to a class prefix; the one that finds more counts.
    """
    from transformers.core_model_loading import revert_weight_conversion

    # Detached: tied names hold one and the same parameter, and the names are told by the object.
    state = {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
    own = {id(tensor): name for name, tensor in state.items()}
    on_disk = {own[id(t)]: name for name, t in revert_weight_conversion(module, state).items() if id(t) in own}
    best: dict[str, str] = {}
    for spelled in ({name: name for name in state}, on_disk):
        prefix = best_prefix(set(known), set(spelled.values()))
        there = {name: with_prefix(spelling, prefix) for name, spelling in spelled.items()}
        found = {name: other for name, other in there.items() if other is not None and other in known}
        best = found if len(found) > len(best) else best
    return best


@lru_cache(maxsize=3)
def _build(config_json: bytes, dropout: float | None) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
    module = new_body(json.loads(config_json), seed=0, dropout=dropout)
    return module, {name: t.detach().clone() for name, t in module.state_dict().items()}


def new_body(config: Mapping[str, Any], *, seed: int, dropout: float | None = None, **options: Any) -> nn.Module:
    """A transformers model without a head from its configuration, initialised from a seed.

    `dropout` overrides every dropout rate that its class has, whether the configuration names it or not.

    Raises:
        TaskError: transformers knows no such model, or refuses a value.
    """
    from transformers import AutoConfig, AutoModel

    kind = config.get("model_type")
    settings = {k: v for k, v in config.items() if k not in ("model_type", "transformers_version")}
    try:
        with seeded(seed):
            known = AutoConfig.for_model(kind, **settings)
            for name in _DROPOUTS:
                if dropout is not None and isinstance(getattr(known, name, None), float | int):
                    setattr(known, name, dropout)
            module = AutoModel.from_config(known, **options)
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(
            "transformers cannot build the model",
            where=f"model_type {kind}",
            got=(str(error).splitlines() or ["?"])[0][:200],
        ) from None
    return cast("nn.Module", module.float())


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from a seed inside the block; as they were after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def autocast(precision: Precision) -> torch.autocast:
    """Autocast to bfloat16 where asked, or where the processor computes in it (`auto`)."""
    return torch.autocast("cpu", torch.bfloat16, enabled=uses_bf16(precision))


def uses_bf16(precision: Precision) -> bool:
    """Whether training and features run in bfloat16 here."""
    return precision == "bf16" or (precision == "auto" and has_bf16())


@lru_cache(maxsize=1)
def has_bf16() -> bool:
    """Whether the processor has bfloat16 arithmetic (AVX-512 BF16 or AMX), without which it is slower."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported())
    except AttributeError:
        return False


def pooled(body: nn.Module, batch: Mapping[str, torch.Tensor], pooling: Pooling) -> torch.Tensor:
    """One vector an example [batch, dim]: the mean over tokens that are not padding, or the first token."""
    config = cast("Any", body).config
    if getattr(config, "is_encoder_decoder", False) or hasattr(body, "decoder"):
        body = cast("Any", body).get_encoder()
    hidden: torch.Tensor = body(**batch).last_hidden_state
    if hidden.dim() == 4:  # convolutional: [batch, dim, height, width]
        return hidden.flatten(2).mean(2)  # no place stands for the whole image
    if pooling == "cls":
        return hidden[:, 0]
    mask = batch.get("attention_mask")
    if mask is None:
        # Images: the class token, where there is one, was trained by nothing yet.
        first = int(any(isinstance(getattr(m, "cls_token", None), torch.Tensor) for m in body.modules()))
        return hidden[:, first:].mean(1)
    weights = mask.to(hidden.dtype).unsqueeze(-1)  # [batch, time, 1]
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


@torch.inference_mode()
def forward_all(
    function: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    kind: Kind,
    encoded: Encoded,
    precision: Precision,
    batch_size: int = 64,
) -> npt.NDArray[np.float32]:
    """A function of batches, over all examples [n, outputs], in their order; batches hold examples of like length.

    Raises:
        TaskError: there are no examples.
    """
    order = np.argsort(-encoded.lengths, kind="stable")
    out: npt.NDArray[np.float32] | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = kind.collate([encoded.rows[i] for i in rows])
        with autocast(precision):
            values = function(batch).float().numpy()
        if out is None:
            out = np.empty((len(order), values.shape[1]), dtype=np.float32)
        out[rows] = values
    if out is None:
        raise TaskError("no examples to predict")
    return out


def body_width(body: nn.Module) -> int:
    """Length of the pooled vector."""
    config = cast("Any", body).config
    for key in ("hidden_size", "d_model", "n_embd", "dim"):
        if isinstance(getattr(config, key, None), int):
            return int(getattr(config, key))
    sizes = getattr(config, "hidden_sizes", None)
    if sizes:
        return int(sizes[-1])
    raise TaskError("cannot tell the width of the model", where=type(body).__name__)


class Head(nn.Module):
    """Dropout and one linear layer on the pooled vector."""

    def __init__(self, width: int, outputs: int, dropout: float, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.dropout = nn.Dropout(dropout)
            self.linear = nn.Linear(width, outputs)
            nn.init.normal_(self.linear.weight, std=0.02)
            nn.init.zeros_(self.linear.bias)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors [batch, width] -> logits [batch, outputs]."""
        logits: torch.Tensor = self.linear(self.dropout(vectors))
        return logits


def body_checkpoint(body: nn.Module, like: Checkpoint) -> Memory:
    """A trained body as a checkpoint under the names its base has, in the base's dtypes.

    What the base lacks (a pooler that transformers added) is left out; what the class lacks stays out as well, and
    `body(tuned, like=base)` fills it from the base.
    """
    state = body.state_dict()
    tensors = {}
    for name, there in names_in(body, set(like.names())).items():
        tensors[there] = state[name].detach().to(torch_dtype(like.spec(there).dtype)).clone()
    return Memory(tensors, files=dict(like.files), where="trained body")
