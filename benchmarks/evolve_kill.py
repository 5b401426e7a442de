"""`cofuse evolve` killed with SIGKILL at random moments and resumed, beside a run that is left alone.

    python benchmarks/evolve_kill.py [--kills 10] [--seed 0] [STUDY]

The moments are uniform over the time that the quiet run took; each kill is of the parent process alone, and counts from
where the run before it was killed. When all are spent, the run is left to end. Exit status 1 when any branch's final tree
or any score differs from the quiet run's.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cofuse.evolve import read_records
from cofuse.store import Store

ROOT = Path(__file__).parent.parent
# The demo, shrunk to some twenty seconds.
SHRUNK = {
    "seeds": "[0]",
    "rounds": "3",
    "base.steps": "150",
    "finetune.steps": "20",
    "examples": "150",
    "evaluate_unseen.fewshot.draws": "2",
    "baselines.steps": "20",
    "baselines.multitask": "60",
}


def command(study: Path | None, folder: Path, workers: int) -> list[str]:
    changes = [f"--set={key}={value}" for key, value in SHRUNK.items()] if study is None else []
    file = study or ROOT / "examples" / "digits.yaml"
    return [sys.executable, "-m", "cofuse", "evolve", str(file), "--out", str(folder), f"--workers={workers}", *changes]


def outcome(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Final tree of each branch, and the scores of each record."""
    store = Store.open(folder)
    trees = {name: store.load_commit(commit).tree for name, commit in store.branches().items()}
    scores = {r.id: r.values for r in read_records(folder / "records.jsonl") if r.kind == "score"}
    return trees, scores


def records(folder: Path) -> int:
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run(order: list[str], kill_after: float | None) -> tuple[float, float | None]:
    """Seconds that a run went on; and seconds from its kill until the last worker was gone, None when it ended itself."""
    began = time.monotonic()
    with subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _, said = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            killed = time.monotonic()
            process.send_signal(signal.SIGKILL)
            process.communicate()  # until the workers, which hold the same pipe, are gone too
            return killed - began, time.monotonic() - killed
    if process.returncode:
        sys.exit(f"the run failed:\n{said.decode()}")
    return time.monotonic() - began, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, help="a study; the demo, shrunk, when not given")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        quiet, killed = Path(scratch) / "quiet", Path(scratch) / "killed"
        whole, _ = run(command(given.study, quiet, given.workers), None)
        print(f"not killed: {whole:.1f} s, {records(quiet)} records")
        print(f"\n{'kill':>4} {'after':>8} {'records kept':>13} {'workers gone':>13}")
        number, total, ended = 0, 0.0, False
        while number < given.kills and not ended:
            seconds, gone = run(command(given.study, killed, given.workers), moments.uniform(0, whole))
            total += seconds
            ended = gone is None
            if gone is not None:
                number += 1
                print(f"{number:4} {seconds:6.1f} s {records(killed):13} {gone:11.1f} s", flush=True)
            elif number < given.kills:
                # All done before all kills were spent: what is left hits new runs.
                same = outcome(quiet) == outcome(killed)
                print(f" end {seconds:6.1f} s {records(killed):13}  {'same' if same else 'DIFFERENT'}; begins anew")
                if not same:
                    sys.exit(1)
                killed, ended = killed.with_name(f"killed-{number}"), False
        if not ended:
            seconds, _ = run(command(given.study, killed, given.workers), None)
            total += seconds
            print(f" end {seconds:6.1f} s {records(killed):13}")
        (trees, scores), (our_trees, our_scores) = outcome(quiet), outcome(killed)
        print(f"\nkilled {number} times: {total:.1f} s\n")
        print(f"{'branch':32} {'not killed':12} {'killed':12}")
        for name in sorted({*trees, *our_trees}):
            one, other = trees.get(name, "none"), our_trees.get(name, "none")
            print(f"{name:32} {one[:12]:12} {other[:12]:12} {'same' if one == other else 'DIFFERENT'}")
        agree = sum(scores.get(key) == values for key, values in our_scores.items())
        print(f"\nscores: {agree} of {len({*scores, *our_scores})} the same")
        sys.exit(0 if (trees, scores) == (our_trees, our_scores) else 1)


if __name__ == "__main__":
    main()
