"""More and more models: time grows with their number, memory does not where a method streams.

    python benchmarks/fuse_models.py [METHOD ...] [--models 2 8 32] [--repeats 3] [--threads N] [--work DIR]

Models are small Llamas of workload.py (one layer, 0.36 GB in bf16). Each fuse is a whole process, several times over; the
quickest counts, because other work on the machine can only add, and the largest memory. Memory is RssAnon over that of an
interpreter that does nothing. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from process import bare, cofuse, run, start_up
from workload import make, merge_of

STREAMING = ("linear", "task_arithmetic", "ema")


def line(x: list[int], y: list[float]) -> tuple[float, float, float]:
    """Slope and start of the straight line with the least relative error, and its largest relative error."""
    points = np.array([[a / b, 1 / b] for a, b in zip(x, y, strict=True)])
    found = np.linalg.lstsq(points, np.ones(len(y)), rcond=None)[0]
    return float(found[0]), float(found[1]), float(np.abs(points @ found - 1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help=f"by default those that stream: {', '.join(STREAMING)}")
    parser.add_argument("--models", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wl-small")
    asked = parser.parse_args()
    base, tuned = make(asked.work, models=max(asked.models), layers=1)
    out = asked.work / "out"
    before, started = bare().anonymous, start_up()
    size = (base / "model.safetensors").stat().st_size
    print(f"{size / 1e6:.0f} MB a model; an interpreter starts in {started:.3f} s and takes {before / 1e6:.1f} MB")
    for method in asked.methods or STREAMING:
        print(
            f"\n| {method}: models | seconds | MB/s read | peak MB | memory | seconds a model |\n|---|---|---|---|---|---|"
        )
        seconds: list[float] = []
        memory: list[int] = []
        for count in asked.models:
            recipe = merge_of(method).write(asked.work / f"{method}.yaml", method, base, tuned[:count])
            costs = []
            for _ in range(asked.repeats):
                shutil.rmtree(out, ignore_errors=True)
                flags = ["--threads", str(asked.threads)] if asked.threads else []
                costs.append(run(cofuse("fuse", str(recipe), str(out), *flags), watch=True))
            seconds.append(min(cost.seconds for cost in costs))
            memory.append(max(cost.anonymous for cost in costs) - before)
            print(
                f"| {count} | {seconds[-1]:.2f} | {count * size / seconds[-1] / 1e6:.0f} | {memory[-1] / 1e6:.0f} | "
                f"{memory[-1] / memory[0]:.2f}x | {seconds[-1] / count:.3f} |",
                flush=True,
            )
        if len(seconds) > 1:
            slope, fixed, off = line(asked.models, seconds)
            print(f"\nseconds = {fixed:.2f} + {slope:.4f} models, at most {off:.0%} off")
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
