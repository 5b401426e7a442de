"""git-theta's own workload, in whole processes: cofuse alone, cofuse in git, git-lfs and git-theta.

    python benchmarks/store_peers.py DIR [--theta VENV/bin] [--times 3] [--rows 9506]

A float32 model of 37 matrices (284 MB) with Gaussian weights of deviation 0.02, and versions of it, each made from the one
before: a dense change (1 % of the deviation), 0.5 % of the values changed by 10 %, a change of rank 8. Nobody is told what the
change is, but for the columns that say so. Each side has its own folder; `sync` runs before each step, outside the time.
Bytes are what all files of the store (of `.git`, for those in git) have grown by; seconds the best of all times.

git-lfs syncs nothing to the disk; both of ours do before they return. git-lfs cannot merge; git-theta asks about every tensor in
a terminal, and halves the average: that row is without them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from cofuse.checkpoint import build_header

DEVIATION = 0.02
RANK = 8
Tensors = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]


def shapes(blocks: int, width: int = 768, inner: int = 3072) -> dict[str, tuple[int, int]]:
    found = {"embed": (9506, width) if blocks > 1 else (16, width)}
    for k in range(blocks):
        found |= {f"block.{k}.wi": (width, inner), f"block.{k}.wo": (inner, width), f"block.{k}.att": (width, width)}
    return found


def write(path: Path, tensors: Tensors) -> None:
    header = build_header({name: ("F32", value.shape) for name, value in tensors.items()}, {"format": "pt"})
    with open(path, "wb") as file:
        file.write(header.raw)
        for name in header.entries:
            file.write(np.ascontiguousarray(tensors[name]).data)


def normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def make(folder: Path, blocks: int) -> None:
    """All versions, once: base, dense, sparse, rank, ours, theirs; and the products of `rank` as an adapter."""
    rng = np.random.default_rng(0)
    tensors: Tensors = {name: normal(rng, shape, DEVIATION) for name, shape in shapes(blocks).items()}
    write(folder / "base.safetensors", tensors)
    for value in tensors.values():
        np.add(value, normal(rng, value.shape, DEVIATION / 100), out=value)
    write(folder / "dense.safetensors", tensors)
    for value in tensors.values():
        chosen = rng.random(value.shape, dtype=np.float32) < 0.005
        value[chosen] += normal(rng, (int(chosen.sum()),), DEVIATION / 10)
    write(folder / "sparse.safetensors", tensors)
    adapter: Tensors = {}
    for name, value in tensors.items():
        left, right = normal(rng, (value.shape[0], RANK), 0.02), normal(rng, (RANK, value.shape[1]), 0.02)
        adapter |= {f"{name}/R": left, f"{name}/C": right}
        np.add(value, left @ right, out=value)
    write(folder / "adapter.safetensors", adapter)
    write(folder / "nothing.safetensors", {})
    write(folder / "rank.safetensors", tensors)
    for side in ("ours", "theirs"):
        write(
            folder / f"{side}.safetensors", {n: v + normal(rng, v.shape, DEVIATION / 100) for n, v in tensors.items()}
        )


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@dataclass
class Side:
    """One way to keep the versions: where, with what environment."""

    name: str
    folder: Path
    models: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> Path:
        return self.folder / ".git"

    def run(self, *command: str, **environment: str) -> float:
        os.sync()
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"{self.name}: {' '.join(command)}\n{done.stderr.decode(errors='replace')[-2000:]}")
        return seconds

    def put(self, version: str, path: str = "model.safetensors") -> None:
        shutil.copyfile(self.models / f"{version}.safetensors", self.folder / path)

    def setup(self) -> None:
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "config", "gc.auto", "0")
        self.run("git", "config", "user.name", "bench")
        self.run("git", "config", "user.email", "bench@example.org")

    def commit(self, version: str, *, path: str = "model.safetensors", **environment: str) -> float:
        self.put(version, path)
        return self.run("git", "add", path, **environment) + self.run("git", "commit", "-qm", version)

    def adapter(self) -> float:
        return self.commit("adapter", path="adapter.safetensors")

    def checkout(self, version: str) -> float:
        seconds = self.run("git", "checkout", "-q", version)
        self.check(self.folder / "model.safetensors", version)
        return seconds

    def check(self, path: Path, version: str) -> None:
        if subprocess.run(["cmp", "-s", path, self.models / f"{version}.safetensors"], check=False).returncode:
            raise SystemExit(f"{self.name}: the checkout of {version} is not what was committed")

    def tag(self, version: str) -> None:
        self.run("git", "tag", version)

    def diff(self) -> float:
        return self.run("git", "diff", "dense", "sparse")

    def part(self) -> None:
        """Two branches that part at the last version."""
        self.run("git", "checkout", "-q", "-b", "side", "rank")
        self.commit("theirs")
        self.run("git", "checkout", "-q", "main")
        self.run("git", "reset", "-q", "--hard", "rank")
        self.commit("ours")

    def merge(self) -> float:
        return self.run("git", "merge", "-q", "-m", "both", "side")


class Lfs(Side):
    """git-lfs."""

    def setup(self) -> None:
        super().setup()
        self.run("git", "lfs", "install", "--local")
        self.run("git", "lfs", "track", "*.safetensors")


class Theta(Side):
    """git-theta, not told what a change is."""

    told: ClassVar[Mapping[str, str]] = {}

    def setup(self) -> None:
        super().setup()
        self.run("git", "lfs", "install")
        self.run("git-theta", "install")
        self.run("git", "theta", "track", "model.safetensors")
        # A first version that is the first commit cannot be updated incrementally.
        self.run("git", "commit", "-qm", "attributes")

    def commit(self, version: str, *, path: str = "model.safetensors", **environment: str) -> float:
        kind = self.told.get(version)
        return super().commit(version, path=path, **(self.telling(kind) if kind else {}))

    def telling(self, kind: str) -> dict[str, str]:
        # It looks for a file of side-loaded changes even where there are none.
        return {"GIT_THETA_UPDATE_TYPE": kind, "GIT_THETA_UPDATE_DATA_PATH": str(self.models / "nothing.safetensors")}

    def adapter(self) -> float:
        told = ("--update-type", "low-rank", "--update-data", str(self.models / "adapter.safetensors"))
        return self.run("git", "theta", "add", "model.safetensors", *told) + self.run("git", "commit", "-qm", "adapter")

    def check(self, path: Path, version: str) -> None:
        pass  # what it is told is low-rank comes back nearly


class Told(Theta):
    """git-theta, told which kind of change it is to look for."""

    told: ClassVar[Mapping[str, str]] = {"sparse": "sparse", "rank": "low-rank"}


class InGit(Side):
    """cofuse as git's filter."""

    def setup(self) -> None:
        super().setup()
        self.run(sys.executable, "-m", "cofuse", "git", "install")

    def diff(self) -> float:
        return self.run(sys.executable, "-P", "-m", "cofuse", "git", "diff", "dense", "sparse")


class Alone(Side):
    """cofuse alone; it checks out into a new folder."""

    cofuse = str(Path(sys.executable).parent / "cofuse")

    @property
    def kept(self) -> Path:
        return self.folder / ".cofuse"

    def setup(self) -> None:
        self.run(self.cofuse, "init")
        (self.folder / "model").mkdir()

    def put(self, version: str, path: str = "model.safetensors") -> None:
        super().put(version, f"model/{path}")

    def commit(self, version: str, *, path: str = "model.safetensors", **environment: str) -> float:
        self.put(version, path)
        return self.run(
            self.cofuse,
            "commit",
            "model",
            "-m",
            version,
            *(["--branch", b] if (b := environment.get("branch")) else []),
        )

    def checkout(self, version: str) -> float:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        seconds = self.run(self.cofuse, "checkout", version, "out")
        self.check(out / "model.safetensors", version)
        return seconds

    def tag(self, version: str) -> None:
        self.run(self.cofuse, "tag", version)

    def diff(self) -> float:
        return self.run(self.cofuse, "diff", "dense", "sparse")

    def part(self) -> None:
        (self.folder / "model" / "adapter.safetensors").unlink(missing_ok=True)
        for branch in ("side", "other"):
            self.run(self.cofuse, "branch", branch, "rank")
        self.commit("theirs", branch="side")
        self.commit("ours", branch="other")

    def merge(self) -> float:
        return self.run(self.cofuse, "merge", "side", "--into", "other")


VERSIONS = ("base", "dense", "sparse", "rank")
SIDES: dict[str, type[Side]] = {
    "cofuse": Alone,
    "cofuse in git": InGit,
    "git-lfs": Lfs,
    "git-theta": Theta,
    "git-theta, told": Told,
}


def measure(side: Side, note: Callable[[str, float, int], None]) -> None:
    def step(name: str, work: Callable[[], float]) -> None:
        before = size(side.kept)
        seconds = work()
        note(name, seconds, size(side.kept) - before)

    side.setup()
    for version in VERSIONS:
        step(f"commit {version}", lambda version=version: side.commit(version))  # type: ignore[misc]
        side.tag(version)
    for version in VERSIONS:
        step(f"checkout {version}", lambda version=version: side.checkout(version))  # type: ignore[misc]
    step("diff", side.diff)
    if isinstance(side, Told):
        side.run("git", "checkout", "-q", "-f", "sparse")
    step("commit adapter", side.adapter)
    if isinstance(side, Alone | InGit):
        side.part()
        step("merge", side.merge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--theta", type=Path, help="the bin folder of an environment with git-theta 0.2.0")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=12, help="of the model; 1 makes a small one")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    given = parser.parse_args()
    models = given.folder.absolute() / f"models-{given.blocks}"
    if not (models / "done").exists():
        models.mkdir(parents=True, exist_ok=True)
        make(models, given.blocks)
        (models / "done").touch()
    seconds: defaultdict[str, dict[str, float]] = defaultdict(dict)
    grown: defaultdict[str, dict[str, int]] = defaultdict(dict)
    sides = [name for name in given.sides if given.theta or "theta" not in name]
    for turn in range(given.times):
        for name in sides:
            if "theta" in name and turn:
                continue  # it takes minutes, and its seconds vary little
            work = given.folder.absolute() / "work"
            shutil.rmtree(work, ignore_errors=True)
            (home := work / "home").mkdir(parents=True)
            (work / "repository").mkdir()
            environment = {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "GIT_THETA_CHECKPOINT_TYPE": "safetensors"}
            if "theta" in name:
                environment["PATH"] = f"{given.theta.absolute()}:{os.environ['PATH']}"

            def note(row: str, took: float, bytes_: int, name: str = name) -> None:
                seconds[row][name] = min(took, seconds[row].get(name, took))
                grown[row][name] = bytes_
                print(f"{name}: {row}: {took:.2f} s, {bytes_:,} bytes", file=sys.stderr, flush=True)

            measure(SIDES[name](name, work / "repository", models, environment), note)
    shutil.rmtree(given.folder.absolute() / "work", ignore_errors=True)
    (given.folder / "peers.json").write_text(json.dumps({"seconds": seconds, "bytes": grown}, indent=1))
    for title, table, form in (("MB", grown, lambda v: f"{v / 1e6:.2f}"), ("seconds", seconds, lambda v: f"{v:.2f}")):
        print(f"\n| {title} | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}")
        for row, cells in table.items():
            if title == "seconds" or row.startswith(("commit", "merge")):
                print(f"| {row} | {' | '.join(form(cells[n]) if n in cells else '' for n in sides)} |")


if __name__ == "__main__":
    main()
