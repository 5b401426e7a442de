"""Checkpoints on disk: a safetensors file, a folder of them (one, or shards with an index), a `.bin`.

`open_local` finds out which of these a path is.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import CheckpointError, HeaderError
from .checkpoint import Checkpoint, Files, TensorSpec
from .header import NAME, Header, read_header

SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
INDEX = tuple(f"{name}.index.json" for name in SINGLE)
PICKLED = ("pytorch_model.bin", "pytorch_model.pt", "model.pt")
PICKLE_ENDINGS = (".bin", ".pt", ".pth")
_PICKLED_SHARD = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin$")
MAX_SIDE_FILE = 64 * 1024 * 1024
# A tokenizer or a config travels with a checkpoint; a training script, an optimizer's state or a plot does not.
SIDE_ENDINGS = (".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", ".bpe", ".yaml")


class SafetensorsFile(Checkpoint):
    """One safetensors file, its header validated, its tensors read by `pread`."""

    def __init__(self, path: Path, *, files: Mapping[str, bytes] | None = None) -> None:
        self.path = path
        self._where = str(path)
        self._files = files or {}
        try:
            # Opening a pipe would wait for somebody to write into it, for ever.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise CheckpointError("cannot open the file", where=path, got=error.strerror) from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise CheckpointError("not a file", where=path)
            self.header: Header = read_header(self._fd, path)
        except BaseException:
            self.close()
            raise
        self._aliases = aliases_in(self.header)
        self._metadata = {k: v for k, v in self.header.metadata.items() if k not in self._aliases}

    def names(self) -> tuple[str, ...]:
        return tuple(self.header.entries)

    def spec(self, name: str) -> TensorSpec:
        entry = self.header.entries.get(self.resolve(name))
        if entry is None:
            raise self.missing(name)
        return TensorSpec(entry.dtype, entry.shape)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        start, stop = self.check_range(name, start, stop)
        entry = self.header.entries[self.resolve(name)]
        return read_range(self._fd, self.header.data_start + entry.start + start, stop - start, self.where, name)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        entry = self.header.entries.get(self.resolve(name))
        if entry is None or not 0 <= start <= start + len(out) <= entry.end - entry.start:
            self.check_range(name, start, start + len(out))  # says what is wrong
            return
        fill(self._fd, self.header.data_start + entry.start + start, out, self.where, name)

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        # Modules are emptied before the last objects go when the interpreter ends.
        if getattr(self, "_fd", -1) >= 0 and os is not None and os.close is not None:
            self.close()


class Shards(Checkpoint):
    """Several safetensors files whose tensors make one checkpoint."""

    def __init__(self, shards: Mapping[str, SafetensorsFile], where: Path, files: Mapping[str, bytes]) -> None:
        self.shards = dict(sorted(shards.items()))
        self._where = str(where)
        self._files = files
        self._home: dict[str, SafetensorsFile] = {}
        self._aliases: dict[str, str] = {}
        for shard_name, shard in self.shards.items():
            for name in shard.names():
                if name in self._home:
                    raise CheckpointError(
                        "tensor in two shards",
                        where=f"{where}: {name}",
                        got=f"{self._home[name].path.name} and {shard_name}",
                    )
                self._home[name] = shard
        for shard in self.shards.values():
            # What one shard calls a tied name may be a tensor of its own in another.
            self._aliases.update({k: v for k, v in shard.aliases.items() if k not in self._home})

    def names(self) -> tuple[str, ...]:
        return tuple(self._home)

    def spec(self, name: str) -> TensorSpec:
        return self._shard(name).spec(name)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        return self._shard(name).read_bytes(name, start, stop)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        self._shard(name).read_into(name, start, out)

    def _shard(self, name: str) -> SafetensorsFile:
        shard = self._home.get(self.resolve(name))
        if shard is None:
            raise self.missing(name)
        return shard

    @property
    def metadata(self) -> Mapping[str, str]:
        merged: dict[str, str] = {}
        for shard in self.shards.values():
            merged.update(shard.metadata)
        return merged


def read_range(fd: int, offset: int, length: int, where: str, name: str) -> bytearray:
    """Read exactly `length` bytes into fresh memory."""
    data = bytearray(length)
    fill(fd, offset, memoryview(data), where, name)
    return data


def fill(fd: int, offset: int, out: memoryview, where: str, name: str) -> None:
    """Read exactly as many bytes as `out` has room for."""
    done = 0
    while done < len(out):
        try:
            got = os.preadv(fd, [out[done:]], offset + done)
        except OSError as error:
            raise CheckpointError("cannot read", where=f"{where}: {name}", got=error.strerror) from None
        if got == 0:
            raise CheckpointError(
                "file ends inside a tensor",
                where=f"{where}: {name}",
                got=f"{done} bytes",
                expected=f"{len(out)}",
                hint="the file shrank while it was open: get it again",
            )
        done += got


def open_local(path: str | Path) -> Checkpoint:
    """Open a checkpoint on disk, whatever its layout.

    Args:
        path: a `.safetensors` file, a `.bin`/`.pt`/`.pth` file, or a folder holding one, or shards and an index.

    Raises:
        CheckpointError: nothing there, nothing that is a checkpoint, or a damaged one.
        AdapterError: an adapter; it needs a base (`adapter.Adapter`).
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError("no such file or folder", where=path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path, files=side_files(path.parent))
    if path.suffix in PICKLE_ENDINGS:
        from .pickled import open_pickled

        return open_pickled([path], files=side_files(path.parent))
    raise CheckpointError(
        "not a checkpoint", where=path, got=path.suffix or "no ending", expected=".safetensors, .bin, .pt or a folder"
    )


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than a whole model."""
    return (path / "adapter_config.json").is_file() and not any((path / n).exists() for n in (*SINGLE, *INDEX))


def is_weights(path: Path) -> bool:
    """Whether a file's name is that of weights."""
    return path.suffix == ".safetensors" or path.name in PICKLED or bool(_PICKLED_SHARD.match(path.name))


def side_files(folder: Path) -> Files:
    """Config, tokenizer and other small files of a model's folder."""
    files = (p for p in folder.iterdir() if p.is_file())
    return Files({p.name: p for p in files if is_side_file(p.name, p.stat().st_size)})


def is_side_file(name: str, size: int) -> bool:
    """Whether a file of a model's folder travels with its weights: by its name, and its size in bytes.

    >>> is_side_file("config.json", 600), is_side_file("trainer_state.json", 600)
    (True, False)
    """
    return (
        Path(name).suffix in SIDE_ENDINGS
        and not name.endswith(".index.json")
        and not name.startswith((".", "trainer_state"))
        and size <= MAX_SIDE_FILE
    )


def _open_folder(folder: Path) -> Checkpoint:
    files = side_files(folder)
    # One whole file goes before an index, as in transformers: the index may be left over from an earlier save.
    for name in SINGLE:
        if (folder / name).is_file():
            return SafetensorsFile(folder / name, files=files)
    for name in INDEX:
        if (folder / name).is_file():
            return _open_indexed(folder, folder / name, files)
    if is_adapter(folder):
        from ..errors import AdapterError

        raise AdapterError("an adapter needs its base", where=folder, hint="open it together with its base")
    others = sorted(folder.glob("*.safetensors"))
    check_all_there(others, folder)
    if len(others) == 1:
        return SafetensorsFile(others[0], files=files)
    if others:
        return Shards({p.name: SafetensorsFile(p) for p in others}, folder, files)
    for name in PICKLED:
        if (folder / name).is_file():
            from .pickled import open_pickled

            return open_pickled([folder / name], files=files)
    pickled_index = folder / "pytorch_model.bin.index.json"
    if pickled_index.is_file():
        from .pickled import open_pickled

        return open_pickled([folder / n for n in sorted(set(_weight_map(pickled_index).values()))], files=files)
    raise CheckpointError(
        "no weights in the folder",
        where=folder,
        expected="model.safetensors, shards with an index, or pytorch_model.bin",
    )


def check_all_there(shards: Sequence[Path], folder: Path) -> None:
    """Shards without an index still say how many they are."""
    for path in shards:
        numbered = re.search(r"-\d{5}-of-(\d{5})\.safetensors$", path.name)
        if numbered and int(numbered.group(1)) != len(shards):
            raise CheckpointError(
                "a shard is missing",
                where=folder,
                got=f"{len(shards)} files",
                expected=f"{int(numbered.group(1))}, as {path.name} says",
                hint="get the shards again",
            )


def _open_indexed(folder: Path, index: Path, files: Mapping[str, bytes]) -> Shards:
    weight_map = _weight_map(index)
    shards: dict[str, SafetensorsFile] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise CheckpointError(
                "a shard is missing", where=folder, got=f"no {file[:80]!a}", hint="get the shard again"
            )
        shards[file] = SafetensorsFile(folder / file)
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise CheckpointError("the index names a tensor that its shard lacks", where=index, got=f"{name} in {file}")
    return Shards(shards, folder, files)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > MAX_SIDE_FILE:
            raise HeaderError("the index is too large", where=index, expected=f"at most {MAX_SIDE_FILE} bytes")
        weight_map = json.loads(index.read_bytes())["weight_map"]
        pairs = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            "not an index of shards",
            where=index,
            got=f"{type(error).__name__}: {error}",
            expected='{"weight_map": ...}',
        ) from None
    for file in pairs.values():
        if not file or Path(file).name != file or file.startswith("."):
            raise CheckpointError("the index names a file outside its folder", where=index, got=ascii(file[:80]))
    return pairs


def aliases_in(header: Header) -> dict[str, str]:
    """Tied names as `safetensors.torch.save_model` records them: metadata of removed name to kept name."""
    entries = header.entries
    return {
        k: v
        for k, v in header.metadata.items()
        if v in entries and k not in entries and k != "format" and NAME.fullmatch(k) and ".." not in k
    }
