"""The memory of a round's fuse, by how many contributions there are: the peak of a process of its own for each.

    python benchmarks/hub_fuse_memory.py [--contributions 2 8 40] [--methods linear norm_clip median] [--mib 87]

The model is random float32 in tensors of 1.5 MiB and one of a quarter of it all, as in MiniLM; a contribution is that and noise of a
thousandth. Prints MiB that belong to the process alone, over what an interpreter takes, and MiB for each further contribution.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from process import bare, run

from cofuse.checkpoint import Memory
from cofuse.hub.policy import How
from cofuse.hub.rounds.inputs import Input, recipe_of, step
from cofuse.hub.rounds.making import Recorded, make
from cofuse.store import Store

THREADS = 2
_TENSOR = 384 * 1024  # elements


def filled(folder: Path, count: int, mib: int) -> Store:
    """A store with a base (main) and contributions (c0, c1, ...)."""
    store, random = Store.init(folder), torch.Generator().manual_seed(0)
    elements = mib * 2**18
    shapes = {"large": (elements // 4,)} | {f"w{i}": (_TENSOR,) for i in range(elements * 3 // 4 // _TENSOR)}
    base = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    files = {"config.json": b"{}"}
    first = store.commit(Memory(base, files=files), message="base", branch="main").id
    for i in range(count):
        own = {name: one + 1e-3 * torch.randn(one.shape, generator=random) for name, one in base.items()}
        store.commit(Memory(own, files=files), message=str(i), branch=f"c{i}", parents=[first])
    return store


def fuse(folder: Path, method: str, count: int) -> None:
    """One fuse, in this process."""
    store = Store.open(folder)
    branches = store.branches()
    inputs = [Input(i, "ann", branches[f"c{i}"], branches["main"], "", 1.0) for i in range(count)]
    recipe = recipe_of(How(method=method), inputs, branches["main"])
    record = {"kind": "round", "steps": [step(recipe, branches["main"])], "result": "step 1"}
    make(store, Recorded(branches["main"], "m", record), threads=THREADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contributions", type=int, nargs="+", default=[2, 8, 40])
    parser.add_argument("--methods", nargs="+", default=["linear", "norm_clip", "median"])
    parser.add_argument("--mib", type=int, default=87, help="of the model")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        fuse(options.folder, options.methods[0], options.contributions[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "store"
        before = bare().anonymous
        filled(place, max(options.contributions), options.mib)
        for method in options.methods:
            found = []
            for count in options.contributions:
                command = [sys.executable, __file__, "--in", str(place), "--methods", method, "--contributions"]
                found.append((run([*command, str(count)], watch=True).anonymous - before) / 2**20)
            more = (found[-1] - found[0]) / (options.contributions[-1] - options.contributions[0])
            told = ", ".join(f"{n}: {mib:.0f}" for n, mib in zip(options.contributions, found, strict=True))
            print(f"{method}: {told} MiB; {more:.1f} for each further one")


if __name__ == "__main__":
    main()
