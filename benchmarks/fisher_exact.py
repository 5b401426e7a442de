"""How far the fast Fisher is from the slow loop: the worst tensor of each architecture, in float32.

    python benchmarks/fisher_exact.py [NAME ...] [--examples 16]

The tiny models of tests/measure/statistics/slow_fisher.py, which are built from configurations, and all-MiniLM-L6-v2 (`minilm`, the extra of
that name) with a random head on texts of different lengths. Of each tensor, the norm of the difference over the norm; where a
gradient is zero but for rounding (the bias of attention's keys), over 1e-5 of the largest tensor's norm.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
warnings.simplefilter("ignore")  # transformers, on configurations this small

import torch  # noqa: E402
from measure.statistics.slow_fisher import MODELS, slow_fisher  # noqa: E402
from tasks.tiny import opinion_task  # noqa: E402

from cofuse import address  # noqa: E402
from cofuse.checkpoint import Checkpoint  # noqa: E402
from cofuse.measure.statistics.fisher import fisher  # noqa: E402
from cofuse.measure.statistics.record import read_record  # noqa: E402
from cofuse.measure.subject import Subject, open_subject  # noqa: E402
from cofuse.tasks import Examples  # noqa: E402


def minilm(count: int) -> tuple[Subject, Examples]:
    with TemporaryDirectory() as folder:
        task = opinion_task(Path(folder) / "task", (64, 8, count))
        base = address.open("hf:sentence-transformers/all-MiniLM-L6-v2")
        return open_subject(base, task, head="random"), task.examples("test")


def worst(got: Checkpoint, right: dict[str, torch.Tensor]) -> float:
    floor = 1e-5 * max(float(tensor.norm()) for tensor in right.values())
    return max(float((got.read(n).double() - t).norm()) / (float(t.norm()) + floor) for n, t in right.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--examples", type=int, default=16, help="of minilm")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| {'model':17} | {'empirical':9} | {'sampled':9} | {'expected':9} | without a rule")
    print("|---|---|---|---|---")
    for name in asked.names or ("minilm", *MODELS):
        subject, examples = minilm(asked.examples) if name == "minilm" else MODELS[name]()
        found, fallback = [], ""
        for kind in ("empirical", "sampled", "expected"):
            if kind == "expected" and subject.outputs == "tokens":
                found.append("-")
                continue
            got = fisher(subject, examples, kind=kind, batch_size=4)  # type: ignore[arg-type]
            found.append(f"{worst(got, slow_fisher(subject, examples, kind)):.1e}")
            fallback = ", ".join(sorted({".".join(n.split(".")[-2:]) for n in read_record(got).fallback}))
        print(f"| {name:17} | {' | '.join(f'{f:9}' for f in found)} | {fallback or '-'}", flush=True)


if __name__ == "__main__":
    main()
