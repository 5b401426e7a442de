"""Memory and time of fusing more and more contributions: memory stays flat, time grows with their number.

    python benchmarks/fuse_memory.py [--models 2 8 32] [--base ADDRESS] [--threads N] [--repeats N]

Contributions are the base (MiniLM where it is installed, else random tensors of its shapes) plus small noise. Each fuse
runs in a process of its own, several times over; the quickest counts, because other work on the machine can only add.
Memory is what the process has of its own (RssAnon, sampled every 5 ms) over what it had before the fuse began. Files are in
the page cache, where they were just written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

import cofuse
from cofuse.checkpoint import Checkpoint, Memory, open_local

MINILM = "hf:sentence-transformers/all-MiniLM-L6-v2"


def anonymous() -> int:
    """Bytes of memory that belong to this process and to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon in /proc/self/status: this benchmark wants Linux")


class Peak:
    """The most anonymous memory while the block runs, over what there was before."""

    def __enter__(self) -> Peak:
        self.before = self.most = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.most = max(self.most, anonymous())

    @property
    def bytes(self) -> int:
        return self.most - self.before


def synthetic() -> Memory:
    """A model of MiniLM's size: 22.7 M parameters in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word": (30522, 384), "embeddings.position": (512, 384)}
    for i in range(6):
        for part in "qkvo":
            shapes |= {f"layer.{i}.{part}.weight": (384, 384), f"layer.{i}.{part}.bias": (384,)}
        shapes |= {f"layer.{i}.up.weight": (1536, 384), f"layer.{i}.down.weight": (384, 1536)}
    return Memory({name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()})


def contribution(base: Checkpoint, number: int) -> Memory:
    """The base with noise a hundredth of its weights' size."""
    generator = torch.Generator().manual_seed(number)
    tensors = {}
    for name in base.names():
        tensor = base.read(name)
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor = tensor + (0.01 * tensor.float().abs().mean() * noise).to(tensor.dtype)
        tensors[name] = tensor
    return Memory(tensors, files=base.files)


def fuse_once(folder: Path, count: int, threads: int | None) -> None:
    """One fuse in this process; prints seconds and bytes."""
    models = [open_local(folder / str(i)) for i in range(count)]
    torch.ones(8).add_(torch.ones(8), alpha=0.5)  # torch has set itself up before the clock starts
    with tempfile.TemporaryDirectory(dir=folder) as out, Peak() as peak:
        started = time.perf_counter()
        cofuse.fuse("linear", models).save(Path(out) / "fused", threads=threads)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "bytes": peak.bytes}))


def measured(folder: Path, count: int, threads: int | None) -> tuple[float, int]:
    command = [sys.executable, __file__, "--one", str(count), "--folder", str(folder)]
    command += ["--threads", str(threads)] if threads else []
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result["seconds"], result["bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--base", help="any address")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        fuse_once(asked.folder, asked.one, asked.threads)
        return
    if asked.base:
        base = cofuse.open(asked.base)
    else:
        try:
            base = cofuse.open(MINILM)
        except cofuse.CofuseError:
            base = synthetic()
    size = sum(base.spec(name).nbytes for name in base.names())
    print(f"{base.where}: {size / 1e6:.1f} MB a model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for i in range(max(asked.models)):
            contribution(base, i).save(folder / str(i))
        rows = []
        for count in asked.models:
            tries = [measured(folder, count, asked.threads) for _ in range(asked.repeats)]
            rows.append((count, min(s for s, _ in tries), max(b for _, b in tries)))
    print(
        f"{'models':>6} {'seconds':>8} {'MB/s read':>10} {'peak MB':>8} {'memory':>7} {'time':>6} {'time/models':>12}"
    )
    first, first_seconds, first_bytes = rows[0]
    for count, seconds, peak in rows:
        print(
            f"{count:6} {seconds:8.2f} {count * size / seconds / 1e6:10.0f} {peak / 1e6:8.1f} {peak / first_bytes:6.2f}x "
            f"{seconds / first_seconds:5.1f}x {seconds / first_seconds / (count / first):11.2f}x"
        )
    if len(rows) > 1:
        (slope, fixed), off = line([float(count) for count, _, _ in rows], [seconds for _, seconds, _ in rows])
        print(f"seconds = {fixed:.2f} + {slope:.4f} models, at most {off:.0%} off; the first is writing one model")


def line(x: list[float], y: list[float]) -> tuple[tuple[float, float], float]:
    """Slope and start of the straight line with the least relative error, and its largest relative error."""
    points = torch.tensor([[a / b, 1 / b] for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    found = torch.linalg.lstsq(points, torch.ones(len(y), 1, dtype=torch.float64)).solution[:, 0]
    off = float((points @ found - 1).abs().max())
    return (float(found[0]), float(found[1])), off


if __name__ == "__main__":
    main()
