"""Memory of fusing: what a whole `cofuse fuse` takes for itself, over what an interpreter that does nothing takes.

    python benchmarks/fuse_memory.py [METHOD ...] [--work DIR] [--layers 8 39 163] [--threads N] [--out FILE.json]

Models are Llamas of that many layers in bf16, a base and four finetunes: 8 layers are the workload of workload.py (1.03 GB
a model), 39 make 4 GB, 163 make 16 GB. What is larger than the workload is made of holes in files and takes no room on disk,
but the result does. Memory is RssAnon, sampled every 2 ms from outside: what belongs to the process and to no file.

Limits: 600 MB for methods on blocks and rows, whatever the model's size; six times the largest tensor in float32 for
methods on whole tensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from process import bare, cofuse, run
from workload import make, merge_of, shapes

from cofuse.fuse import METHODS

LIMIT = 600e6
TENSORS = 6
WORKLOAD = 8  # layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="all by default")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wl")
    parser.add_argument("--layers", type=int, nargs="+", default=[WORKLOAD])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    methods = asked.methods or list(METHODS)
    before = bare().anonymous
    largest = max(rows * columns for rows, columns in (s for s in shapes(1).values() if len(s) == 2)) * 4
    print(f"an interpreter takes {before / 1e6:.1f} MB; the largest tensor is {largest / 1e6:.0f} MB in float32\n")
    print(
        "| method | unit | " + " | ".join(f"{layers} layers, MB" for layers in asked.layers) + " | limit, MB | kept |"
    )
    print("|---|---|" + "---|" * (len(asked.layers) + 2))
    figures: dict[str, dict[int, int]] = {}
    for method in methods:
        unit = METHODS[method].unit
        limit = TENSORS * largest if unit == "tensor" else LIMIT
        figures[method] = {
            layers: measured(method, layers, asked.work, asked.threads) - before for layers in asked.layers
        }
        kept = "yes" if max(figures[method].values()) <= limit else "NO"
        cells = " | ".join(f"{value / 1e6:.0f}" for value in figures[method].values())
        print(f"| {method} | {unit} | {cells} | {limit / 1e6:.0f} | {kept} |", flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1))


def measured(method: str, layers: int, work: Path, threads: int | None) -> int:
    """The most anonymous memory of one fuse."""
    folder = work if layers == WORKLOAD else work / f"{layers}-layers"
    base, tuned = make(folder, layers=layers, zeros=layers != WORKLOAD)
    recipe = merge_of(method).write(folder / f"{method}.yaml", method, base, tuned)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--threads", str(threads)] if threads else []
    cost = run(cofuse("fuse", str(recipe), str(out), *flags), watch=True)
    shutil.rmtree(out)
    return cost.anonymous


if __name__ == "__main__":
    main()
