"""A finetune as a LoRA: what was tuned, minus its base, as products of two thin matrices, with the error that leaves.

    tuned - base ~ s B A        s = alpha / rank; B [out, rank], A [rank, in]: the truncated SVD of the difference

Written as a PEFT adapter, which `cofuse.open` opens on its base. What no product can hold is kept whole, as PEFT's
`modules_to_save` (norms, embeddings, heads) and trained biases. As mergekit's `mergekit-extract-lora`, except that what
did not change is left out, that biases are kept where PEFT reads them, and that the error is known.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...checkpoint import Checkpoint, TensorSpec
from ...checkpoint.architecture import HEAD
from ...checkpoint.floats import FLOATS, as_floats, as_stored
from ...checkpoint.lowrank import Matrix, factored
from ...checkpoint.modules import head_of, is_table, is_transposed, named, tied_heads
from ...errors import FuseError
from ...progress import SILENT, Progress
from .extracted import Extracted, Product
from .settings import FACTORS, RANK, LoraSettings

Array: TypeAlias = npt.NDArray[np.float32]


def extract_lora(
    tuned: Checkpoint, base: Checkpoint, settings: LoraSettings | None = None, progress: Progress = SILENT
) -> Extracted:
    """Find the LoRA that is nearest to what was tuned.

    Args:
        tuned: the finetune, with the base's names.
        base: what it was tuned from.
        settings: see `LoraSettings`.
        progress: told of every tensor.

    Raises:
        FuseError: names or shapes do not fit, a change cannot be held, a value is not finite, or nothing changed.

    Memory is about six times the largest tensor in float32, and the adapter.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> base = Memory({"up.weight": torch.zeros(4, 4)})
    >>> tuned = Memory({"up.weight": torch.ones(4, 4)})
    >>> found = extract_lora(tuned, base, LoraSettings(rank=1))
    >>> found.products["up"].rank, found.error < 1e-6
    (1, True)
    """
    settings = settings or LoraSettings()
    found = Extracted(tuned, base, settings)
    missing = [n for n in base.names() if n not in tuned]
    if missing:
        raise FuseError(
            "the tuned model lacks a tensor of the base",
            where=tuned.where,
            got=missing[0],
            hint="take its body first: cofuse body TUNED OUT --like BASE",
        )
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for name in (*base.names(), *(n for n in tuned.names() if n not in base)):
        module, _, kind = name.rpartition(".")
        modules[module if kind in ("weight", "bias") else name].append(name)
    bar = progress.bar("extracting", sum(base.spec(n).nbytes for n in base.names()), "B")
    squares = _Squares()
    for module, names in modules.items():
        _extract_module(found, module, names, squares)
        bar.advance(sum(base.spec(n).nbytes for n in names if n in base))
    if not found.products:
        raise FuseError(
            "no weight changed that a LoRA can hold",
            where=tuned.where,
            got=f"{len(found.unchanged)} tensors unchanged, {len(found.whole) + len(found.biases)} to keep whole",
            hint="are they different models? PEFT wants at least one product",
        )
    found.tied.update(tied_heads(base, [n for n in found.whole if n in base and is_table(n, base)]))
    for head in tuple(found.tied):
        bias = head.replace(".decoder.weight", ".bias")
        if bias != head and bias in base and not any(HEAD.search(name) for name in base.names()):
            # A masked language model's head has one bias under two names, and PEFT wants both.
            found.tied[head.replace(".weight", ".bias")] = bias
            found.biases[bias] = tuned.spec(bias)
    found.error = math.sqrt(squares.left / squares.changed) if squares.changed else 0.0
    return found


@dataclass(slots=True)
class _Squares:
    changed: float = 0.0
    left: float = 0.0


def _extract_module(found: Extracted, module: str, names: Sequence[str], squares: _Squares) -> None:
    tuned, base, settings = found.tuned, found.base, found.settings
    changed: dict[str, float] = {}  # name -> squared norm of its change
    new = [n for n in names if n not in base]
    other_shape = [n for n in names if n in base and tuned.spec(n).shape != base.spec(n).shape]
    change: Array | None = None
    for name in names:
        if name in new or name in other_shape:
            continue
        delta = _delta(tuned, base, name)
        if delta is None:
            found.unchanged.add(name)
            continue
        changed[name] = float(np.square(delta, dtype=np.float64).sum())
        if name == f"{module}.weight":
            change = delta
    head = head_of(module, base)
    if not changed and not new and not other_shape:
        if head:
            found.whole.update({n: tuned.spec(n) for n in names})
        return
    squares.changed += math.fsum(changed.values())
    weight = f"{module}.weight"
    if not head and not settings.wants(module):
        _leave(found, changed, squares)
        return
    is_module = set(names) <= {weight, f"{module}.bias"}
    user = named(module, settings.save)
    table = is_module and weight in base and (is_table(weight, base) or HEAD.search(weight) is not None)
    tied = table and bool(tied_heads(base, [weight]))  # a product would change the embedding and not the head
    whole = user or bool(head) or bool(new) or bool(other_shape) or tied or (table and not settings.embeddings)
    product = change is not None and not whole and change.ndim >= 2 and not (change.ndim > 2 and change.shape[1] == 1)
    if product:
        assert change is not None
        made = _product(change, weight, found)
        found.products[module] = made
        squares.left += changed[weight] * made.error**2
    elif other_shape and not is_table(other_shape[0], base) and not user:
        raise FuseError(
            "a tensor has another shape than the base's",
            where=f"{tuned.where}: {other_shape[0]}",
            got=list(tuned.spec(other_shape[0]).shape),
            expected=list(base.spec(other_shape[0]).shape),
        )
    elif not is_module or any(tuned.spec(n).dtype not in FLOATS for n in changed):
        if not settings.skip:
            raise FuseError(
                "a LoRA cannot hold a change of what is no module's weight or bias",
                where=f"{tuned.where}: {names[0]}",
                hint="--skip-undecomposable leaves it out",
            )
        _leave(found, changed, squares)
        return
    elif set(changed) == {f"{module}.bias"} and not whole:
        pass  # only the bias: no need to keep the weight
    elif settings.skip and not user and not new and not head:
        _leave(found, changed, squares)
        return
    else:
        found.whole.update({n: tuned.spec(n) for n in names if n in tuned})
        return
    bias = f"{module}.bias"
    if bias in changed:
        found.biases[bias] = tuned.spec(bias)


def _leave(found: Extracted, changed: Mapping[str, float], squares: _Squares) -> None:
    for name, square in changed.items():
        found.left[name] = math.sqrt(square)
        squares.left += square


def _product(change: Array, weight: str, found: Extracted) -> Product:
    settings, scale = found.settings, found.scale
    embedding = is_table(weight, found.base)
    turned = embedding or (change.ndim == 2 and is_transposed(found.base))
    matrix: Matrix = np.ascontiguousarray(change.T) if turned else change.reshape(len(change), -1)
    most = settings.rank if settings.rank is not None else RANK if settings.max_error is None else min(matrix.shape)
    code = settings.dtype or found.tuned.spec(weight).dtype
    if code not in FACTORS:
        code = "F32"
    made = factored(
        matrix,
        most,
        code,
        error=settings.max_error,
        scale=scale,
        even=settings.distribute_scale,
        epsilon=settings.epsilon,
    )
    shape_a: tuple[int, ...] = made.a.shape
    shape_b: tuple[int, ...] = made.b.shape
    if change.ndim > 2:  # a convolution: A convolves, B mixes channels
        shape_a = (made.rank, *change.shape[1:])
        shape_b = (made.b.shape[0], made.rank, *(1,) * (change.ndim - 2))
    return Product(
        (TensorSpec(code, shape_a), as_stored(made.a, code).tobytes()),
        (TensorSpec(code, shape_b), as_stored(made.b, code).tobytes()),
        made.rank,
        made.error,
        embedding,
    )


def _delta(tuned: Checkpoint, base: Checkpoint, name: str) -> Array | None:
    """What changed of a tensor, in float32; None when nothing did."""
    ours, theirs = tuned.spec(name), base.spec(name)
    after, before = tuned.read_bytes(name), base.read_bytes(name)
    if ours.dtype == theirs.dtype and after == before:
        return None
    if ours.dtype not in FLOATS or theirs.dtype not in FLOATS:
        if ours.dtype in FLOATS or theirs.dtype in FLOATS:
            raise FuseError(
                "a tensor has another kind of dtype",
                where=f"{tuned.where}: {name}",
                got=ours.dtype,
                expected=theirs.dtype,
            )
        return np.ones(1, np.float32)
    delta: Array = _floats(after, ours, tuned, name) - _floats(before, theirs, base, name)
    return delta if delta.any() else None


def _floats(data: bytes | bytearray | memoryview, spec: TensorSpec, checkpoint: Checkpoint, name: str) -> Array:
    values: Array = as_floats(np.frombuffer(data, np.uint8), spec.dtype, np.float32).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise FuseError("a value is not finite", where=f"{checkpoint.where}: {name}")
    return values.reshape(spec.shape)
