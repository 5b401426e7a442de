"""Our header validator beside `json.loads` and safetensors' own open, on headers of real and hostile shapes.

    python benchmarks/header.py [--tensors N]

`json.loads` only parses; safetensors checks less (it takes duplicate names, any name, any size) and maps the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from cofuse.checkpoint import build_header, parse_header


def headers(count: int) -> dict[str, bytes]:
    """Headers without tensor bytes, about as long as those of models with so many tensors."""
    names = [f"model.layers.{i // 9}.self_attn.part_{i % 9}.weight" for i in range(count)]
    ours = build_header(dict.fromkeys(names, ("BF16", (4096, 0))), {"format": "pt"}).raw
    spread = json.dumps(json.loads(ours[8:]), indent=2).encode()
    metadata = json.dumps({"__metadata__": dict.fromkeys(names, "tied to something else")}).encode()
    return {
        "as everybody writes it": ours,
        "indented": len(spread).to_bytes(8, "little") + spread,
        "all metadata": len(metadata).to_bytes(8, "little") + metadata,
    }


def best(work: Callable[[], object], tries: int = 7) -> float:
    """Seconds of the quickest of several tries."""
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def peak(work: Callable[[], object]) -> int:
    """Most bytes that Python holds at once."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def theirs(path: Path) -> None:
    with safe_open(path, "np") as file:
        file.keys()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=9000)
    count = parser.parse_args().tensors
    print(f"{'header':24} {'MiB':>6} {'ours':>9} {'json':>9} {'theirs':>9} {'/json':>6} {'/theirs':>8} {'memory':>7}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.safetensors"
        for label, raw in headers(count).items():
            path.write_bytes(raw)
            ours = best(lambda raw=raw: parse_header(raw, data_bytes=0, where="benchmark"))
            plain = best(lambda raw=raw: json.loads(raw[8:]))
            library = best(lambda: theirs(path))
            memory = peak(lambda raw=raw: parse_header(raw, data_bytes=0, where="benchmark")) / len(raw)
            print(
                f"{label:24} {len(raw) / 2**20:6.2f} {ours * 1e3:6.1f} ms {plain * 1e3:6.1f} ms {library * 1e3:6.1f} ms "
                f"{ours / plain:6.2f} {ours / library:8.2f} {memory:5.1f} x"
            )


if __name__ == "__main__":
    main()
