"""FISH-sized patches of a real finetune: bytes, beside the entropy of what they say.

    python benchmarks/patch.py DIR --task TASKS/sst2 [--steps 150] [--share 0.005]

MiniLM is finetuned on the task (AdamW, learning rate 5e-5, batches of 16) and its empirical Fisher taken of 128 examples, once, into
DIR. Then, in float32 and rounded to bfloat16, patches of the share of its parameters: by magnitude of the change, by Fisher, at
random; beside them the exact patch and one of rank 16. The limit is k H(p)/p bits for which parameters (p the share kept) and the
order-0 entropy of the new values, byte by byte: what a coder of independent bytes needs at least when nothing is known of the base.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import cofuse
from cofuse.checkpoint import Checkpoint, Memory, open_local
from cofuse.checkpoint.bitcode import planes
from cofuse.patch import LowRank, Patch, Sparse, Way, apply, make
from cofuse.patch.manifest import chunks_of

BASE = "sentence-transformers/all-MiniLM-L6-v2"


def prepare(folder: Path, task_folder: str, steps: int) -> None:
    """A finetune and a Fisher, and the two models in bfloat16."""
    import torch

    from cofuse.tasks import open_task
    from cofuse.tasks.finetune import Finetuning, finetune
    from cofuse.tasks.model import body_checkpoint
    from cofuse.tasks.training import Collator, Rows

    base, task = cofuse.open(BASE), open_task(task_folder)
    examples = task.examples("train")
    settings = Finetuning(steps=steps, batch_size=16, learning_rate=5e-5, max_length=64)
    tuned = finetune(base, task, examples, settings, seed=0)
    body = tuned.model.body
    after = body_checkpoint(body, base)
    parameters = dict(body.named_parameters())
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    rows, collate = Rows(task.what.encode(examples, base, 64)), Collator(task.what)
    tuned.model.eval()
    for i in range(128):
        tuned.model.zero_grad()
        tuned.model(**collate([rows[i]]))["loss"].backward()
        for name, p in parameters.items():
            if p.grad is not None:
                squares[name] += p.grad.square() / 128
    before = Memory({name: base.read(name) for name in after.names()}, files=dict(base.files))
    Memory({name: squares[name] for name in after.names() if name in squares}).save(folder / "fisher")
    for kind, cast in (("F32", torch.float32), ("BF16", torch.bfloat16)):
        for role, checkpoint in (("base", before), ("tuned", after)):
            held = {n: checkpoint.read(n).to(cast) for n in checkpoint.names()}
            Memory(held, files=dict(base.files)).save(folder / f"{role}-{kind}")


def limit(base: Checkpoint, patch: Patch) -> tuple[int, float, float]:
    """How many values are new, bits of their places, bits of their values."""
    result = apply(base, patch)
    values = []
    total = sum(base.spec(name).numel for name in base.names())
    for name in patch.manifest.tensors:
        width = base.spec(name).nbytes // base.spec(name).numel
        old, new = (np.frombuffer(cp.read_bytes(name), f"<u{width}") for cp in (base, result))
        values.append(new[old != new])
    kept = np.concatenate(values)
    p = len(kept) / total
    places = total * -sum(q * math.log2(q) for q in (p, 1 - p) if q)
    return len(kept), places, sum(len(kept) * order0(np.frombuffer(plane, np.uint8)) for plane in planes(kept))


def order0(data: np.ndarray) -> float:
    shares = np.bincount(data, minlength=256) / max(1, len(data))
    return float(-sum(q * math.log2(q) for q in shares if q))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--share", type=float, default=0.005)
    given = parser.parse_args()
    if not (given.folder / "tuned-BF16").is_dir():
        prepare(given.folder, given.task, given.steps)
    fisher = open_local(given.folder / "fisher")
    ways: Mapping[str, Way] = {
        "magnitude": Sparse(given.share),
        "fisher": Sparse(given.share, by="fisher", fisher=fisher),
        "random": Sparse(given.share, by="random"),
        "exact": Way(),
        "rank 16": LowRank(rank=16),
    }
    columns = (
        "| dtype | patch | values | bytes | of the model | limit | bytes / limit | places, bits | values, bits | s |"
    )
    print(f"{columns}\n|{'---|' * 10}")
    for kind in ("F32", "BF16"):
        base, tuned = (open_local(given.folder / f"{role}-{kind}") for role in ("base", "tuned"))
        whole = sum(tuned.spec(name).nbytes for name in tuned.names())
        assert all(len(chunks_of(tuned.spec(name))) for name in tuned.names())
        for name, way in ways.items():
            start = time.perf_counter()
            patch = make(base, tuned, given.folder / f"{name.replace(' ', '-')}-{kind}.patch", way)
            seconds = time.perf_counter() - start
            row = [kind, name, "", f"{patch.nbytes:,}", f"{100 * patch.nbytes / whole:.2f} %", "", "", "", ""]
            if isinstance(way, Sparse):
                count, places, values = limit(base, patch)
                at, held = (sum(found) for found in zip(*[(a, v) for _, _, a, v in patch.sizes()], strict=True))
                least = (places + values) / 8
                row[2] = f"{count:,}"
                row[5:] = [
                    f"{least:,.0f}",
                    f"{patch.nbytes / least:.3f}",
                    f"{8 * at / count:.2f} ({places / count:.2f})",
                    f"{8 * held / count:.2f} ({values / count:.2f})",
                ]
            print("| " + " | ".join([*row, f"{seconds:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
