"""Metadata reads of a hub with 100,000 contributions, each with a token, beside nginx giving a file of the same size.

    python benchmarks/hub_metadata.py [--contributions 100000] [--rounds 3] [--seconds 5]

A third of the requests ask for the repository, two thirds for one contribution, drawn from all. Both servers have one process;
the load comes from wrk (16 connections, one thread), on the same machine. Rounds alternate; the ratio of the medians is what
counts. wrk and nginx have to be installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
from servers import hub_on, nginx_on
from sqlalchemy import insert, select

from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account, make_token
from cofuse.hub.access.visitor import Visitor
from cofuse.hub.database import Contribution, Repository
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import make
from cofuse.hub.settings import Settings

MIX = """
local paths = {{}}
math.randomseed(os.time())
request = function()
  local path = "{repository}"
  if math.random(3) > 1 then path = path .. "/contributions/" .. math.random({count}) end
  return wrk.format("GET", path, {{["Authorization"] = "Bearer {token}"}})
end
"""


def filled(folder: Path, count: int) -> tuple[str, str]:
    """A hub's folder with one repository and so many contributions; a token, and the path of one of them."""
    hub = Hub(Settings(data=folder))
    hub.database.migrate()
    now = time.time()
    with hub.database.writing() as change:
        ann = make_account(change, "ann", Role.MAINTAIN)
        _, secret = make_token(change, ann, Role.MAINTAIN)
        visitor = Visitor(ann.id, "ann", Role.MAINTAIN, Role.MAINTAIN)
        repository = make(change, visitor, hub.repositories, "minilm")
        shared = {
            "repository_id": repository.id,
            "account_id": ann.id,
            "branch": "main",
            "base": "a" * 64,
            "source": "patch",
            "sent": {"patch": "x" * 32},
            "state": "open",
            "reason": "",
            "commit": "b" * 64,
            "message": "finetuned on what people asked in March",
            "data": "4,000 questions, in-house",
            "licence": "apache-2.0",
            "metrics": {"accuracy": 81.2},
            "labels": ["questions"],
            "created": now,
            "updated": now,
        }
        own = [
            {**shared, "number": i, "title": f"contribution {i}", "nonce": f"{i:032x}", "content": f"{i:064x}"}
            for i in range(1, count + 1)
        ]
        change.execute(insert(Contribution), own)
        assert change.scalar(select(Repository.id)) == repository.id
    hub.close()
    return secret, "/api/v1/repositories/ann/minilm"


def load(url: str, seconds: int, script: Path | None) -> tuple[float, float]:
    """Requests a second, and the 99th percentile of the latency in ms."""
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--latency", *(["-s", str(script)] if script else []), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    assert wrong is None, said
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", said).groups()  # type: ignore[union-attr]
    return rate, float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contributions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    options = parser.parse_args()
    for program in ("wrk", "nginx"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed")
    with tempfile.TemporaryDirectory() as root:
        data, other = Path(root) / "hub", Path(root) / "nginx"
        other.mkdir()
        token, repository = filled(data, options.contributions)
        script = Path(root) / "mix.lua"
        script.write_text(MIX.format(repository=repository, count=options.contributions, token=token))
        with hub_on(data) as (port, _):
            hub = f"http://127.0.0.1:{port}"
            body = httpx.get(f"{hub}{repository}/contributions/1", headers={"Authorization": f"Bearer {token}"})
            body.raise_for_status()
            given = other / "body"
            given.write_bytes(body.content)
            with nginx_on(other, given) as beside:
                load(hub, 1, script)
                rows = [
                    (
                        load(hub, options.seconds, script),
                        load(f"http://127.0.0.1:{beside}/one", options.seconds, None),
                    )
                    for _ in range(options.rounds)
                ]
    ours, theirs = ([statistics.median(row[side][k] for row in rows) for k in (0, 1)] for side in (0, 1))
    print(f"hub:   {ours[0]:,.0f} requests a second, 99 % within {ours[1]:.1f} ms")
    print(
        f"nginx: {theirs[0]:,.0f} requests a second, 99 % within {theirs[1]:.1f} ms (a file of {len(body.content)} bytes)"
    )
    print(f"ratio: {100 * ours[0] / theirs[0]:.1f} %")


if __name__ == "__main__":
    main()
