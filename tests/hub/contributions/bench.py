"""A hub on a folder, a repository with a base, contributors, and a worker's steps in this process."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from cofuse.checkpoint import Checkpoint, Memory, save
from cofuse.hub.database import Repository
from cofuse.hub.hub import Hub
from cofuse.hub.work import queue
from cofuse.hub.work.kinds import kind_of
from cofuse.hub.work.places import HubPlace
from cofuse.patch import make
from cofuse.progress import SILENT
from cofuse.store import Store

from ..serving import HubServer

_NAMES = itertools.count()
KINDS = ("screen", "compare")


def body(seed: int = 0, layers: int = 2, width: int = 16) -> dict[str, torch.Tensor]:
    """A small encoder's tensors."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {"embeddings.word_embeddings.weight": torch.randn(50, width, generator=draw)}
    for layer in range(layers):
        for part in ("attention.self.query", "attention.output.dense", "output.dense"):
            tensors[f"encoder.layer.{layer}.{part}.weight"] = torch.randn(width, width, generator=draw)
            tensors[f"encoder.layer.{layer}.{part}.bias"] = torch.randn(width, generator=draw)
    return tensors


def tuned(
    base: Mapping[str, torch.Tensor], seed: int, size: float = 0.02, *, common: float = 0.7
) -> dict[str, torch.Tensor]:
    """What training might give: a change of which a part is common to all seeds."""
    ours, theirs = torch.Generator().manual_seed(1000 + seed), torch.Generator().manual_seed(7)
    return {
        name: t
        + size * (common * torch.randn(t.shape, generator=theirs) + (1 - common) * torch.randn(t.shape, generator=ours))
        for name, t in base.items()
    }


@dataclass
class Bench:
    """A repository on a hub.

    Attributes:
        server: the hub.
        owner: the maintainer's token.
        name: owner/name.
        base: the base's tensors.
        commit: the base's commit.
    """

    server: HubServer
    owner: str
    name: str
    base: dict[str, torch.Tensor]
    commit: str
    folder: Path
    clients: dict[str, httpx.Client] = field(default_factory=dict)

    @classmethod
    def make(cls, server: HubServer, folder: Path) -> Bench:
        """A new repository with a base on main, owned by a maintainer of its own."""
        number = next(_NAMES)
        owner = server.token(f"owner{number}", "maintain")
        name = server.repository(owner, f"model{number}")
        made = cls(server, owner, name, body(), "", folder)
        made.commit = made.store.commit(made.checkpoint(made.base), message="the base", branch="main").id
        made.clients["owner"] = server.client(owner)
        return made

    def close(self) -> None:
        """Close everybody's client."""
        for client in self.clients.values():
            client.close()

    @property
    def hub(self) -> Hub:
        """The hub's folder and database, opened in this process."""
        return self.server.hub

    @property
    def row(self) -> Repository:
        """The repository's row."""
        owner, _, name = self.name.partition("/")
        from sqlalchemy import select

        from cofuse.hub.database import Account

        with self.hub.database.reading() as look:
            return look.scalars(
                select(Repository).join(Account).where(Account.name == owner, Repository.name == name)
            ).one()

    @property
    def store(self) -> Store:
        """Its store."""
        return self.hub.store(self.row)

    @property
    def url(self) -> str:
        """Of its contributions."""
        return f"/api/v1/repositories/{self.name}/contributions"

    def checkpoint(self, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
        """Tensors as a checkpoint."""
        return Memory(dict(tensors), files={"config.json": b'{"model_type": "bert"}'})

    def client(self, who: str, role: str = "contribute") -> httpx.Client:
        """Somebody's client."""
        if who not in self.clients:
            self.clients[who] = self.server.client(self.server.token(f"{who}-{self.name.replace('/', '-')}", role))
        return self.clients[who]

    def patch(self, tensors: Mapping[str, torch.Tensor], base: Checkpoint | None = None) -> bytes:
        """The bytes of the patch that gives these tensors."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            before = self.store.checkpoint(self.commit) if base is None else base
            return make(before, self.checkpoint(tensors), Path(folder) / "x.patch", threads=1).path.read_bytes()

    def weights(self, tensors: Mapping[str, torch.Tensor]) -> bytes:
        """The bytes of a safetensors file."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            save(self.checkpoint(tensors), Path(folder) / "m")
            return (Path(folder) / "m" / "model.safetensors").read_bytes()

    def upload(self, who: str, data: bytes) -> str:
        """Upload bytes."""
        client = self.client(who)
        begun = client.post(f"/api/v1/repositories/{self.name}/uploads", json={"size": len(data)})
        assert begun.status_code == 201, begun.text
        key = str(begun.json()["key"])
        sent = client.patch(f"/api/v1/uploads/{key}", content=data, headers={"Upload-Offset": "0"})
        assert sent.status_code == 200, sent.text
        return key

    def offer(self, who: str, **said: Any) -> httpx.Response:
        """Offer something."""
        return self.client(who).post(self.url, json={"title": "a change", **said})

    def offered(self, who: str, tensors: Mapping[str, torch.Tensor], **said: Any) -> int:
        """Offer tensors as a patch; its number."""
        answer = self.offer(who, patch=self.upload(who, self.patch(tensors)), **said)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["number"])

    def work(self, kinds: Sequence[str] = KINDS, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Do what is to be done, as a worker does; something else happens before it is handed in."""
        while (job := queue.claim(self.hub, "test", kinds)) is not None:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                place = HubPlace(self.hub, SILENT, Path(folder))
                answer = kind_of(job.kind).run(place, job.payload)
                meanwhile()
                queue.finish(self.hub, job.id, job.fence, answer)

    def look(self, number: int, who: str = "owner") -> dict[str, Any]:
        """A contribution as its page has it; checks by name."""
        answer = self.client(who).get(f"{self.url}/{number}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found | {"checks": {one["name"]: one for one in found["checks"]}}

    def events(self, number: int) -> list[str]:
        """What happened to it."""
        found = self.client("owner").get(f"{self.url}/{number}/comments").json()["comments"]
        return [one["event"] for one in found]
