"""Whether rapid evaluation decides as the full one does, and what it saves.

    python benchmarks/gate_rapid.py DIR [--cases 50] [--seed 1]

DIR is that of `gate_calibration.py`, whose collected predictions are drawn from in the same way. Case i is a suite of eight
tasks of which one, drawn, truly loses 0, 1, 2 or 4 points: the i-th of these in turn, whatever comes out. Full and rapid see
the same examples in the same order. The policy is the default one, so a point is exactly what a task may lose. Saved is the
share of the full evaluation's examples that were not taken; heads have to be fitted either way.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
from gate_calibration import heads, run, suite

from cofuse.measure.gate import Policy
from cofuse.measure.gate.matched import Rate

EFFECTS = (0.0, 1.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    known, policy = heads(options.folder), Policy()
    began, rows = time.monotonic(), []
    for i in range(options.cases):
        effect = EFFECTS[i % len(EFFECTS)]
        streams = suite(known, 1_000_000 * options.seed + i, effect)
        full, rapid = run(streams, policy), run(streams, policy, rapid=True)
        rows.append((effect, full.verdict.state, rapid.verdict.state, full.taken, rapid.taken))
    for effect in (*EFFECTS, None):
        own = [r for r in rows if effect is None or r[0] == effect]
        same = sum(r[1] == r[2] for r in own)
        saved = 1 - sum(r[4] for r in own) / sum(r[3] for r in own)
        low, high = Rate(same, len(own)).interval(1.96)
        print(
            f"{'all' if effect is None else f'{effect:g} points'}: {len(own)} cases, same decision in {same} "
            f"({100 * same / len(own):.1f} %, {low:.1f} to {high:.1f}); full {dict(Counter(r[1] for r in own))}, "
            f"rapid {dict(Counter(r[2] for r in own))}; {np.mean([r[3] for r in own]):,.0f} examples in full, "
            f"{np.mean([r[4] for r in own]):,.0f} rapid: {100 * saved:.0f} % saved"
        )
    print(f"{time.monotonic() - began:.0f} s")
    (options.folder / "rapid.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
