"""Commit and checkout of 4 GB of bf16 weights beside `cp` and `b3sum` of the same bytes, and the peak memory.

    python benchmarks/store_throughput.py [--work DIR] [--models 4] [--times 2]

The folder that is committed holds the finetunes of workload.py (1.03 GB each) as the shards of one checkpoint; each time a
store of its own, and nothing to take a difference against. Whole processes; `cp` is followed by a sync of what it wrote,
as commit and checkout sync what they write. `b3sum` (Debian's package of that name) is left out where there is none.
Files are in the page cache. Memory is RssAnon, sampled every 2 ms, over that of an interpreter that does nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from process import Cost, bare, cofuse, run
from workload import make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wl")
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--times", type=int, default=2)
    asked = parser.parse_args()
    _, tuned = make(asked.work)
    place = asked.work / "throughput"
    shutil.rmtree(place, ignore_errors=True)
    model = place / "model"
    model.mkdir(parents=True)
    for number, folder in enumerate(tuned[: asked.models]):
        # Each file's tensors need names of their own in one checkpoint; as files of one folder they are kept apart.
        shard = model / f"part-{number}"
        shard.mkdir()
        os.link(folder / "model.safetensors", shard / "model.safetensors")
    size = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    own = bare().anonymous
    found: dict[str, list[Cost]] = {}
    os.chdir(place)
    for _ in range(asked.times):
        for folder in (".cofuse", "out", "copy"):
            shutil.rmtree(place / folder, ignore_errors=True)
        run(cofuse("init"))
        for what, command in {
            "cp -r, sync": ["sh", "-c", "cp -r model copy && sync copy/*/*"],
            "cofuse commit": cofuse("commit", "model", "-m", "all"),
            "cofuse checkout": cofuse("checkout", "main", "out"),
            "b3sum": ["sh", "-c", "b3sum model/*/*"] if shutil.which("b3sum") else [],
        }.items():
            os.sync()
            if command:
                found.setdefault(what, []).append(run(command, watch=what.startswith("cofuse")))
            if what.startswith("cp"):
                shutil.rmtree(place / "copy")
        kept = sum(path.stat().st_size for path in (place / ".cofuse").rglob("*") if path.is_file())
    run(["diff", "-r", "model", "out"])
    print(f"{size / 1e9:.2f} GB, kept as {kept / size:.1%} of it; best of {asked.times}\n")
    print("| what | s | GB/s | processor, s | memory, MB |\n|---|---|---|---|---|")
    for what, costs in found.items():
        cost = min(costs, key=lambda one: one.seconds)
        memory = f"{(max(one.anonymous for one in costs) - own) / 1e6:.0f}" if what.startswith("cofuse") else ""
        print(f"| {what} | {cost.seconds:.2f} | {size / cost.seconds / 1e9:.2f} | {cost.processor:.1f} | {memory} |")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
