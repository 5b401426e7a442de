"""Whether the same command gives the same records: eval, gate, rank and choose, each three times into new folders.

    python benchmarks/reruns.py --tasks FOLDER --out FOLDER MODEL MODEL...

The first run and the second have one process, the third has two; every run has an empty cache of its own. MODELs are finetunes
of MiniLM. Every file that a run leaves is compared byte by byte with the first run's; what differs is compared again without the
values called `seconds`, which are measured times, and of a page it is said whether it differs in more than numbers before " s".
Exit status 1 where a record says anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

BASE = "hf:sentence-transformers/all-MiniLM-L6-v2"
SUITE = """name: reruns
tasks: [sst2, trec_coarse]
seeds: [0, 1]
protocols:
  probe: {examples: 200, test: 200, probing: {standardize: true, c: 0.01, max_length: 32}}
  oldhead: {examples: 200, test: 300, probing: {max_length: 32}}
  finetune: {examples: 64, test: 200, finetuning: {epochs: 1, batch_size: 16, max_length: 32}}
"""
RUNS = (("first", 1), ("second", 1), ("two processes", 2))


def commands(models: list[str], suite: str, tasks: str, out: Path, jobs: int) -> dict[str, list[str]]:
    common = ["--suite", suite, "--tasks", tasks, "--jobs", str(jobs)]
    return {
        "eval": ["eval", BASE, *models, "--old", BASE, *common, "--out", str(out / "eval")],
        "gate": ["gate", BASE, models[0], *common, "--protocol", "oldhead", "--protocol", "finetune", "--out", str(out / "gate")],
        "rank": ["rank", *models, "--pretrained", BASE, *common, "--out", str(out / "rank")],
        "choose": [
            "choose", *models, "--base", BASE, *common, "--protocol", "probe",
            "--records", str(out / "choose" / "records"), "-o", str(out / "choose" / "soup.yaml"),
        ],
    }  # fmt: skip


def ran(command: list[str], folder: Path) -> None:
    """Run it in a folder without a store, with an empty cache; what it prints is kept as a file of the run."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache" / folder.name), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "cofuse", *command],
        check=False,
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1, 3) or "cofuse: " in done.stderr:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-4000:]}")
    (folder / "stdout.txt").write_text(done.stdout.replace(str(folder.parent), "OUT"))
    (folder / "status.txt").write_text(f"{done.returncode}\n")


def timeless(value: Any) -> Any:
    """Without the times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def same(one: Path, other: Path) -> str:
    """How two files agree."""
    if one.read_bytes() == other.read_bytes():
        return "the same bytes"
    left, right = (path.read_text(errors="replace") for path in (one, other))
    if one.suffix in (".json", ".jsonl"):
        parsed = [[timeless(json.loads(line)) for line in documents(one, text)] for text in (left, right)]
        return "the same but for seconds" if parsed[0] == parsed[1] else "DIFFERENT"
    if one.suffix in (".html", ".txt", ".csv"):
        plain = [re.sub(r"[\d.,]+ ?(s|ms|min|h)\b", "T", text) for text in (left, right)]
        return "the same but for times" if plain[0] == plain[1] else "DIFFERENT"
    return "DIFFERENT"


def documents(path: Path, text: str) -> list[str]:
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    suite = given.out / "suite.yaml"
    suite.write_text(SUITE)
    for run, jobs in RUNS:
        out = (given.out / run.replace(" ", "-")).absolute()
        for name, command in commands(given.models, str(suite.absolute()), str(given.tasks), out, jobs).items():
            ran(command, out / name)
            print(f"{run}: {name} is done", flush=True)
    failed = False
    first = (given.out / "first").absolute()
    for run, _ in RUNS[1:]:
        folder = given.out / run.replace(" ", "-")
        for name in ("eval", "gate", "rank", "choose"):
            files = [{p.relative_to(f / name) for p in (f / name).rglob("*") if p.is_file()} for f in (first, folder)]
            counts: Counter[str] = Counter()
            for path in sorted(files[0] | files[1]):
                said = same(first / name / path, folder / name / path) if path in files[0] & files[1] else "MISSING"
                counts[f"{path.suffix} {said}"] += 1
                if said in ("DIFFERENT", "MISSING"):
                    print(f"  {name}/{path}: {said}")
                    failed = True
            print(f"{run}, {name}: " + "; ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
