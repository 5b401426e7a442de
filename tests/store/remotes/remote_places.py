"""Real places for remotes: a folder, a bucket on a Swift server of the tests' own, a repository on a hub of theirs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import obstore
from hub.serving import HubServer
from hub.swift import Swift
from obstore.store import S3Store
from sqlalchemy import select

from cofuse.checkpoint import TensorSpec, build_header
from cofuse.hub.database import Repository
from cofuse.hub.repositories import store_folder
from cofuse.store import Store
from cofuse.store.remotes import Named, Remote, clone, open_remote


@dataclass
class Place:
    """Somewhere a remote can be, and its insides: what is under which name there, past all of our code."""

    address: str
    server: Swift | None = None
    client: S3Store | None = field(default=None, repr=False)
    folder: Callable[[], Path | None] | None = field(default=None, repr=False)  # of the store, where it is elsewhere

    def remote(self, patience: float = 20.0) -> Remote:
        return open_remote(self.address, self.server.account(patience) if self.server else None)

    @property
    def named(self) -> Named:
        return Named(self.address, {"endpoint": self.server.endpoint} if self.server else {})

    def clone(self, folder: Path) -> Store:
        return clone(self.remote(), folder, self.named)

    @property
    def root(self) -> Path:
        """The store's own folder."""
        return Path(self.address) / ".cofuse" if self.folder is None else self.folder() or Path("/nowhere")

    def files(self) -> dict[str, object]:
        """What is there, and something that changes when it is written again; not what a hub makes anew when it likes."""
        if self.client is not None:
            return {e["path"]: (e["e_tag"], e["last_modified"]) for page in obstore.list(self.client) for e in page}
        root = self.root
        return {
            str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_size)
            for path in root.rglob("*")
            if not path.is_relative_to(root / "cache") and path.is_file()
        }

    def objects(self) -> dict[str, object]:
        return {name: what for name, what in self.files().items() if name.startswith("objects/")}

    def get(self, name: str) -> bytes:
        if self.client is not None:
            return bytes(obstore.get(self.client, name).bytes())
        return (self.root / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        if self.client is not None:
            obstore.put(self.client, name, data)
            return
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def delete(self, name: str) -> None:
        if self.client is not None:
            obstore.delete(self.client, name)
        else:
            (self.root / name).unlink()

    def point(self, ref: str, commit: str) -> None:
        """Make a ref behind everybody's back."""
        if self.client is not None:
            self.put(f"{ref}/.{1:010}", f"{commit}\n".encode())
        else:
            self.put(ref, f"{commit}\n".encode())

    def is_whole(self, folder: Path) -> bool:
        """Whether all that its refs reach is there and whole."""
        if self.client is None:
            return Store.open(self.root).fsck().ok
        return not self.remote().refs() or self.clone(folder).fsck().ok


def key(object_id: str) -> str:
    return f"objects/{object_id[:2]}/{object_id[2:]}"


def bucket(server: Swift, name: str, prefix: str = "") -> Place:
    server.make_bucket(name)
    address = f"s3://{name}" + (f"/{prefix}" if prefix else "")
    return Place(address, server, server.client(name, prefix))


def on_hub(server: HubServer, name: str) -> Place:
    """A repository that the first push makes."""

    def folder() -> Path | None:
        with server.hub.database.reading() as look:
            found = look.scalar(select(Repository).where(Repository.name == name))
        return None if found is None else store_folder(server.hub.repositories, found.key)

    return Place(f"{server.url}/ann/{name}", folder=folder)


def noise(folder: Path, tensors: dict[str, int], seed: int = 0) -> Path:
    """A folder whose tensors have so many bytes, which cannot be compressed."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    header = build_header({name: TensorSpec("U8", (size,)) for name, size in tensors.items()}, {})
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header.raw)
        for name in header.entries:
            file.write(random.Random(f"{seed} {name}").randbytes(tensors[name]))
    return folder


def until(true, seconds: float = 20.0) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """Wait until something is so; the loop's body is what is done meanwhile."""
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it did not come to be so"
        yield
        time.sleep(0.002)
