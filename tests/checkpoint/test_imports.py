"""Reading bytes, hashing and saving never import torch: it costs a second and 200 MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from cofuse.checkpoint import Memory, content_id, save

CODE = """
import sys
from pathlib import Path
from cofuse.checkpoint import Slice, body, content_id, open_local, overlaid, renamed, replace_file, restacked, tensor_id
from cofuse.errors import CheckpointError

folder = Path(sys.argv[1])
cp = open_local(folder / "m")
data = b"".join(bytes(cp.read_bytes(n, a, b)) for n in cp.names() for a, b in cp.blocks(n, 64))
assert len(data) == sum(cp.spec(n).nbytes for n in cp.names())
tensor_id(cp, cp.names()[0])
mine = body(renamed(cp, "bert.".__add__), like=overlaid(cp, cp))
restacked([Slice(cp, 0, 2), Slice(cp, 0, 1)]).save(folder / "stacked")
mine.save(folder / "out", max_shard_bytes=64, threads=2)
replace_file(folder / "id", content_id(open_local(folder / "out")).encode())
try:
    cp.read_bytes("layers.0.q")
except CheckpointError:
    pass
heavy = sorted(m for m in ("torch", "transformers", "safetensors", "peft", "numpy") if m in sys.modules)
assert not heavy, heavy
"""


def test_bytes_ids_and_saves_do_without_torch(tmp_path: Path) -> None:
    held = {f"layers.{i}.w": torch.full((3, 4), float(i)) for i in range(3)} | {"norm.w": torch.ones(2)}
    save(Memory(held, files={"config.json": b'{"num_hidden_layers": 3}'}), tmp_path / "m", max_shard_bytes=64)
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "id").read_text() == content_id(Memory(held))
