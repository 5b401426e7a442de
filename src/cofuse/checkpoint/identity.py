r"""What a tensor and a checkpoint *are*: ids that do not depend on how they are kept.

    tensor id   BLAKE3("cofuse tensor 1\n" dtype "\n" shape "\n" digests), digests = the BLAKE3 of each 4 MiB chunk
    content id  BLAKE3("cofuse content 1\n" then name "\n" tensor-id "\n" for each name in byte order)
    file id     BLAKE3("cofuse file 1\n" size "\n" digests)

Written down in docs/formats/store.md. Chunk digests make a slice verifiable, and let chunks be hashed apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from ..errors import CheckpointError
from .checkpoint import Checkpoint, TensorSpec

CHUNK = 4 * 1024 * 1024


def chunks(size: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of the 4 MiB chunks of `size` bytes; none for no bytes.

    >>> list(chunks(5 * 1024 * 1024))
    [(0, 4194304), (4194304, 5242880)]
    """
    for start in range(0, size, CHUNK):
        yield start, min(start + CHUNK, size)


def tensor_id_of(spec: TensorSpec, digests: Iterable[bytes]) -> str:
    """The id of a tensor from its chunks' digests."""
    shape = json.dumps(list(spec.shape), separators=(",", ":"))
    h = blake3(f"cofuse tensor 1\n{spec.dtype}\n{shape}\n".encode())
    for digest in digests:
        h.update(digest)
    return h.hexdigest()


def file_id(data: bytes) -> str:
    """The id of a small file."""
    h = blake3(f"cofuse file 1\n{len(data)}\n".encode())
    for start, stop in chunks(len(data)):
        h.update(blake3(data[start:stop]).digest())
    return h.hexdigest()


def file_id_at(path: Path) -> str:
    """The id of a file of any size, read chunk by chunk.

    Raises:
        CheckpointError: it cannot be read, or changes while it is.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            h = blake3(f"cofuse file 1\n{size}\n".encode())
            data = memoryview(bytearray(min(CHUNK, size)))
            for start, stop in chunks(size):
                if file.readinto(data[: stop - start]) != stop - start:
                    raise CheckpointError("the file shrank while it was read", where=path)
                h.update(blake3(data[: stop - start]).digest())
            return h.hexdigest()
    except OSError as error:
        raise CheckpointError("cannot read the file", where=path, got=error.strerror) from None


def tensor_id(checkpoint: Checkpoint, name: str) -> str:
    """The id of one tensor of a checkpoint, read chunk by chunk."""
    spec = checkpoint.spec(name)
    return tensor_id_of(spec, (blake3(checkpoint.read_bytes(name, a, b)).digest() for a, b in chunks(spec.nbytes)))


def content_id_of(ids: Mapping[str, str]) -> str:
    """The id of a mapping from names to tensor ids."""
    h = blake3(b"cofuse content 1\n")
    for name in sorted(ids, key=str.encode):
        h.update(f"{name}\n{ids[name]}\n".encode())
    return h.hexdigest()


def content_id(checkpoint: Checkpoint, threads: int = 4) -> str:
    """The content id of a checkpoint: what patches, statistics and replays refer to.

    Checkpoints that already know their tensors' ids (those in a store) answer without reading.
    """
    known = getattr(checkpoint, "tensor_ids", None)
    if known is not None:
        return content_id_of(known())
    names = checkpoint.names()
    with ThreadPoolExecutor(threads) as pool:
        ids = pool.map(lambda name: tensor_id(checkpoint, name), names)
        return content_id_of(dict(zip(names, ids, strict=True)))
