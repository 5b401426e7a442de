"""`cofuse commit`, `push` and `gc` killed with SIGKILL at random moments, and what is left each time.

    python benchmarks/store_kills.py [--kills 200] [--seed 0]

Each command runs as a process of its own, forked with everything imported, so that the moments (uniform over somewhat
more than the time that the command takes when it is left alone) fall into its work and not into Python's start. After
each kill: `fsck` finds the store whole, the remote's too; every commit whose id had been printed is in the branch's
history; every object has what it needs. Then the same command is run to its end: the version that it was to keep comes
back byte for byte, and nothing is left under `tmp/`. Exit status 1 at the first thing that is otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import cofuse.store.remotes  # noqa: F401 - what the children need is imported once, here
from cofuse.checkpoint import TensorSpec, build_header
from cofuse.cli.app import application
from cofuse.store import Store
from cofuse.store.collecting import needs

TENSORS = {f"layer.{n}.weight": (64 + n, 32) for n in range(24)} | {"embedding": (12_000, 96)}  # 5 MB of float32
QUIET_RUNS = 4
A_STORE = 20  # kills that one store goes through: what it holds is read again after each


def write_model(folder: Path, source: np.random.Generator, values: dict[str, np.ndarray]) -> None:
    """A model some of whose tensors are new."""
    for name, shape in TENSORS.items():
        if name not in values or source.random() < 0.3:
            new = source.normal(size=shape).astype(np.float32)
            values[name] = new if source.random() < 0.3 else values.get(name, new) + np.float32(1e-3) * new
    header = build_header({name: TensorSpec("F32", shape) for name, shape in TENSORS.items()}, {"format": "pt"})
    folder.mkdir(exist_ok=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header.raw)
        for name in header.entries:
            file.write(values[name].tobytes())
    (folder / "config.json").write_text(json.dumps({"version": source.integers(1 << 30).item()}))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def run(arguments: list[str], kill_after: float | None = None) -> tuple[bool, str, float]:
    """Run a command in a process of its own; whether it ended by itself, what it printed, and seconds it took.

    Raises:
        SystemExit: it was left alone, and failed.
    """
    read, write = os.pipe()
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its last use
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        os.dup2(said.fileno(), 2)
        try:
            application()(arguments, standalone_mode=False)
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(write)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        printed = pipe.read()
    status = os.waitpid(child, 0)[1]
    if kill_after is None and status:
        said.seek(0)
        raise SystemExit(f"FAILED: {arguments}: {said.read().decode()}")
    return status == 0, printed, time.monotonic() - began


def expect(what: bool, said: str) -> None:
    if not what:
        raise SystemExit(f"FAILED: {said}")


@dataclass
class World:
    """A store, a remote in another folder, and what has been acknowledged."""

    home: Path
    source: np.random.Generator
    values: dict[str, np.ndarray] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def remote(self) -> Path:
        return self.home / "remote.cofuse"

    def check(self) -> None:
        """What must be true at every moment."""
        for folder in (self.home, self.remote):
            store = Store.open(folder)
            health = store.fsck(threads=1)
            expect(health.ok, f"fsck of {folder.name}: {health.damaged}")
            there = set(store.objects)
            for object_id in there:
                missing = [below for below, _ in needs(store.objects, object_id) if below not in there]
                expect(not missing, f"{object_id} lacks {missing}")
        log = {commit.id for commit in Store.open(self.home).log()}
        lost = set(self.acknowledged) - log
        expect(not lost, f"acknowledged and lost: {lost}")

    def check_swept(self) -> None:
        for folder in (self.home / ".cofuse", self.remote):
            for left in ("tmp", "arriving"):
                inside = list((folder / left).iterdir()) if (folder / left).is_dir() else []
                expect(not inside, f"left behind: {inside}")

    # The three commands: what is done before, the command itself, and what must be true when it has ended

    def before_commit(self) -> list[str]:
        self.count += 1
        write_model(self.model, self.source, self.values)
        return ["commit", str(self.model), "-m", f"commit {self.count}", "--json"]

    def after_commit(self, printed: str) -> None:
        self.hear(printed)
        with tempfile.TemporaryDirectory() as out:
            Store.open(self.home).checkout("main", Path(out) / "out")
            expect(digests(Path(out) / "out") == digests(self.model), "another model came back")

    def before_push(self) -> list[str]:
        self.before_commit()
        for _ in range(2):
            self.hear(run(self.before_commit())[1])
        return ["push", "origin"]

    def after_push(self, printed: str) -> None:
        here, there = Store.open(self.home).resolve("main"), Store.open(self.remote).resolve("main")
        expect(here == there, f"the remote's branch is at {there}, not {here}")

    def before_gc(self) -> list[str]:
        for n in range(2):
            run([*self.before_commit(), "--branch", f"side/{n}"])
            Store.open(self.home).update_ref(f"refs/heads/side/{n}", None)
        return ["gc", "--prune", "now"]

    def after_gc(self, printed: str) -> None:
        again = Store.open(self.home).gc(grace_days=0, dry_run=True)[1]
        expect(again.removed == 0, f"gc left {again.removed} objects")

    def hear(self, printed: str) -> None:
        """Remember the commit that has been printed, if its line is whole."""
        if printed.endswith("\n"):
            self.acknowledged.append(json.loads(printed)["commit"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    began = time.monotonic()
    moments = random.Random(wanted.seed)
    tried: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    acknowledged = 0
    while killed.total() < wanted.kills:
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder), np.random.default_rng([wanted.seed, killed.total()]))
            go_through(world, min(A_STORE, wanted.kills - killed.total()), moments, tried, killed)
            acknowledged += len(world.acknowledged)
        print(f"{killed.total()} kills, {time.monotonic() - began:.0f} s", flush=True)
    for verb in sorted(tried):
        print(f"{verb:7} {tried[verb]} runs, {killed[verb]} killed before their end")
    print(
        f"{killed.total()} kills, {acknowledged} acknowledged commits: none lost, nothing half there, every command "
        f"finished its work when it was run again; {time.monotonic() - began:.0f} s"
    )


def go_through(world: World, kills: int, moments: random.Random, tried: Counter[str], killed: Counter[str]) -> None:
    """Kill so many commands on a new store, whichever has been killed the least so far."""
    os.chdir(world.home)
    Store.init(world.home)
    Store.init(world.remote)
    run(["remote", "add", "origin", str(world.remote)])
    verbs: dict[str, tuple[Callable[[], list[str]], Callable[[str], None]]] = {
        "commit": (world.before_commit, world.after_commit),
        "push": (world.before_push, world.after_push),
        "gc": (world.before_gc, world.after_gc),
    }
    usual: dict[str, float] = {}
    for verb, (before, after) in verbs.items():
        took = []
        for _ in range(QUIET_RUNS):
            _, printed, seconds = run(before())
            after(printed)
            took.append(seconds)
        usual[verb] = max(took[1:])
    enough = killed.total() + kills
    while killed.total() < enough:
        verb = min(verbs, key=lambda v: killed[v])
        before, after = verbs[verb]
        command = before()
        ended, printed, _ = run(command, moments.uniform(0, 1.1 * usual[verb]))
        tried[verb] += 1
        killed[verb] += not ended
        if verb == "commit":
            world.hear(printed)
        world.check()
        _, printed, _ = run(command)
        after(printed)
        world.check_swept()
    world.check()


if __name__ == "__main__":
    main()
