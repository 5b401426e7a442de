"""A store in an S3 bucket: a whole one, that needs nothing beside the bucket.

Keys are as in docs/formats/store.md, "A bucket". What is there is never written again: objects because they are what
their id says, refs because every move of a ref is a small object of its own, with the next number in its name, and put
only where there is none of that name. So a compare-and-swap asks of the server what every S3 server has
(If-None-Match: *), and the moves are the ref's history. HEAD alone is put anew.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from ...checkpoint import for_each, map_each
from ...errors import CorruptError, RefError, StoreError
from ..objects import ID, Objects
from ..places import FORMAT
from ..receiving import LARGE, PIECE, Advance, ObjectFile, OnDisk
from ..refs import HEADS, REMOTES, TAGS, check_full_name
from .remote import Move
from .s3 import Bucket

ASKED_ONE_BY_ONE = 256  # above this many, listing the bucket takes fewer requests
SETTLING = 0.3, 10.0  # at least so many seconds, and so many times as long as putting a ref took
_PARTS = re.compile(rb"cofuse parts 1\n(\d{1,13}) ([0-9a-f]{32})\n")
_MOVE = re.compile(r"(refs/.+)/\.(\d{10})", re.DOTALL)
_GONE = "0" * 64  # where a ref has moved that has been removed
_MAX_REF = 200  # bytes of a move
_THREADS = 8  # for small things


class BucketRemote:
    """A bucket, or what is below a prefix in it; see `Remote`.

    Args:
        bucket: where to ask.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.name = bucket.name
        self._atomic: bool | None = None

    def exists(self) -> bool:
        """See `Remote`."""
        found = self._bucket.get("format", 0, 1000)
        if found is not None and found.data != FORMAT:
            raise StoreError("a store of another format", where=self.name, got=ascii(found.data[:40]))
        return found is not None

    def make(self, head: str) -> None:
        """See `Remote`."""
        if not self.exists():
            if self._bucket.some() - {"HEAD"}:
                raise StoreError(
                    "the bucket holds other things", where=self.name, hint="use a prefix: s3://bucket/prefix"
                )
            self._bucket.create("HEAD", f"ref: {head}\n".encode())
            self._bucket.create("format", FORMAT)

    def refs(self) -> dict[str, str]:
        """See `Remote`."""
        return {ref: commit for ref, commit in self.all_refs().items() if ref.startswith((HEADS, TAGS))}

    def all_refs(self) -> dict[str, str]:
        """The same, of every kind; a hub has some of its own."""
        last = self._last("refs")
        names = sorted(last)
        found = map_each(lambda ref: self._follow(ref, last[ref])[1], names, _THREADS)
        return {ref: commit for ref, commit in zip(names, found, strict=True) if commit is not None}

    def head(self) -> str:
        """See `Remote`."""
        found = self._bucket.get("HEAD", 0, 4096)
        text = "" if found is None else found.data.decode("utf-8", "replace")
        ref = text.removeprefix("ref: ").removesuffix("\n")
        if text != f"ref: {ref}\n" or not ref.startswith(HEADS):
            raise RefError("HEAD is damaged", where=self.name, got=ascii(text[:80]))
        return check_full_name(ref)

    def point_head(self, ref: str) -> None:
        """Make HEAD name another branch; of two who do so at once, the later wins."""
        self._bucket.put("HEAD", f"ref: {check_full_name(ref)}\n".encode())

    def pin(self, commit: str) -> None:
        """Note a commit that is there, and that somebody needs, though no ref leads to it."""
        self._bucket.create(f"pinned/{commit}", b"")

    def pinned(self) -> set[str]:
        """Commits that were noted."""
        return {key.removeprefix("pinned/") for key in self._bucket.list("pinned")}

    def clear(self) -> None:
        """Remove the store, with all that is in it."""
        for_each(self._bucket.remove, sorted(self._bucket.list("")), _THREADS)

    def has(self, ids: Collection[str], *, threads: int) -> set[str]:
        """See `Remote`."""
        if len(ids) <= ASKED_ONE_BY_ONE:
            asked = sorted(ids)
            there = map_each(lambda object_id: self._bucket.size(_key(object_id)) is not None, asked, threads)
            return {object_id for object_id, yes in zip(asked, there, strict=True) if yes}
        prefixes = sorted({object_id[:2] for object_id in ids})
        listed = map_each(lambda prefix: self._bucket.list(f"objects/{prefix}"), prefixes, threads)
        keys = set[str]().union(*listed)
        return {object_id for object_id in ids if _key(object_id) in keys}

    @contextlib.contextmanager
    def open(self, object_id: str) -> Iterator[ObjectFile]:
        """See `Source`."""
        if not ID.fullmatch(object_id):
            raise StoreError("not an object id", where=self.name, got=ascii(object_id[:80]))
        key = _key(object_id)
        found = self._bucket.get(key, 0, PIECE)
        if found is None:
            raise CorruptError("object is missing", where=self.name, got=object_id)
        match = _PARTS.fullmatch(found.data)
        if match is not None:
            yield _InParts(self._bucket, f"{key}/{match.group(2).decode()}", int(match.group(1)))
        else:
            yield _InOne(self._bucket, key, found.data, found.size)

    @contextlib.contextmanager
    def delivering(self) -> Iterator[_Delivery]:
        """See `Remote`."""
        yield _Delivery(self._bucket)

    def update(self, moves: Sequence[Move]) -> None:
        """See `Remote`."""
        self._check_conditions()
        began = time.monotonic()
        made = [(move, key) for move in moves if (key := self._try(move)) is not None]
        if made and not self._atomic:
            time.sleep(max(SETTLING[0], SETTLING[1] * (time.monotonic() - began)))
        for move, key in made:
            # Also where putting it was refused: an answer that got lost makes its own repetition be refused.
            found = self._bucket.get(key, 0, _MAX_REF)
            now = None if found is None else self._commit(key, found.data)
            if now != move.new:
                raise _moved(move, now)

    def _try(self, move: Move) -> str | None:
        """Put the next move of a ref: its key, None where the ref is where it shall go."""
        below = self._last(check_full_name(move.ref))
        number, now = self._follow(move.ref, below.pop(move.ref, 0))
        if now == move.new:
            return None
        if now != move.expect:
            raise _moved(move, now)
        if move.new is not None:
            self._check_room(move.ref, below)
        key = f"{move.ref}/.{number + 1:010}"
        self._bucket.create(key, f"{move.new or _GONE}\n".encode())
        return key

    def _last(self, below: str) -> dict[str, int]:
        """The refs at and below a name, each with the number of its last move that is listed."""
        last: dict[str, int] = {}
        for key in self._bucket.list(below):
            match = _MOVE.fullmatch(key)
            if match is None or key.startswith(REMOTES):
                raise RefError("not a ref", where=self.name, got=ascii(key[:80]))
            ref = check_full_name(match.group(1))
            last[ref] = max(last.get(ref, 0), int(match.group(2)))
        return last

    def _follow(self, ref: str, number: int) -> tuple[int, str | None]:
        """The last move and its commit; `number` is one that is there. Listings may lag behind, so later ones are asked for."""
        commit = None
        if number:
            found = self._bucket.get(f"{ref}/.{number:010}", 0, _MAX_REF)
            commit = None if found is None else self._commit(ref, found.data)
        while (found := self._bucket.get(f"{ref}/.{number + 1:010}", 0, _MAX_REF)) is not None:
            number, commit = number + 1, self._commit(ref, found.data)
        return number, commit

    def _commit(self, where: str, move: bytes) -> str | None:
        match = re.fullmatch(rb"([0-9a-f]{64})\n", move)
        if match is None:
            raise RefError("the ref is damaged", where=f"{self.name}: {where}", got=ascii(move[:80]))
        commit = match.group(1).decode()
        return None if commit == _GONE else commit

    def _check_room(self, ref: str, below: Mapping[str, int]) -> None:
        parts = ref.split("/")
        above = {"/".join(parts[:n]): 0 for n in range(3, len(parts))}
        for other, number in {**above, **below}.items():
            if self._follow(other, number)[1] is not None:
                raise RefError("another ref is in the way", where=ref, got=other)

    def _check_conditions(self) -> None:
        """Find out what the server makes of conditions, on a key that is there and keeps its bytes whatever it does.

        Raises:
            StoreError: it ignores them, so that two pushes could both win.
        """
        if self._atomic is None:
            if self._bucket.create("format", FORMAT):
                raise StoreError(
                    "the server ignores conditions (If-None-Match), so two pushes could both win",
                    where=self.name,
                    hint="push to a server that keeps to them; this one can be cloned and fetched from",
                )
            # Who answers this compares and swaps in one step. OpenStack Swift does not know it, and its If-None-Match
            # lets through what comes at the same moment; there one waits until such a moment is over, and looks again.
            self._atomic = self._bucket.refuses_to_replace("format", FORMAT)


class _Delivery:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def put(
        self, objects: Objects, ids: Collection[str], *, threads: int, sizes: Mapping[str, int], advance: Advance
    ) -> None:
        # What an object is a delta against comes first: a kill must not leave one that cannot be read.
        levels: dict[int, dict[str, str | None]] = {}
        for object_id in ids:
            bases = objects.bases(object_id)
            levels.setdefault(len(bases), {})[object_id] = bases[0] if bases else None

        def send(object_id: str, inner: int = 1) -> None:
            weight = sizes.get(object_id, 0)
            self._send(objects, object_id, level[object_id], inner, lambda share: advance(share * weight))

        for _, level in sorted(levels.items()):
            large = [object_id for object_id in level if objects.stored_bytes(object_id) > LARGE]
            for_each(send, [object_id for object_id in level if object_id not in large], threads)
            for object_id in large:  # one after another, each with all threads
                send(object_id, threads)

    def put_commits(self, objects: Objects, ids: Sequence[str], *, threads: int) -> None:
        # In any order: a commit in a bucket says nothing of its parents, and each is asked for.
        self.put(objects, ids, threads=threads, sizes={}, advance=lambda _: None)

    def rely_on(self, ids: Iterable[str]) -> None:
        pass

    def sync(self) -> None:
        pass

    def _send(self, objects: Objects, object_id: str, base: str | None, threads: int, advance: Advance) -> None:
        with objects.opened(object_id) as found:
            if found.envelope.base not in (None, base):
                raise StoreError("an object has been kept differently meanwhile", where=found.path, hint="push again")
            for k in range(found.envelope.head.chunks):
                found.chunk(k, every_bit=True)  # damage is not handed on
            file = OnDisk(found.path, found.fd)
            size = file.size
            if size <= PIECE:
                self._bucket.create(_key(object_id), file.read(0, size))
                advance(1)
                return
            # Parts are named after all the bytes, for the same object may be kept differently by somebody else.
            starts = range(0, size, PIECE)
            h = blake3()
            for at in starts:
                h.update(file.read(at, min(size, at + PIECE)))
            name = h.hexdigest()[:32]
            folder = f"{_key(object_id)}/{name}"
            there = self._bucket.list(folder)

            def send(at: int) -> None:
                stop = min(size, at + PIECE)
                if _part(folder, at) not in there:
                    self._bucket.create(_part(folder, at), file.read(at, stop))
                advance((stop - at) / size)

            for_each(send, starts, threads)
            self._bucket.create(_key(object_id), f"cofuse parts 1\n{size} {name}\n".encode())


@dataclass(frozen=True, slots=True)
class _InOne:
    bucket: Bucket
    key: str
    first: bytes
    size: int

    def read(self, start: int, stop: int) -> bytes:
        if stop <= len(self.first):
            return self.first[start:stop]
        found = self.bucket.get(self.key, start, stop)
        return b"" if found is None else found.data


@dataclass(frozen=True, slots=True)
class _InParts:
    bucket: Bucket
    folder: str
    size: int

    def read(self, start: int, stop: int) -> bytes:
        pieces = []
        for at in range(start - start % PIECE, stop, PIECE):
            found = self.bucket.get(_part(self.folder, at), max(start - at, 0), min(stop - at, PIECE))
            if found is None:
                break
            pieces.append(found.data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)  # one part is asked for, as a rule: no copy


def _key(object_id: str) -> str:
    return f"objects/{object_id[:2]}/{object_id[2:]}"


def _part(folder: str, at: int) -> str:
    return f"{folder}/part-{at // PIECE:06}"


def _moved(move: Move, now: str | None) -> RefError:
    return RefError(
        "the ref has moved",
        where=move.ref,
        got=now or "no such ref",
        expected=move.expect or "no such ref",
        hint="look at what is new there, then do it again on top of that",
    )
