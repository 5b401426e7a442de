"""A small model on a real hub, and people who contribute to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.store import Store
from cofuse.store.remotes import Push, deliver, push, receive
from cofuse.store.remotes.addresses import parse
from cofuse.store.remotes.http import Http
from cofuse.store.remotes.hub import HubRemote

from ..serving import HubServer

SIZES = {"encoder.layer.0.weight": (32, 16), "encoder.layer.0.bias": (32,), "encoder.layer.1.weight": (16, 32)}
CARD = b"---\nlicense: mit\n---\n# The base\n"
SECONDS = 90.0


class Model:
    """A repository on a hub, with a base on `main`; `ann` looks after it.

    Args:
        server: the hub.
        folder: for the people's own stores.
        name: of the repository.
        policy: of `main`, YAML.
        scale: times as many rows as in `SIZES`.
    """

    def __init__(self, server: HubServer, folder: Path, name: str, policy: str = "", scale: int = 1) -> None:
        self.server, self.folder = server, folder
        self.secret = server.token("ann", "maintain")
        self.full = server.repository(self.secret, name)
        self.address = f"{server.url}/{self.full}"
        self.api = f"/api/v1/repositories/{self.full}"
        self.here = Store.init(folder / f"{name}.cofuse")
        random = torch.Generator().manual_seed(0)
        weights = {n: torch.randn(s[0] * scale, *s[1:], generator=random) for n, s in SIZES.items()}
        files = {"config.json": b'{"model_type": "tiny"}\n', "README.md": CARD}
        self.base = self.here.commit(Memory(weights, files=files), message="base", branch="main").id
        push(self.here, self.remote(self.secret), [Push("refs/heads/main", self.base)])
        if policy:
            self.policy(policy)

    def remote(self, secret: str) -> HubRemote:
        """The repository's store, for whoever has the token."""
        return HubRemote(Http(self.server.url, secret, patience=60), parse(self.address))

    def policy(self, text: str, branch: str = "main") -> None:
        """Give a branch a policy."""
        self.ask("PUT", f"/policies/{branch}", {"text": text})

    def ask(self, method: str, path: str, value: Any = None, *, expect: int | None = None) -> Any:
        """Ask the API in the maintainer's name."""
        with self.server.client(self.secret) as client:
            answer = client.request(method, self.api + path, json=value)
        if expect is not None:
            assert answer.status_code == expect, answer.text
        else:
            assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    def tuned(self, base: str, seed: int, scale: float = 0.1) -> Checkpoint:
        """A contribution's weights: the base's and noise that depends on the seed alone."""
        if base not in self.here.objects:
            receive(self.here, self.remote(self.secret), [base])
        random, before = torch.Generator().manual_seed(seed), self.here.checkpoint(base)
        weights = {}
        for name in before.names():
            own = before.read(name)
            weights[name] = own + scale * torch.randn(own.shape, generator=random)
        return Memory(weights, files={"config.json": before.files["config.json"]})

    def offer(
        self, who: str, seed: int, *, base: str | None = None, scale: float = 0.1, examples: int | None = None
    ) -> int:
        """Contribute in somebody's name; gives the contribution's number."""
        secret, base = self.server.token(who), base or self.tip()
        commit = self.here.commit(
            self.tuned(base, seed, scale), message=f"seed {seed}", branch=f"{who}-{seed}", parents=[base], author=who
        ).id
        deliver(self.here, self.remote(secret), [commit])
        said = {"title": f"seed {seed}", "base": base, "commit": commit, "examples": examples, "licence": "apache-2.0"}
        with self.server.client(secret) as client:
            answer = client.post(f"{self.api}/contributions", json={**said, "nonce": f"{who}-{seed}-{base[:8]}"})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["number"])

    def tip(self) -> str:
        """The hub's commit of `main`."""
        return str(self.remote(self.secret).refs()["refs/heads/main"])

    def releases(self) -> list[dict[str, Any]]:
        """All of them, oldest first."""
        return list(reversed(self.ask("GET", "/releases?limit=200")["releases"]))

    def rounds(self) -> list[dict[str, Any]]:
        """All of them, oldest first."""
        return list(reversed(self.ask("GET", "/rounds?limit=200")["rounds"]))

    def states(self) -> dict[int, str]:
        """Of contributions, by number."""
        return {one["number"]: one["state"] for one in self.ask("GET", "/contributions?limit=200")["contributions"]}

    def until(self, done: Callable[[], object], seconds: float = SECONDS) -> Any:
        """Wait until something is so; gives what it gave."""
        give_up = time.monotonic() + seconds
        while True:
            try:
                if found := done():
                    return found
            except httpx.TransportError:
                pass
            assert time.monotonic() < give_up, (self.rounds(), self.states(), self.jobs())
            time.sleep(0.05)

    def released(self, count: int, seconds: float = SECONDS) -> list[dict[str, Any]]:
        """Wait until there are so many releases; gives them."""
        found: list[dict[str, Any]] = self.until(lambda: len(self.releases()) >= count and self.releases(), seconds)
        assert len(found) == count
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, oldest first."""
        return list(reversed(self.ask("GET", "/jobs?limit=200")["jobs"]))

    def store(self) -> Store:
        """The repository's store on the hub's disk."""
        from cofuse.hub.database import Repository

        with self.server.hub.database.reading() as look:
            row = next(one for one in look.query(Repository) if one.full_name == self.full)
        return self.server.hub.store(row)

    def check(self) -> None:
        """What must always be so: every release is whole, in the branch's history, under its tag, once."""
        store = self.store()
        releases = self.releases()
        history = {commit.id for commit in store.log(self.tip())}
        assert len({one["version"] for one in releases}) == len({one["commit"] for one in releases}) == len(releases)
        assert len({one["round"] for one in releases}) == len(releases)
        tags = store.tags()
        for one in releases:
            assert tags[one["version"]] == one["commit"]
            assert one["commit"] in history
            assert f"# {self.full} ".encode() in store.checkpoint(one["commit"]).files["README.md"]
        published = [one for one in self.rounds() if one["state"] == "published"]
        assert sorted(one["commit"] for one in published) == sorted(one["commit"] for one in releases)
        health = store.fsck()
        assert health.ok, health.damaged
