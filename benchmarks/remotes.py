"""Push and clone of a store beside a plain copy of the same bytes: `cp -r` for a folder, obstore alone for a bucket.

    python benchmarks/remotes.py [--gb 1] [--runs 3] [--folder WHERE]

The bucket is on OpenStack Swift in one process, started here, whose speed is the limit there: the ratio is what counts.
Best of the runs, interleaved. `cp` is followed by `sync -f`, because a push lasts when it returns.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import obstore
from obstore.store import S3Store

from cofuse.checkpoint import TensorSpec, build_header, for_each
from cofuse.store import Store
from cofuse.store.remotes import Account, Named, Push, clone, open_remote, push

TENSOR = 16 * 2**20  # bytes
USER, KEY = "test:tester", "testing"
SERVER = Path(__file__).parent.parent / "tests/store/remotes/swift_server.py"


def model(folder: Path, size: int) -> None:
    """Random bytes: nothing is gained by compressing, so that bytes are bytes."""
    folder.mkdir()
    header = build_header({f"w{n:04}": TensorSpec("U8", (TENSOR,)) for n in range(size // TENSOR)}, {})
    source = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header.raw)
        for _ in header.entries:
            file.write(source.bytes(TENSOR))


@contextmanager
def server(folder: Path) -> Iterator[str]:
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(folder), "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def client(bucket: str, endpoint: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=USER,
        secret_access_key=KEY,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": timedelta(minutes=5)},
    )


def make_bucket(name: str, endpoint: str) -> None:
    import urllib.request

    url = obstore.sign(client(name, endpoint), "PUT", "", timedelta(minutes=1))
    urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def in_folder(home: Store, work: Path) -> dict[str, float]:
    there, copy, back, copy_back = (work / name for name in ("there", "copy", "back", "copy_back"))
    there.mkdir()
    tip = Push("refs/heads/main", home.resolve("main"))
    took = {
        "push to a folder": timed(lambda: push(home, open_remote(str(there)), [tip])),
        "clone from a folder": timed(lambda: clone(open_remote(str(there)), back, Named(str(there)))),
        "cp -r there": timed(lambda: copied(home.path, copy)),
        "cp -r back": timed(lambda: copied(copy, copy_back)),
    }
    for folder in (there, copy, back, copy_back):
        shutil.rmtree(folder)
    return took


def copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)


def in_bucket(home: Store, work: Path, run: int) -> dict[str, float]:
    back, plain_back = work / "back", work / "plain"
    plain_back.mkdir()
    files = [path for path in home.objects.places.objects.rglob("*") if path.is_file()]
    with server(work / "swift") as endpoint:
        for name in ("ours", "plain"):
            make_bucket(f"{name}{run}", endpoint)
        account = Account(endpoint=endpoint, key=USER, secret=KEY)
        address = f"s3://ours{run}"
        tip = Push("refs/heads/main", home.resolve("main"))
        plain = client(f"plain{run}", endpoint)
        took = {
            "push to a bucket": timed(lambda: push(home, open_remote(address, account), [tip])),
            "obstore alone, there": timed(lambda: for_each(lambda p: obstore.put(plain, p.name, p), files, 8)),
            "clone from a bucket": timed(lambda: clone(open_remote(address, account), back, Named(address))),
            "obstore alone, back": timed(lambda: for_each(lambda p: fetched(plain, p.name, plain_back), files, 8)),
        }
    for folder in (back, plain_back, work / "swift"):
        shutil.rmtree(folder)
    return took


def fetched(plain: S3Store, name: str, folder: Path) -> None:
    with open(folder / name, "wb") as file:
        for piece in obstore.get(plain, name):
            file.write(piece)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gb", type=float, default=1.0)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--folder", type=Path, help="on the disk that is measured")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        work = Path(name)
        model(work / "model", int(given.gb * 1e9))
        home = Store.init(work / "home")
        home.commit(work / "model", message="x")
        shutil.rmtree(work / "model")
        size = sum(path.stat().st_size for path in home.path.rglob("*") if path.is_file())
        best: dict[str, float] = {}
        for run in range(given.runs):
            for what, seconds in {**in_folder(home, work), **in_bucket(home, work, run)}.items():
                best[what] = min(seconds, best.get(what, seconds))
    print(f"{size / 1e9:.2f} GB, best of {given.runs}")
    print("| what | s | MB/s | over the plain copy |\n|---|---|---|---|")
    beside = {
        "push to a folder": "cp -r there",
        "clone from a folder": "cp -r back",
        "push to a bucket": "obstore alone, there",
        "clone from a bucket": "obstore alone, back",
    }
    for ours, plain in beside.items():
        print(f"| {plain} | {best[plain]:.2f} | {size / best[plain] / 1e6:.0f} | 1 |")
        print(f"| {ours} | {best[ours]:.2f} | {size / best[ours] / 1e6:.0f} | {best[ours] / best[plain]:.2f} |")


if __name__ == "__main__":
    main()
