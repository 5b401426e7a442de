"""Folders of checkpoints of every kind that the store must give back byte for byte."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from cofuse.checkpoint import TensorSpec, build_header, plan_layout
from cofuse.store import Store

ODD = {
    "bf16": TensorSpec("BF16", (5, 7)),
    "f16": TensorSpec("F16", (3,)),
    "f32": TensorSpec("F32", (40, 33)),
    "f64": TensorSpec("F64", (9,)),
    "f8": TensorSpec("F8_E4M3", (300,)),
    "f8.other": TensorSpec("F8_E5M2", (31,)),
    "f4": TensorSpec("F4", (6,)),
    "i8": TensorSpec("I8", (129,)),
    "i64": TensorSpec("I64", (20,)),
    "bool": TensorSpec("BOOL", (77,)),
    "complex": TensorSpec("C64", (12,)),
    "empty": TensorSpec("F32", (0, 4)),
    "empty.too": TensorSpec("BF16", (3, 0)),
    "scalar": TensorSpec("F32", ()),
    "large": TensorSpec("F32", (1100, 1000)),  # two chunks: 4.4 MB
}


def noise(size: int, seed: object) -> bytes:
    """Half of it compressible."""
    source = random.Random(str(seed))
    return source.randbytes(size // 2) + bytes(size - size // 2)


def write_weights(path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], seed: object = 0) -> None:
    header = build_header(specs, metadata)
    data = b"".join(noise(e.end - e.start, (seed, name)) for name, e in header.entries.items())
    path.write_bytes(header.raw + data)


def single(folder: Path) -> None:
    write_weights(folder / "model.safetensors", ODD, {"format": "pt", "tied.head": "f32"})
    (folder / "config.json").write_text('{"model_type": "odd"}')
    (folder / "tokenizer.json").write_text("{}")


def sharded(folder: Path) -> None:
    layout = plan_layout(ODD, {"format": "pt"}, 3000)
    assert layout.index is not None
    for file, header in layout.headers.items():
        write_weights(folder / file, {n: ODD[n] for n in header.entries}, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_bytes(layout.index)


def handwritten(folder: Path) -> None:
    """A header that no writer of ours would give: other order, spaces, tensors of no bytes between others."""
    entries = {
        "z": {"shape": [2], "data_offsets": [8, 16], "dtype": "F32"},
        "nothing": {"data_offsets": [8, 8], "dtype": "F32", "shape": [0]},
        "a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
    }
    text = (json.dumps({"__metadata__": {"é": "ü"}, **entries}, indent=1) + " \n\t ").encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(16)))


def cluttered(folder: Path) -> None:
    single(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "deep" / "er" / "still").mkdir(parents=True)
    write_weights(folder / "deep" / "er" / "still" / "extra.safetensors", {"x": TensorSpec("F32", (4,))}, {})
    (folder / "empty").write_bytes(b"")
    (folder / ".gitattributes").write_text("*.bin lfs")
    (folder / "pytorch_model.bin").write_bytes(noise(5_000_000, "bin"))
    (folder / "naïve 模型.txt").write_text("ü")
    (folder / "trainer_state.json").write_text("{}")


def pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(noise(10_000, "pickle"))
    (folder / "config.json").write_text("{}")


KINDS: dict[str, Callable[[Path], None]] = {
    "single": single,
    "sharded": sharded,
    "handwritten": handwritten,
    "cluttered": cluttered,
    "pickled": pickled,
}


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def count_objects(store: Store) -> int:
    return sum(1 for _ in store.objects)
