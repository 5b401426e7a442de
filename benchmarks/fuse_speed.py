"""Speed of fusing beside mergekit and beside the floor: whole processes, both sides in one go.

    python benchmarks/fuse_speed.py [METHOD ...] [--peer PYTHON] [--work DIR] [--times 3] [--peer-times N] [--out FILE.json]

On the workload of workload.py (five bf16 checkpoints of 1.03 GB, made if missing), for each method `cofuse fuse` and
`mergekit-yaml` take turns with the floor: `cat` of all inputs, base included, `cp` of one output and a sync of it. Files
are in the page cache. The best of several counts, because other work on the machine can only add. PYTHON, an interpreter
that has mergekit 0.1.5, comes from COFUSE_MERGEKIT when it is not named; without, our side and the floor are measured alone.

Compiled methods keep what was compiled on disk; what the first run of all costs is measured apart, with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

from process import Cost, cofuse, run, start_up
from workload import MERGES, make, merge_of

# Like-for-like work: neither side copies a tokenizer (there is none; mergekit would try to build one).
PEER_FLAGS = ("--lazy-unpickle", "--no-copy-tokenizer", "--quiet")


def floor(base: Path, tuned: list[Path], out: Path) -> Cost:
    """Reading all inputs, copying one output, syncing it."""
    files = [str(path / "model.safetensors") for path in (base, *tuned)]
    copied = str(out / "model.safetensors")
    out.mkdir(parents=True)
    return run(["sh", "-c", 'cat "$@" > /dev/null && cp "$1" "$0" && sync "$0"', copied, *files])


def best(costs: list[Cost]) -> Cost | None:
    return min(costs, key=lambda cost: cost.seconds) if costs else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="all that mergekit has by default")
    parser.add_argument("--peer", default=os.environ.get("COFUSE_MERGEKIT"), help="a Python that has mergekit 0.1.5")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wl")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--peer-times", type=int, help="turns of mergekit, which takes minutes; as --times by default")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    methods = asked.methods or list(MERGES)
    peer_times = asked.times if asked.peer_times is None else asked.peer_times
    base, tuned = make(asked.work)
    out = asked.work / "out"
    ours: dict[str, list[Cost]] = {method: [] for method in methods}
    theirs: dict[str, list[Cost]] = {method: [] for method in methods}
    first: dict[str, Cost] = {}
    floors: list[Cost] = []

    def timed(command: list[str], **environment: str) -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()  # nobody pays for what was written before
        return run(command, environment=environment)

    for turn in range(max(asked.times, peer_times)):
        for method in methods:
            merge = merge_of(method)
            recipe = merge.write(asked.work / f"{method}.yaml", method, base, tuned)
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            floors.append(floor(base, tuned, out))
            if turn == 0:
                with tempfile.TemporaryDirectory() as empty:
                    first[method] = timed(cofuse("fuse", str(recipe), str(out)), NUMBA_CACHE_DIR=empty)
            if turn < asked.times:
                ours[method].append(timed(cofuse("fuse", str(recipe), str(out))))
            if turn < peer_times and merge.peer and asked.peer:
                command = str(Path(asked.peer).parent / "mergekit-yaml")
                theirs[method].append(timed([command, str(recipe), str(out), *PEER_FLAGS]))
            said = [f"{costs[-1].seconds:.2f} s" for costs in (ours[method], theirs[method], floors) if costs]
            print(f"turn {turn + 1}, {method}: {', '.join(said)} (ours, mergekit, floor)", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    table(methods, ours, theirs, first, floors)
    if asked.out:
        kept = {"ours": ours, "mergekit": theirs, "first": {m: [c] for m, c in first.items()}, "floor": {"": floors}}
        figures = {side: {m: [asdict(c) for c in costs] for m, costs in rows.items()} for side, rows in kept.items()}
        asked.out.write_text(json.dumps(figures, indent=1))


def table(
    methods: list[str],
    ours: dict[str, list[Cost]],
    theirs: dict[str, list[Cost]],
    first: dict[str, Cost],
    floors: list[Cost],
) -> None:
    """Markdown."""
    started, least = start_up(), min(cost.seconds for cost in floors)
    ratios: dict[str, float] = {}
    print("\n| method | cofuse, s | processor, s | mergekit, s | processor, s | times faster | first run adds, s |")
    print("|---|---|---|---|---|---|---|")
    for method in methods:
        mine, peer = best(ours[method]), best(theirs[method])
        assert mine is not None
        figures = ["", "", ""]
        if peer is not None:
            ratios[method] = peer.seconds / mine.seconds
            figures = [f"{peer.seconds:.2f}", f"{peer.processor:.1f}", f"{ratios[method]:.1f}"]
        adds = max(0.0, first[method].seconds - mine.seconds)
        print(
            f"| {method} | {mine.seconds:.2f} | {mine.processor:.1f} | {figures[0]} | {figures[1]} | {figures[2]} | {adds:.1f} |"
        )
    print(f"\nfloor {least:.2f} s (best of {len(floors)}); an interpreter starts in {started:.3f} s")
    for method in ("linear", "task_arithmetic"):
        mine = best(ours.get(method, []))
        if mine is not None:
            print(f"{method}: {(mine.seconds - started) / least:.2f} times the floor, start-up subtracted (wanted: 2)")
    if ratios:
        worst = min(ratios, key=lambda method: ratios[method])
        print(
            f"{len(ratios)} methods: median {statistics.median(ratios.values()):.1f} times faster (wanted: 10), "
            f"worst {ratios[worst]:.1f} ({worst}; wanted: 3)"
        )


if __name__ == "__main__":
    main()
