"""Moving bytes to and from a hub: downloads beside nginx, uploads beside `dd conv=fsync`, 64 uploads of which some are cut.

    python benchmarks/hub_transfer.py [--gib 1] [--rounds 5] [--uploads 64] [--folder WHERE]

The hub has one process, as nginx has one worker; clients are on the same machine. Rounds alternate, and the ratio of the medians
is what counts. A download is the file of one object, which the client reads and forgets; an upload is hashed, and on the disk when it is
answered. Memory is what the hub's processes have of their own (Private of smaps_rollup), before, and at its highest during
all of it. nginx and dd have to be installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from servers import hub_on, nginx_on

from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account, make_token
from cofuse.hub.access.visitor import Visitor
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import make
from cofuse.hub.settings import Settings
from cofuse.store.envelope import Head
from cofuse.store.writing import writing

MIB = 2**20
PIECE = 4 * MIB  # the size of a chunk of an object


def filled(folder: Path, mib: int) -> tuple[str, str, Path]:
    """A hub's folder with a repository that has one large object: a token, the object's URL and its file."""
    hub = Hub(Settings(data=folder))
    hub.database.migrate()
    with hub.database.writing() as change:
        ann = make_account(change, "ann", Role.MAINTAIN)
        _, secret = make_token(change, ann, Role.MAINTAIN)
        repository = make(change, Visitor(ann.id, "ann", Role.MAINTAIN, Role.MAINTAIN), hub.repositories, "large")
    source = np.random.default_rng(0)
    objects = hub.store(repository).objects
    with writing(objects) as pen:
        made = pen.put(Head("file", mib * MIB), (source.bytes(PIECE) for _ in range(mib * MIB // PIECE)))
        pen.sync()
    hub.close()
    return secret, f"/api/v1/repositories/ann/large/store/objects/{made}", objects.path(made)


def download(port: int, path: str, secret: str, size: int) -> float:
    """Bytes a second."""
    block = bytearray(MIB)
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
        )
        got = 0
        while n := raw.recv_into(block):
            got += n
    assert size <= got < size + 2000, (got, size)
    return got / (time.perf_counter() - began)


def upload(port: int, secret: str, file: Path) -> float:
    """Bytes a second of a whole upload, from its announcement to the answer."""
    began = time.perf_counter()
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {secret}"}, timeout=120
    ) as client:
        size = file.stat().st_size
        key = client.post("/api/v1/repositories/ann/large/uploads", json={"size": size}).json()["key"]
        with socket.create_connection(("127.0.0.1", port)) as raw, open(file, "rb") as data:
            head = f"PATCH /api/v1/uploads/{key} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
            raw.sendall(f"{head}Upload-Offset: 0\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode())
            raw.sendfile(data)
            said = b""
            while more := raw.recv(65536):
                said += more
        took = time.perf_counter() - began
        answer = json.loads(said.partition(b"\r\n\r\n")[2])
        assert answer["done"], said
        client.delete(f"/api/v1/uploads/{key}").raise_for_status()
    return size / took


def dd(file: Path, folder: Path) -> float:
    """Bytes a second of the same file, copied to the same disk."""
    there = folder / "copied"
    began = time.perf_counter()
    subprocess.run(["dd", f"if={file}", f"of={there}", "bs=4M", "conv=fsync"], check=True, stderr=subprocess.DEVNULL)
    took = time.perf_counter() - began
    size = there.stat().st_size
    there.unlink()
    return size / took


def with_cuts(port: int, secret: str, data: Path, uploads: int, size: int) -> tuple[float, int]:
    """Uploads at once, one connection in ten cut at a random byte: bytes a second, and how many were cut; all arrive whole."""
    cuts = 0

    def one(n: int) -> None:
        nonlocal cuts
        source = random.Random(n)
        body = source.randbytes(size)
        wanted = {"size": size, "sha256": hashlib.sha256(body).hexdigest()}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {secret}"}, timeout=120
        ) as client:
            key = client.post("/api/v1/repositories/ann/large/uploads", json=wanted).json()["key"]
            at = 0
            while at < size:
                piece = body[at : at + size // 8]
                if source.random() < 0.1:
                    cuts += 1
                    with socket.create_connection(("127.0.0.1", port)) as raw:
                        head = f"PATCH /api/v1/uploads/{key} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
                        raw.sendall(f"{head}Upload-Offset: {at}\r\nContent-Length: {len(piece)}\r\n\r\n".encode())
                        raw.sendall(piece[: source.randrange(len(piece))])
                else:
                    answer = client.patch(f"/api/v1/uploads/{key}", content=piece, headers={"Upload-Offset": str(at)})
                    assert answer.status_code in (200, 409), answer.text
                now = asked(client, key)
                assert now >= at, "what was acknowledged is lost"
                at = now
            assert (data / "uploads" / key).read_bytes() == body
            client.delete(f"/api/v1/uploads/{key}").raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(uploads) as pool:
        list(pool.map(one, range(uploads)))
    return uploads * size / (time.perf_counter() - began), cuts


def asked(client: httpx.Client, key: str) -> int:
    """Where an upload is; a connection whose last request was refused early may be closed by now, so twice."""
    for _ in range(3):
        try:
            return int(client.head(f"/api/v1/uploads/{key}").headers["Upload-Offset"])
        except httpx.TransportError:
            continue
    raise RuntimeError("the hub does not answer")


class Memory(threading.Thread):
    """What the hub's processes have of their own: now and at its highest."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process = process
        self.first = self.highest = self.now()
        self.start()

    def now(self) -> int:
        ids = {self._process}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent in ids:
                ids.add(int(folder.name))
        found = 0
        for one in ids:
            try:
                rows = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            found += sum(int(row.split()[1]) for row in rows if row.startswith("Private_")) * 1024
        return found

    def run(self) -> None:
        while True:
            self.highest = max(self.highest, self.now())
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--uploads", type=int, default=64)
    parser.add_argument("--each", type=int, default=16, help="MiB of each of those uploads")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="transfer", dir=chosen.folder))
    folder.chmod(0o755)
    try:
        secret, url, file = filled(folder / "hub", round(chosen.gib * 1024))
        size = file.stat().st_size
        with hub_on(folder / "hub") as (port, process), nginx_on(folder, file) as other:
            download(port, url, secret, size), download(other, "/one", secret, size)  # both warm
            upload(port, secret, file)
            memory = Memory(process)
            rates: dict[str, list[float]] = {"hub": [], "nginx": [], "upload": [], "dd": []}
            for _ in range(chosen.rounds):
                rates["hub"].append(download(port, url, secret, size))
                rates["nginx"].append(download(other, "/one", secret, size))
                rates["upload"].append(upload(port, secret, file))
                rates["dd"].append(dd(file, folder))
            for ours, theirs in (("hub", "nginx"), ("upload", "dd")):
                mine, others = statistics.median(rates[ours]), statistics.median(rates[theirs])
                print(
                    f"{ours}: {mine / MIB:.0f} MiB/s, {theirs}: {others / MIB:.0f} MiB/s, ratio {mine / others:.2f}"
                    f"   {[round(r / MIB) for r in rates[ours]]} {[round(r / MIB) for r in rates[theirs]]}",
                    flush=True,
                )
            rate, cuts = with_cuts(port, secret, folder / "hub", chosen.uploads, chosen.each * MIB)
        print(f"{chosen.uploads} uploads of {chosen.each} MiB, {cuts} cut: {rate / MIB:.0f} MiB/s, all whole")
        print(
            f"memory: {memory.first / MIB:.0f} MiB before, {memory.highest / MIB:.0f} at its highest,"
            f" +{(memory.highest - memory.first) / MIB:.0f}"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
