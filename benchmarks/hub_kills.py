"""What kills do to a hub: a server with workers is killed again and again while people contribute.

    python benchmarks/hub_kills.py --out FOLDER [--kills 300] [--minutes 60] [--workers 3] [--models 4]

Each model has its own contributors: two contribute, a round fuses, judges and publishes, two more contribute on the release,
and so on. Meanwhile workers, or the whole server, are killed (SIGKILL): at random times, and at named points: while bytes
arrive, and a moment after a job of each kind was claimed. At the end every release is checked, and all rounds are done again
on a fresh hub that nobody kills: each release must have the same commit id. Kills are lines of OUT/kills.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from hub.rounds.people import Model
from hub.serving import HubServer

from cofuse.errors import CofuseError

POLICY = "round: {contributions: 2}\nfuse: {method: norm_clip}"
POINTS = ("screen", "compare", "fuse", "judge", "publish")
LIMITS: dict[str, object] = {"limits.requests": 100_000_000, "logs": "json"}


class Contributors:
    """Two people who contribute to one model for as long as they may; what a kill cuts short is tried again."""

    def __init__(self, server: HubServer, folder: Path, number: int) -> None:
        self.server, self.number = server, number
        self.model = Model(server, folder, f"model-{number}", POLICY, scale=64)
        self.releases: list[str] = []
        self.acknowledged: dict[int, int] = {}  # seed -> number
        self.sending = threading.Event()
        self.error: BaseException | None = None

    def run(self, enough: threading.Event, rounds: int | None = None) -> None:
        """Contribute; stop after a release."""
        try:
            while not enough.is_set() and (rounds is None or len(self.releases) < rounds):
                base = self.releases[-1] if self.releases else self.model.base
                for i in range(2):
                    seed = 1000 * self.number + 2 * len(self.releases) + i
                    self.sending.set()
                    self.acknowledged[seed] = self._patiently(
                        lambda s=seed, b=base, i=i: self.model.offer(f"person-{i}", s, base=b)
                    )
                    self.sending.clear()
                wanted = len(self.releases) + 1
                found = self._patiently(lambda n=wanted: len(r := self.model.releases()) >= n and r)
                assert len(found) == wanted, "a round was released twice"
                self.releases.append(found[-1]["commit"])
        except BaseException as error:
            self.error = error
            raise

    def _patiently(self, ask: Any) -> Any:
        """What was asked for, as soon as the hub gives it."""
        give_up = time.monotonic() + 300
        while True:
            with contextlib.suppress(httpx.HTTPError, CofuseError, AssertionError):
                if found := ask():
                    return found
            if time.monotonic() > give_up:
                states = (
                    self.model.states(),
                    self.model.rounds(),
                    [j for j in self.model.jobs() if j["state"] != "done"],
                )
                raise TimeoutError(f"the hub did not go on: {states}")
            time.sleep(0.1)


class Log:
    """What the hub says, as it says it; read from its file."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is new."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    if isinstance(row, dict):
                        yield row


class Killer:
    """Kills, and sees what comes back."""

    def __init__(self, server: HubServer, people: list[Contributors], out: Path, seed: int) -> None:
        self.server, self.people, self.out = server, people, out / "kills.jsonl"
        self.log, self.random = Log(server.log), random.Random(seed)
        self.workers: set[int] = set()
        self.kills: list[dict[str, Any]] = []

    def kill(self) -> None:
        """One kill, and the wait until what it cut short goes on."""
        draw = self.random.random()
        if draw < 0.12:
            self._server("random" if draw < 0.06 else "upload")
        elif draw < 0.4:
            self._worker(None)
        else:
            self._worker(self.random.choice(POINTS))

    def _server(self, point: str) -> None:
        if point == "upload":
            self._until(lambda: any(one.sending.is_set() for one in self.people), 20)
        time.sleep(self.random.uniform(0, 0.3))
        began = time.monotonic()
        self.server.kill()
        self.workers.clear()
        self.server.start()
        recovered = self._until(lambda: any(r["what"] == "job claimed" for r in self._rows()), 60)
        self._note("server", point, time.monotonic() - began, recovered)

    def _worker(self, kind: str | None) -> None:
        victim: dict[str, Any] = {}

        def claimed() -> bool:
            for row in self._rows():
                if row["what"] == "job claimed" and (kind is None or row["kind"] == kind):
                    victim.update(row)
            return bool(victim)

        if not self._until(claimed, 20):
            return
        # A job of this model takes some tens of milliseconds: anywhere in it, or in its answer.
        time.sleep(self.random.uniform(0, 0.12) if kind else self.random.uniform(0, 1))
        pid = victim["pid"]
        if not _is_worker(pid):
            return
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.workers.discard(pid)
        key, ended = victim["key"], False

        def goes_on() -> bool:
            nonlocal ended
            for row in self._rows():
                ended |= row.get("key") == key and row["what"] in ("job done", "job claimed", "job lost")
                ended |= row["what"] == "job claimed" and row["fence"] >= 1 and row["job"] > victim["job"]
            return ended

        recovered = self._until(goes_on, 60)
        self._note("worker", kind or "random", time.monotonic() - began, recovered)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for row in self.log.rows():
            if row.get("what") == "worker started":
                self.workers.add(row["pid"])
            if "what" in row:
                yield row

    def _until(self, done: Any, seconds: float) -> bool:
        give_up = time.monotonic() + seconds
        while not done():
            if time.monotonic() > give_up or any(one.error for one in self.people):
                return False
            time.sleep(0.005)
        return True

    def _note(self, what: str, point: str, seconds: float, recovered: bool) -> None:
        tips = {one.model.full: _tip(one.model) for one in self.people}
        row = {
            "what": what,
            "point": point,
            "seconds": round(seconds, 2),
            "recovered": recovered,
            "half": [m for m, good in tips.items() if not good],
        }
        self.kills.append(row)
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _is_worker(pid: int) -> bool:
    try:
        return b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _tip(model: Model) -> bool:
    """Whether the branch, as it is on the disk at this moment, is at the base or at a whole release."""
    store = model.store()
    commit = store.load_commit("refs/heads/main")
    if commit.id == model.base:
        return True
    release = commit.record.get("release")
    files = store.checkpoint(commit.id).files
    return release is not None and release["version"].encode() in files["README.md"]


def measured(out: Path, kills: int, minutes: float, workers: int, models: int) -> list[list[str]]:
    """The killed run; gives each model's releases."""
    server = HubServer(out / "killed", LIMITS, workers=workers)
    enough = threading.Event()
    try:
        (out / "people").mkdir(exist_ok=True)
        people = [Contributors(server, out / "people", i) for i in range(models)]
        threads = [threading.Thread(target=one.run, args=(enough,), daemon=True) for one in people]
        for thread in threads:
            thread.start()
        killer, began = Killer(server, people, out, 7), time.monotonic()
        while len(killer.kills) < kills and time.monotonic() - began < 60 * minutes:
            killer.kill()
            if any(one.error for one in people):
                break
            if len(killer.kills) % 10 == 0:
                print(len(killer.kills), "kills", sum(len(p.releases) for p in people), "releases", flush=True)
        enough.set()
        for thread in threads:
            thread.join(300)
        for one in people:
            if one.error is not None:
                raise one.error
            one.model.check()
            states = one.model.states()
            lost = [n for n in one.acknowledged.values() if states.get(n) != "fused"]
            assert not lost, f"acknowledged and not in a release: {lost}"
            assert [r["commit"] for r in one.model.releases()] == one.releases
        told(killer.kills, people)
        return [one.releases for one in people]
    finally:
        server.close()


def told(kills: list[dict[str, Any]], people: list[Contributors]) -> None:
    """The figures."""
    seconds = sorted(k["seconds"] for k in kills)
    print(f"{len(kills)} kills: {dict(Counter(k['what'] + ' at ' + k['point'] for k in kills))}")
    print(
        f"recovered: median {median(seconds):.2f} s, longest {seconds[-1]:.2f} s; above 10 s: {sum(s > 10 for s in seconds)}"
    )
    print(
        f"not recovered: {sum(not k['recovered'] for k in kills)}; half published: {sum(bool(k['half']) for k in kills)}"
    )
    print(
        f"{sum(len(p.releases) for p in people)} releases, {sum(len(p.acknowledged) for p in people)} contributions, none lost"
    )


def again(out: Path, wanted: list[list[str]], workers: int) -> None:
    """The same rounds with nobody killed: the same commits."""
    server = HubServer(out / "calm", LIMITS, workers=workers)
    try:
        (out / "calm-people").mkdir(exist_ok=True)
        people = [Contributors(server, out / "calm-people", i) for i in range(len(wanted))]
        enough = threading.Event()
        threads = [
            threading.Thread(target=one.run, args=(enough, len(commits)), daemon=True)
            for one, commits in zip(people, wanted, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        same = sum(
            a == b
            for one, commits in zip(people, wanted, strict=True)
            for a, b in zip(one.releases, commits, strict=True)
        )
        print(f"the same commit ids without kills: {same} of {sum(map(len, wanted))}")
    finally:
        server.close()


def main() -> None:
    """Kill, check, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--models", type=int, default=4)
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    releases = measured(given.out, given.kills, given.minutes, given.workers, given.models)
    again(given.out, releases, given.workers)


if __name__ == "__main__":
    main()
