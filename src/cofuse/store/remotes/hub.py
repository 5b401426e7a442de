"""A store on a hub. What is said to it, byte by byte, is in docs/formats/hub.md."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from ...checkpoint import for_each, map_each
from ...errors import CorruptError, FullError, HubError, RefError, StoreError
from ..objects import ID, Objects
from ..places import FORMAT, explained, make_folder
from ..receiving import LARGE, PIECE, Advance, ObjectFile, OnDisk
from ..refs import HEADS, TAGS, check_ref_name
from .addresses import HubAddress, quoted
from .http import Answer, Answered, Http, Unreachable
from .remote import Move

FRAME = struct.Struct("<32sQ")  # id, bytes of the object's file; then the file
BATCH = 8 * 1024 * 1024  # bytes that are sent in one request, if they are of several objects
BATCH_OBJECTS = 256
ASKED = 5_000  # ids in one request
TRIES = 20  # of an upload that gets on

T = TypeVar("T")


class HubRemote:
    """A repository on a hub; see `Remote`.

    Args:
        http: the hub.
        address: the repository.
    """

    def __init__(self, http: Http, address: HubAddress) -> None:
        self.http = http
        self.address = address
        self.name = address.url
        self._store = f"{address.path}/store"

    def exists(self) -> bool:
        """See `Remote`."""
        try:
            found = self.http.json("GET", self._store)
        except HubError as error:
            if isinstance(error, Answered) and error.status == 404:
                return False
            raise self._explained(error, RefError) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT.decode().strip():
            raise StoreError("a store of another format", where=self.name, got=ascii(str(found)[:40]))
        return True

    def make(self, head: str) -> None:
        """See `Remote`; made private, to be opened by those who want that."""
        with self._in_our_words():
            with contextlib.suppress(_There):
                self._ask_to_make()
            self.http.ask("PUT", f"{self._store}/head", value={"ref": head})

    def refs(self) -> dict[str, str]:
        """See `Remote`."""
        found = self._read().get("refs")
        if not isinstance(found, dict):
            raise RefError("the hub's refs are damaged", where=self.name)
        for ref, commit in found.items():
            if not ref.startswith((HEADS, TAGS)) or not ID.fullmatch(str(commit)):
                raise RefError("not a ref", where=self.name, got=ascii(ref[:80]))
            check_ref_name(ref.removeprefix(HEADS).removeprefix(TAGS))
        return dict(sorted(found.items()))

    def head(self) -> str:
        """See `Remote`."""
        ref = str(self._read().get("head"))
        if not ref.startswith(HEADS):
            raise RefError("HEAD is damaged", where=self.name, got=ascii(ref[:80]))
        check_ref_name(ref.removeprefix(HEADS))
        return ref

    def has(self, ids: Collection[str], *, threads: int) -> set[str]:
        """See `Remote`."""
        asked = sorted(ids)

        def ask(at: int) -> list[str]:
            some = asked[at : at + ASKED]
            with self._in_our_words():
                return list(self.http.json("POST", f"{self._store}/has", value={"ids": some}, again=True)["ids"])

        there = set[str]().union(*map_each(ask, range(0, len(asked), ASKED), threads))
        return there.intersection(asked)

    def resolve(self, rev: str | None) -> tuple[str, str]:
        """The commit that a revision names there, and its tree.

        Raises:
            RefError: it names nothing.
            StoreError: the hub cannot be reached, or has no such repository.
        """
        try:
            with self._in_our_words():
                found = self.http.json("GET", f"{self._store}/revision", query={"rev": rev or "HEAD"})
        except StoreError as error:
            if isinstance(error.__context__, Answered) and error.__context__.status in (404, 409) and self.exists():
                raise RefError(error.what, where=self.name, got=error.got, hint=error.hint) from None
            raise
        commit, tree = str(found.get("commit")), str(found.get("tree"))
        if not ID.fullmatch(commit) or not ID.fullmatch(tree):
            raise RefError("not a commit", where=self.name, got=ascii(commit[:80]))
        return commit, tree

    @contextlib.contextmanager
    def open(self, object_id: str) -> Iterator[ObjectFile]:
        """See `Source`."""
        if not ID.fullmatch(object_id):
            raise StoreError("not an object id", where=self.name, got=ascii(object_id[:80]))
        first = self._range(object_id, 0, PIECE)
        _, _, size = first.headers.get("content-range", f"//{len(first.data)}").rpartition("/")
        yield _Remote(self, object_id, first.data, int(size) if size.isdigit() else -1, first.headers.get("etag"))

    @contextlib.contextmanager
    def delivering(self) -> Iterator[_Delivery]:
        """See `Remote`."""
        yield _Delivery(self)

    def update(self, moves: Sequence[Move]) -> None:
        """See `Remote`."""
        asked = [{"ref": m.ref, "new": m.new, "expect": m.expect} for m in moves]
        with self._in_our_words(RefError):
            # Again does no harm: a ref that is where it shall go is left alone.
            self.http.ask("POST", f"{self._store}/refs", value={"moves": asked}, again=True)

    def send(self, body: Callable[[], Iterable[bytes]], size: int) -> None:
        """Send a batch of objects."""
        headers = {"Content-Length": str(size), "Content-Type": "application/vnd.cofuse.objects"}
        with self._in_our_words():
            self.http.ask("POST", f"{self._store}/objects", body=body, headers=headers, again=True)

    def upload(self, file: OnDisk, key: str | None, began: Callable[[str], None], advance: Advance) -> str:
        """Upload a file, from where an earlier attempt was cut short; gives the upload's key.

        Args:
            file: what.
            key: of the earlier attempt.
            began: told of the key of a new one.
            advance: told of what has arrived, in parts of the whole.
        """
        size, at = file.size, 0
        with self._in_our_words():
            found = None if key is None else self._asked(key, size)
            if found is None:
                begun = self.http.json("POST", f"{self.address.path}/uploads", value={"size": size}, again=True)
                key = str(begun["key"])
                began(key)
            else:
                at = found
                advance(at / size)
            where = f"/api/v1/uploads/{quoted(str(key))}"
            tries = TRIES
            while at < size:
                try:
                    answer = self.http.ask(
                        "PATCH",
                        where,
                        headers={"Upload-Offset": str(at), "Content-Length": str(size - at)},
                        body=lambda at=at: _pieces(file, at, size),
                    )
                    now = int(answer.headers.get("upload-offset", "-1"))
                except (Unreachable, Answered) as error:
                    if isinstance(error, Answered) and error.status not in (408, 409, 502, 503, 504):
                        raise
                    now = self._asked(str(key), size) or 0
                    tries = TRIES if now > at else tries - 1
                    if not tries:
                        raise
                advance((now - at) / size)
                at = now
        return str(key)

    def keep(self, object_id: str, key: str) -> None:
        """Make an object of an upload."""
        with self._in_our_words():
            try:
                self.http.ask("POST", f"{self._store}/objects/{object_id}", value={"upload": key}, again=True)
            except Answered as error:
                # An answer that got lost makes its own repetition be refused.
                if error.status != 404 or object_id not in self.has([object_id], threads=1):
                    raise

    def read(self, object_id: str, start: int, stop: int, tag: str | None) -> bytes:
        """Bytes of an object's file, which must still be the same."""
        got = self._range(object_id, start, stop)
        if got.headers.get("etag") != tag:
            raise StoreError("an object has been kept differently meanwhile", where=self.name, hint="fetch again")
        return got.data

    def _range(self, object_id: str, start: int, stop: int) -> Answer:
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        try:
            got = self.http.ask("GET", f"{self._store}/objects/{object_id}", headers=headers)
        except HubError as error:
            if isinstance(error, Answered) and error.status == 404:
                raise CorruptError("object is missing", where=self.name, got=object_id) from None
            raise self._explained(error) from None
        if got.status != 206 and (start or len(got.data) > stop):
            raise StoreError("the hub, or what is before it, does not give parts of files", where=self.name)
        return got

    def _read(self) -> dict[str, object]:
        with self._in_our_words(RefError):
            return dict(self.http.json("GET", self._store))

    def _asked(self, key: str, size: int) -> int | None:
        """Where an upload is; None where there is no such upload, or it is of something else."""
        try:
            found = self.http.json("GET", f"/api/v1/uploads/{quoted(key)}")
        except Answered as error:
            if error.status in (404, 422):
                return None
            raise
        return int(found["offset"]) if found["size"] == size else None

    def _ask_to_make(self) -> None:
        wanted = {"name": self.address.name, "owner": self.address.owner, "private": True}
        try:
            self.http.ask("POST", "/api/v1/repositories", value=wanted)
        except Answered as error:
            if error.status == 409:
                raise _There from None
            raise

    @contextlib.contextmanager
    def _in_our_words(self, moved: type[StoreError] = StoreError) -> Iterator[None]:
        try:
            yield
        except HubError as error:
            raise self._explained(error, moved) from error
        except (KeyError, TypeError, ValueError):
            raise StoreError("the hub's answer is not what it should be", where=self.name) from None

    def _explained(self, error: HubError, moved: type[StoreError] = StoreError) -> StoreError:
        status = error.status if isinstance(error, Answered) else 0
        kinds: dict[int, type[StoreError]] = {409: moved, 507: FullError}
        where = self.name if error.where in (None, self.http.url) else error.where
        kind = kinds.get(status, StoreError)
        return kind(error.what, where=where, got=error.got, expected=error.expected, hint=error.hint)


class _There(Exception):  # noqa: N818
    """Somebody else has made it meanwhile."""


@dataclass(frozen=True, slots=True)
class _Remote:
    """An object's file on a hub, whose first piece is here."""

    hub: HubRemote
    object_id: str
    first: bytes
    size: int
    tag: str | None

    def read(self, start: int, stop: int) -> bytes:
        if stop <= len(self.first) or len(self.first) == self.size:
            return self.first[start:stop]
        return self.hub.read(self.object_id, start, stop, self.tag)


class _Delivery:
    def __init__(self, remote: HubRemote) -> None:
        self._remote = remote

    def put(
        self, objects: Objects, ids: Collection[str], *, threads: int, sizes: Mapping[str, int], advance: Advance
    ) -> None:
        # What an object is a delta against comes first, in another request: those of one level are sent in any order.
        levels: dict[int, list[str]] = {}
        for object_id in ids:
            levels.setdefault(len(objects.bases(object_id)), []).append(object_id)

        def send(some: list[str]) -> None:
            self._send(objects, some)
            advance(sum(sizes.get(object_id, 0) for object_id in some))

        for _, level in sorted(levels.items()):
            stored = {object_id: objects.stored_bytes(object_id) for object_id in level}
            for_each(send, _batches({i: size for i, size in stored.items() if size <= LARGE}), threads)

            def send_large(object_id: str) -> None:
                weight = sizes.get(object_id, 0)
                self._send_large(objects, object_id, lambda share: advance(share * weight))

            for_each(send_large, [i for i, size in stored.items() if size > LARGE], threads)

    def put_commits(self, objects: Objects, ids: Sequence[str], *, threads: int) -> None:
        # In their order: on a hub a commit that is there has its parents there.
        for some in _batches({object_id: objects.stored_bytes(object_id) for object_id in ids}):
            self._send(objects, some)

    def rely_on(self, ids: Iterable[str]) -> None:
        pass  # a tree that arrives there keeps what it needs, a commit its tree

    def sync(self) -> None:
        pass  # what has been answered is on the hub's disk

    def _send(self, objects: Objects, ids: Sequence[str]) -> None:
        sizes = {object_id: objects.stored_bytes(object_id) for object_id in ids}

        def body() -> Iterator[bytes]:
            for object_id, size in sizes.items():
                with _verified(objects, object_id, size) as file:
                    yield FRAME.pack(bytes.fromhex(object_id), size)
                    yield from _pieces(file, 0, size)

        self._remote.send(body, sum(FRAME.size + size for size in sizes.values()))

    def _send_large(self, objects: Objects, object_id: str, advance: Advance) -> None:
        """Send one as an upload, whose key is kept here, so that another process can go on."""
        size = objects.stored_bytes(object_id)
        name = blake3(f"{self._remote.name} {object_id} {size}".encode()).hexdigest()
        note = objects.places.root / "sending" / name

        def began(key: str) -> None:
            make_folder(note.parent)
            with explained(note):
                note.write_text(key)

        with _verified(objects, object_id, size) as file:
            self._remote.keep(object_id, self._remote.upload(file, _noted(note), began, advance))
        note.unlink(missing_ok=True)


def _noted(note: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return note.read_text("ascii").strip() or None
    return None


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Objects in groups that are worth a request."""
    some: list[str] = []
    taken = 0
    for object_id, size in sizes.items():
        if some and (taken + size > BATCH or len(some) >= BATCH_OBJECTS):
            yield some
            some, taken = [], 0
        some.append(object_id)
        taken += size
    if some:
        yield some


@contextlib.contextmanager
def _verified(objects: Objects, object_id: str, size: int) -> Iterator[OnDisk]:
    """An object's file, all of which has been verified: damage is not handed on."""
    with objects.opened(object_id) as found:
        for k in range(found.envelope.head.chunks):
            found.chunk(k, every_bit=True)
        file = OnDisk(found.path, found.fd)
        if file.size != size:
            raise StoreError("an object has been kept differently meanwhile", where=found.path, hint="push again")
        yield file


def _pieces(file: OnDisk, start: int, stop: int) -> Iterator[bytes]:
    for at in range(start, stop, PIECE // 8):
        yield file.read(at, min(stop, at + PIECE // 8))
