"""Times of verbs on long histories and on versions of many tensors: whole processes, the best of several.

    python benchmarks/history.py [--commits 10000] [--tensors 100000] [--work DIR] [--times 3] [--out FILE.json]

Makes two stores in DIR, if they are not there: a history of so many commits, each of which changes one of 200 tensors and
every hundredth of which is a merge; and one of a few versions of a model of so many tensors of two numbers. Nothing is synced while they are made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from process import cofuse, run, start_up

from cofuse.checkpoint import TensorSpec, build_header, content_id_of
from cofuse.store import Store
from cofuse.store.commits import put_commit
from cofuse.store.envelope import Head
from cofuse.store.trees import Plain, Tree, Weights
from cofuse.store.writing import writing

WIDTH = 200  # tensors of a version of the long history
SPEC = TensorSpec("F32", (2,))


def make_long(folder: Path, commits: int) -> None:
    """A history with a side branch that is merged every hundred commits."""
    store = Store.init(folder)
    names = [f"layers.{k}.weight" for k in range(WIDTH)]
    header = build_header(dict.fromkeys(names, SPEC), {})
    order = list(header.entries)
    with writing(store.objects) as pen:
        raw = pen.put_bytes(Head("file", len(header.raw)), header.raw)
        config = Plain(pen.put_bytes(Head("file", 2), b"{}"), 2)

        def tensor(value: int) -> str:
            return pen.put_bytes(Head.tensor(SPEC), np.full(2, value, np.float32).tobytes())

        def commit(ids: list[str], message: str, *parents: str) -> str:
            size = header.data_start + header.data_bytes
            tree = Tree(
                {"config.json": config, "model.safetensors": Weights(raw, size, tuple(ids))},
                content_id_of(dict(zip(order, ids, strict=True))),
            )
            data = tree.encode()
            made = pen.put_bytes(Head("tree", len(data)), data)
            return put_commit(
                pen,
                store.objects,
                tree=made,
                content=tree.content,
                parents=parents,
                message=message,
                author="Ada",
                record={},
            ).id

        ids = [tensor(-1)] * WIDTH
        tip = commit(ids, "start")
        side, side_ids = tip, list(ids)
        for k in range(1, commits):
            if k % 100 == 0:
                ids[1] = side_ids[1]
                tip = commit(ids, f"merge {k}", tip, side)
                side, side_ids = tip, list(ids)
            elif k % 50 == 0:
                side_ids[1] = tensor(k)
                side = commit(side_ids, f"side {k}", side)
            else:
                ids[2 + k % (WIDTH - 2)] = tensor(k)
                tip = commit(ids, f"commit {k}", tip)
        pen.sync()
        store.refs.update("refs/heads/main", tip)
        store.refs.update("refs/heads/side", side)


def make_wide(folder: Path, tensors: int) -> None:
    """Three versions of one model: the second has another config, the third another tensor; and one on a side branch."""
    store = Store.init(folder)
    header = build_header({f"model.layers.{k}.weight": SPEC for k in range(tensors)}, {"format": "pt"})
    data = np.arange(2 * tensors, dtype=np.float32)
    model = folder / "model"
    model.mkdir()

    def commit(message: str, config: str, branch: str = "main") -> None:
        (model / "config.json").write_text(config)
        (model / "model.safetensors").write_bytes(header.raw + data.tobytes())
        store.commit(model, message=message, branch=branch)

    commit("one", "{}")
    commit("two", '{"a": 1}')
    store.branch("side")
    data[-1] = -1
    commit("side", '{"a": 1}', "side")
    data[-1] = 2 * tensors - 1
    data[7] = -1
    commit("three", '{"a": 1}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "history")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    long, wide = asked.work / f"long{asked.commits}", asked.work / f"wide{asked.tensors}"
    synced, os.fsync = os.fsync, lambda _: None
    for folder, make, size in ((long, make_long, asked.commits), (wide, make_wide, asked.tensors)):
        if not (folder / "made").exists():
            folder.mkdir(parents=True)
            make(folder, size)
            (folder / "made").touch()
    os.fsync = synced
    figures = {"python -c pass": start_up()}
    for folder, verbs in (
        (
            long,
            ["log -n 10", "log --json", "show HEAD", "blame", "blame HEAD layers.7.*", "diff HEAD~1000 HEAD"],
        ),
        (
            wide,
            [
                "log -n 10",
                "diff HEAD HEAD",
                "diff HEAD~2 HEAD~1",
                "diff HEAD~1 HEAD",
                "status model",
                "show HEAD",
                "blame",
            ],
        ),
    ):
        os.chdir(folder)
        for verb in verbs:
            times = [run(cofuse(*verb.split())).seconds for _ in range(asked.times)]
            figures[f"{folder.name}: {verb}"] = min(times)
            print(f"{min(times):8.2f} s  {folder.name}: cofuse {verb}" + (f"  (first {times[0]:.2f} s)"), flush=True)
        tip = subprocess.check_output(cofuse("branch"), text=True).split()[0]
        seconds = run(cofuse("merge", "side", "--no-ff")).seconds
        figures[f"{folder.name}: merge side"] = seconds
        print(f"{seconds:8.2f} s  {folder.name}: cofuse merge side", flush=True)
        run(cofuse("branch", "main", tip, "--force"))
        # The first packs; what the merge left is younger than what is swept. Then there is nothing to do but to look.
        for what in ("gc", "gc, again"):
            seconds = run(cofuse("gc")).seconds
            figures[f"{folder.name}: {what}"] = seconds
            print(f"{seconds:8.2f} s  {folder.name}: cofuse {what}", flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
