"""What turning a branch round costs and gains: bytes, and the time of checkouts, as committed and after `gc`.

    python benchmarks/store_packing.py [--versions 16] [--tensors 8]

Each version changes what the one before it has: every weight by noise a thousandth of the weights' deviation, or one in
two hundred by a hundredth. Tensors are of 1024 x 2048 elements. Checkouts: the best of three.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from cofuse.checkpoint import build_header
from cofuse.store import Store

SHAPE = (1024, 2048)
CHANGES = {"dense, 1e-3": (1.0, 1e-3), "0.5 %": (0.005, 1e-2)}


def write_model(folder: Path, dtype: str, values: dict[str, np.ndarray]) -> None:
    header = build_header(dict.fromkeys(values, (dtype, SHAPE)), {"format": "pt"})
    folder.mkdir(exist_ok=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header.raw)
        for name in header.entries:
            bits = values[name].view(np.uint32)
            file.write((bits >> 16).astype(np.uint16).tobytes() if dtype == "BF16" else bits.tobytes())


def kept(store: Store) -> float:
    return sum(store.objects.stored_bytes(i) for i in store.objects) / 1e6


def checkout_seconds(store: Store, rev: str, folder: Path) -> float:
    took = []
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        began = time.perf_counter()
        store.checkout(rev, folder)
        took.append(time.perf_counter() - began)
    return min(took)


def measure(dtype: str, change: str, versions: int, tensors: int) -> None:
    share, size = CHANGES[change]
    source = np.random.default_rng(0)
    values = {f"w{n}": source.standard_normal(size=SHAPE, dtype=np.float32) for n in range(tensors)}
    with tempfile.TemporaryDirectory() as home:
        store = Store.init(home)
        for n in range(versions):
            for name, w in values.items():
                noise = np.float32(size) * source.standard_normal(size=SHAPE, dtype=np.float32)
                values[name] = w + noise * (source.random(SHAPE) < share) if n else w
            write_model(Path(home) / "model", dtype, values)
            store.commit(Path(home) / "model", message=str(n))
        row = [dtype, change]
        for again in (False, True):
            if again:
                began = time.perf_counter()
                store.gc()
                row.append(f"{time.perf_counter() - began:.1f}")
            out = Path(home) / "out"
            newest, oldest = (checkout_seconds(store, rev, out) for rev in ("main", f"main~{versions - 1}"))
            row += [f"{kept(store):.1f}", f"{newest:.3f}", f"{oldest:.3f}"]
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, default=16)
    parser.add_argument("--tensors", type=int, default=8)
    wanted = parser.parse_args()
    print("| dtype | change | committed, MB | newest, s | oldest, s | gc, s | packed, MB | newest, s | oldest, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype in ("F32", "BF16"):
        for change in CHANGES:
            measure(dtype, change, wanted.versions, wanted.tensors)


if __name__ == "__main__":
    main()
