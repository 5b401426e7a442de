"""Checkpoints kept in 8-bit floats with scales, as the floats they stand for; computed block by block as they are read.

    W[i, j] = q[i, j] s[i // rows, j // columns]

with a scale for the tensor, for each row, or for each block of 128 x 128, by the shape of the scales' tensor.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from .dtypes import bits
from .floats import STORED, Array, as_floats, as_stored
from .views import Source, View

_EIGHT = ("F8_E4M3", "F8_E5M2")
_POWERS = "F8_E8M0"  # scales that are powers of two
# What stands behind a weight's name in that of its scales. DeepSeek's "inverse" is the factor all the same.
SCALES = ("_scale_inv", "_scale")
# Tensors that only a quantised forward pass reads.
ACTIVATIONS = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".weight_zero_point")
# Kinds of quantisation whose numbers are no floats, by the config's words and by their tensors' endings.
INTEGERS = frozenset({"gptq", "awq", "bitsandbytes", "hqq", "aqlm", "quanto", "eetq", "higgs", "vptq", "spqr", "mxfp4"})
_PACKED = (".qweight", ".qzeros", ".weight_packed", ".SCB", ".absmax", ".quant_map", "_blocks_packed")
_BLOCK = (128, 128)
_WORDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A weight, its scales, and how many rows and columns one scale covers."""

    weight: str
    scale: str
    rows: int
    columns: int


class Dequantized(View):
    """A checkpoint whose scaled fp8 weights are read as plain floats."""

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        scales = {}
        for name in checkpoint.names():
            if checkpoint.spec(name).dtype in _EIGHT:
                scale = next((name + end for end in SCALES if name + end in checkpoint), None)
                if scale is not None:
                    scales[name] = scale
        gone = {*scales.values(), *(n for n in checkpoint.names() if scales and n.endswith(ACTIVATIONS))}
        config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
        super().__init__(
            {name: Source(checkpoint, name) for name in checkpoint.names() if name not in gone},
            files={**checkpoint.files, "config.json": json.dumps(config, indent=2).encode() + b"\n"}
            if "config.json" in checkpoint.files
            else checkpoint.files,
            metadata=checkpoint.metadata,
            aliases={a: n for a, n in checkpoint.aliases.items() if a not in gone},
            where=checkpoint.where,
        )
        self.dtype = dtype
        self._checkpoint = checkpoint
        block = _block(checkpoint.config.get("quantization_config"))
        self._scaled = {name: _fitted(checkpoint, name, scale, block) for name, scale in scales.items()}
        self._scales: dict[str, Array] = {}
        self._lock = threading.Lock()

    @property
    def scaled(self) -> tuple[str, ...]:
        """Names of the weights that are computed."""
        return tuple(self._scaled)

    def spec(self, name: str) -> TensorSpec:
        spec = super().spec(name)
        return TensorSpec(self.dtype, spec.shape) if self.resolve(name) in self._scaled else spec

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        if self.resolve(name) in self._scaled:
            return Checkpoint.blocks(self, name, size)
        return super().blocks(name, size)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        if self.resolve(name) in self._scaled:
            out[:] = self.read_bytes(name, start, start + len(out))
        else:
            super().read_into(name, start, out)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        scaled = self._scaled.get(self.resolve(name))
        if scaled is None:
            return super().read_bytes(name, start, stop)
        start, stop = self.check_range(name, start, stop)
        if start == stop:
            return b""
        width, columns = bits(self.dtype) // 8, self.spec(name).shape[-1]
        # Whole rows are computed, so that a value does not depend on the range asked for.
        first, last = start // (width * columns), -(-stop // (width * columns))
        code = self._checkpoint.spec(scaled.weight).dtype
        raw = np.frombuffer(self._checkpoint.read_bytes(scaled.weight, first * columns, last * columns), np.uint8)
        values = as_floats(raw, code, np.float32).reshape(last - first, columns)
        values *= self._factors(scaled, first, last, columns)
        skip = start - first * columns * width
        return as_stored(values, self.dtype)[skip : skip + stop - start].data

    def _factors(self, scaled: _Scaled, first: int, last: int, columns: int) -> Array:
        """The scales of rows `first` to `last`, all dimensions but the last flattened; [rows, columns] or [rows, 1]."""
        scales = self._loaded(scaled)  # [matrices, rows of blocks, columns of blocks]
        shape = self._checkpoint.spec(scaled.weight).shape
        height = shape[-2] if len(shape) > 1 else 1
        row = np.arange(first, last)
        which = row // height if scales.shape[0] > 1 else np.zeros_like(row)
        picked: Array = scales[which, (row % height) // scaled.rows]
        if picked.shape[1] == 1:
            return picked
        wide: Array = np.repeat(picked, scaled.columns, axis=1)[:, :columns]
        return wide

    def _loaded(self, scaled: _Scaled) -> Array:
        with self._lock:
            if scaled.scale not in self._scales:
                spec = self._checkpoint.spec(scaled.scale)
                raw = np.frombuffer(self._checkpoint.read_bytes(scaled.scale), np.uint8)
                if spec.dtype == _POWERS:
                    # Eight bits of exponent and nothing else; all of them set is NaN, which no weight survives.
                    powers = np.ldexp(np.float32(1), raw.astype(np.int32) - 127)
                    values: Array = np.where(raw == 0xFF, np.float32("nan"), powers).astype(np.float32)
                else:
                    values = as_floats(raw, spec.dtype, np.float32)
                self._scales[scaled.scale] = values.reshape(_cube(spec.shape))
            return self._scales[scaled.scale]


def dequantized(checkpoint: Checkpoint, dtype: str | None = None) -> Checkpoint:
    """The checkpoint with its scaled fp8 weights as plain floats; itself where it has none.

    Scales stand beside their weights as `weight_scale_inv` (blocks of 128 x 128: DeepSeek) or `weight_scale` (one for the
    tensor, a row or a block: compressed-tensors, ModelOpt). The product is taken in float32 and rounded once.

    Args:
        checkpoint: any.
        dtype: the code of the result's floats; what the config says (`torch_dtype`), else BF16, when None.

    Raises:
        CheckpointError: it is quantised to integers (GPTQ, AWQ, bitsandbytes), which no mean can be taken of, or the
            scales do not fit the weight.
    """
    config = checkpoint.config.get("quantization_config")
    kind = config.get("quant_method") if isinstance(config, Mapping) else None
    packed = next((n for n in checkpoint.names() if n.endswith(_PACKED)), None)
    if packed is not None or kind in INTEGERS:
        raise CheckpointError(
            "the model is quantised to integers",
            where=checkpoint.where,
            got=f"{kind or 'packed weights'}" + (f", {packed}" if packed else ""),
            expected="plain floats, or fp8 with scales",
            hint="fuse the model it was quantised from, and quantise the result",
        )
    if not any(
        checkpoint.spec(n).dtype in _EIGHT and any(n + end in checkpoint for end in SCALES) for n in checkpoint.names()
    ):
        return checkpoint
    said = checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype")
    return Dequantized(checkpoint, dtype or _WORDS.get(str(said), "BF16"))


def _cube(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A scales' shape as matrices, rows, columns; a vector is one scale a row."""
    if len(shape) < 2:
        return (1, shape[0] if shape else 1, 1)
    matrices = 1
    for n in shape[:-2]:
        matrices *= n
    return (matrices, shape[-2], shape[-1])


def _fitted(checkpoint: Checkpoint, name: str, scale: str, block: tuple[int, int]) -> _Scaled:
    weight, scales = checkpoint.spec(name), checkpoint.spec(scale)
    found = _cube(scales.shape)
    matrices, height, width = _cube(weight.shape) if len(weight.shape) > 1 else (1, 1, *weight.shape, 1)[:3]
    rows = 1 if found[1] == height else height if found[1] == 1 else block[0]
    columns = width if found[2] == 1 else block[1]
    fits = (
        (scales.dtype in STORED or scales.dtype == _POWERS)
        and found[0] in (1, matrices)
        and (found[1], found[2]) == (-(-height // max(1, rows)), -(-width // max(1, columns)))
    )
    if not fits:
        raise CheckpointError(
            "the scales do not fit the weight",
            where=f"{checkpoint.where}: {scale}",
            got=f"{scales.dtype} {list(scales.shape)}",
            expected=f"one scale for {list(weight.shape)}, for each row, or for blocks of {block[0]} x {block[1]}",
        )
    return _Scaled(name, scale, max(1, rows), max(1, columns))


def _block(config: Any) -> tuple[int, int]:
    """The size of a block as the config says it."""
    if not isinstance(config, Mapping):
        return _BLOCK
    said: list[Any] = [config.get("weight_block_size")]
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            size = weights.get("group_size")
            said += [weights.get("block_structure"), [1, size] if isinstance(size, int) and size > 0 else None]
    for size in said:
        if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
            return size[0], size[1]
    return _BLOCK
