"""The one idea: a checkpoint is a lazy mapping from names to tensors, plus a few small files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CheckpointError
from ..progress import SILENT, Progress
from .dtypes import bits, torch_dtype
from .header import nbytes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .writer import Written

BLOCK_BYTES = 8 * 1024 * 1024


class TensorSpec(NamedTuple):
    """What is known of a tensor without reading it: dtype code and shape.

    >>> TensorSpec("BF16", (2, 3)).nbytes
    12
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return nbytes(self.dtype, self.shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count


class Files(Mapping[str, bytes]):
    """Small files beside the tensors (config, tokenizer), read when asked for."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(sorted(paths.items()))

    def __getitem__(self, name: str) -> bytes:
        path = self._paths[name]
        try:
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError("cannot read the file", where=path, got=error.strerror) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class Checkpoint(ABC):
    """A lazy mapping from tensor names to tensors.

    A subclass gives `names`, `spec` and `read_bytes`; all else follows. Reading bytes never imports torch.
    """

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that are really there, in the order they are best read in."""

    @abstractmethod
    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """

    @abstractmethod
    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        """Bytes `start` to `stop` of a tensor's row-major little-endian data: the primitive.

        Raises:
            CheckpointError: there is no such tensor, the range lies outside it, or its bytes cannot be had.
        """

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Bytes `start` and on of a tensor, as many as `out` has room for, into memory that is there already.

        Raises:
            CheckpointError: see `read_bytes`.
        """
        out[:] = self.read_bytes(name, start, start + len(out))

    # What most checkpoints know when they are made; one that computes these overrides the properties instead.
    _files: Mapping[str, bytes] = MappingProxyType({})
    _metadata: Mapping[str, str] = MappingProxyType({})
    _aliases: Mapping[str, str] = MappingProxyType({})
    _where: str = ""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Small files by name: config, tokenizer."""
        return self._files

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings of the safetensors header, `{}` where there are none."""
        return self._metadata

    @property
    def aliases(self) -> Mapping[str, str]:
        """Tied names: each alias with the name under which its tensor is kept."""
        return self._aliases

    @property
    def where(self) -> str:
        """What errors call this checkpoint."""
        return self._where or type(self).__name__

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed config.json, `{}` where there is none."""
        raw = self.files.get("config.json")
        if raw is None:
            return {}
        try:
            parsed = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise CheckpointError("config.json is not JSON", where=self.where, got=error) from None
        if not isinstance(parsed, dict):
            raise CheckpointError("config.json is not an object", where=self.where, got=type(parsed).__name__)
        return parsed

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self.aliases

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names())

    def resolve(self, name: str) -> str:
        """The name under which a tensor is kept: itself, or what it is tied to."""
        return self.aliases.get(name, name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or some of its rows, in memory of its own.

        Args:
            name: a name or an alias.
            rows: a slice of step 1 over the first dimension.

        Raises:
            CheckpointError: see `read_bytes`; also a dtype that torch lacks.
        """
        spec = self.spec(name)
        if rows is None:
            return _tensor(self.read_bytes(name), spec.dtype, spec.shape, f"{self.where}: {name}")
        if not spec.shape or rows.step not in (None, 1):
            raise CheckpointError("rows are a slice of step 1", where=f"{self.where}: {name}", got=rows)
        start, stop, _ = rows.indices(spec.shape[0])
        shape = (max(0, stop - start), *spec.shape[1:])
        row = TensorSpec(spec.dtype, spec.shape[1:]).nbytes
        if row < 0:
            raise CheckpointError("rows are no whole bytes", where=f"{self.where}: {name}", got=spec.dtype)
        data = self.read_bytes(name, start * row, start * row + shape[0] * row)
        return _tensor(data, spec.dtype, shape, f"{self.where}: {name}")

    def read_flat(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor seen as one row: what block-wise work reads."""
        dtype = self.spec(name).dtype
        size = bits(dtype) // 8
        data = self.read_bytes(name, start * size, stop * size)
        return _tensor(data, dtype, (stop - start,), f"{self.where}: {name}")

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        """Byte ranges of whole elements, each at most about `size`, in which a tensor is best read."""
        dtype, total = self.spec(name).dtype, self.spec(name).nbytes
        # No dtype has an element of more than eight bytes; four elements of six bits make three.
        unit = 24 if bits(dtype) == 6 else 8
        step = max(unit, size - size % unit)
        for start in range(0, total, step):
            yield start, min(start + step, total)

    def save(
        self,
        folder: str | Path,
        *,
        max_shard_bytes: int | None = None,
        threads: int | None = None,
        progress: Progress = SILENT,
        last: Callable[[], Mapping[str, bytes]] | None = None,
    ) -> Written:
        """Write tensors and files into a folder; see `writer.save`."""
        from .writer import save

        return save(self, folder, max_shard_bytes=max_shard_bytes, threads=threads, progress=progress, last=last)

    def missing(self, name: str) -> CheckpointError:
        """The error for a tensor that is not there."""
        from ..document import nearest

        known = self.names()
        return CheckpointError(
            "no such tensor",
            where=self.where,
            got=name,
            hint=nearest(name, known[:5000]) if len(known) > 0 else "the checkpoint is empty",
        )

    def check_range(self, name: str, start: int, stop: int | None) -> tuple[int, int]:
        """A byte range with its end filled in, refused when it lies outside the tensor."""
        size = self.spec(name).nbytes
        end = size if stop is None else stop
        if not 0 <= start <= end <= size:
            raise CheckpointError(
                "range outside the tensor",
                where=f"{self.where}: {name}",
                got=f"bytes {start} to {end}",
                expected=f"0 to {size}",
            )
        return start, end


def _tensor(data: bytes | bytearray | memoryview, dtype: str, shape: tuple[int, ...], where: str) -> torch.Tensor:
    import torch

    try:
        kind = torch_dtype(dtype)
    except KeyError:
        raise CheckpointError("torch has no such dtype", where=where, got=dtype) from None
    if not len(data):
        return torch.empty(shape, dtype=kind)
    if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
        data = bytearray(data)  # torch wants memory that may be written
    return torch.frombuffer(data, dtype=kind).reshape(shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The row-major bytes of a CPU tensor, without a copy where it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class Memory(Checkpoint):
    """Tensors already in memory, such as a model's state dict.

    Names that share one storage, shape and stride are tied: the first is kept, the others become aliases.

    >>> import torch
    >>> w = torch.ones(2, 3)
    >>> cp = Memory({"emb": w, "head": w})
    >>> cp.names(), dict(cp.aliases), cp.spec("head").shape
    (('emb',), {'head': 'emb'}, (2, 3))
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        files: Mapping[str, bytes] | None = None,
        metadata: Mapping[str, str] | None = None,
        where: str = "memory",
    ) -> None:
        import torch

        from .dtypes import code_of
        from .header import check_name

        self._tensors: dict[str, torch.Tensor] = {}
        self._aliases: dict[str, str] = {}
        self._files = dict(files or {})
        self._metadata = dict(metadata or {})
        self._where = where
        kept: dict[tuple[object, ...], str] = {}
        self._specs: dict[str, TensorSpec] = {}
        for name, tensor in tensors.items():
            check_name(name, where)
            try:
                spec = TensorSpec(code_of(tensor.dtype), tuple(tensor.shape))
            except KeyError:
                raise CheckpointError(
                    "safetensors has no such dtype", where=f"{where}: {name}", got=tensor.dtype
                ) from None
            if tensor.layout != torch.strided or tensor.is_meta:
                got = "no data (meta)" if tensor.is_meta else tensor.layout
                raise CheckpointError("not a dense tensor", where=f"{where}: {name}", got=got)
            # A conjugate or negative that torch has put off shares its storage with other values.
            held = tensor.detach().resolve_conj().resolve_neg()
            key = (held.device, held.untyped_storage().data_ptr(), held.storage_offset(), spec, held.stride())
            if tensor.numel() and key in kept:
                self._aliases[name] = kept[key]
                continue
            kept[key] = name
            self._tensors[name] = held
            self._specs[name] = spec

    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def spec(self, name: str) -> TensorSpec:
        spec = self._specs.get(self.resolve(name))
        if spec is None:
            raise self.missing(name)
        return spec

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        start, stop = self.check_range(name, start, stop)
        return bytearray(tensor_bytes(self._tensors[self.resolve(name)].cpu())[start:stop])
