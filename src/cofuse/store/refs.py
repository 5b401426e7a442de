"""Refs: names that point to commits, and are moved by compare-and-swap."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from types import EllipsisType

from ..checkpoint import sync_folder
from ..errors import RefError
from .objects import ID
from .places import Places, explained, make_folder

HEADS = "refs/heads/"
TAGS = "refs/tags/"
REMOTES = "refs/remotes/"  # then the remote's name and its branch: where that was when last seen
PULLS = "refs/pr/"  # what is offered: contributions of a hub, by number
ROUNDS = "refs/rounds/"  # what a round of a hub has made and not released yet, by the round's id
NAMESPACES = (HEADS, TAGS, REMOTES, PULLS, ROUNDS)
_BAD = re.compile(r"[\x00-\x20\x7f~^:?*\[\\#\u0080-\u009f\u2028\u2029]|\.\.|@\{|//")


def check_ref_name(name: str) -> str:
    """Refuse a branch's or tag's name that could be taken for a path, an option, an id or a step.

    Raises:
        RefError: it is one of those.

    >>> check_ref_name("runs/digits-2")
    'runs/digits-2'
    >>> check_ref_name("../main")
    Traceback (most recent call last):
    cofuse.errors.RefError: not a name for a ref
    ...
    """
    parts = name.split("/")
    if (
        not name.isprintable()
        or _BAD.search(name)
        or name.startswith("-")
        or name.endswith(".")
        or name in ("", "@", "HEAD")
        or ID.fullmatch(name)
        or any(p == "" or p.startswith(".") or p.endswith(".lock") or len(p.encode()) > 200 for p in parts)
        or len(name) > 1000
    ):
        raise RefError(
            "not a name for a ref",
            got=ascii(name[:80]),
            expected="as in git: letters, digits, - _ . and / between parts",
        )
    return name


def check_full_name(ref: str) -> str:
    """Refuse what is not the full name of a ref.

    Raises:
        RefError: it is not.

    >>> check_full_name("refs/heads/main")
    'refs/heads/main'
    """
    for under in NAMESPACES:
        if ref.startswith(under):
            check_ref_name(ref.removeprefix(under))
            return ref
    raise RefError("not a full ref name", got=ascii(ref[:80]), expected=", ".join(f"{n}..." for n in NAMESPACES))


class Refs:
    """The refs of a store, by full name (`refs/heads/main`).

    Args:
        places: the store's paths.
    """

    def __init__(self, places: Places) -> None:
        self._places = places

    def get(self, ref: str) -> str | None:
        """The commit that a ref points to, None when there is no such ref.

        Raises:
            RefError: the name is not allowed, or the ref's file is damaged.
        """
        path = self._path(ref)
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise RefError("cannot read a ref", where=path, got=error.strerror) from None
        text = raw.decode("ascii", "replace")
        if not text.endswith("\n") or not ID.fullmatch(text[:-1]):
            raise RefError("the ref is damaged", where=path, got=ascii(text[:80]), expected="a commit id")
        return text[:-1]

    def all(self, under: str) -> dict[str, str]:
        """Short names and commits of the refs under `refs/heads/` or `refs/tags/`, by name."""
        found = {}
        for ref in self.names(under):
            commit = self.get(ref)
            if commit is not None:
                found[ref.removeprefix(under)] = commit
        return found

    def names(self, under: str) -> list[str]:
        """Full names of the refs there."""
        return sorted(self._walk(self._places.root / under))

    def head(self) -> str:
        """The branch (full name) that HEAD names."""
        try:
            text = self._places.head.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise RefError("cannot read HEAD", where=self._places.head, got=error) from None
        ref = text.removeprefix("ref: ").removesuffix("\n")
        if text != f"ref: {ref}\n" or not ref.startswith(HEADS):
            raise RefError("HEAD is damaged", where=self._places.head, got=ascii(text[:80]))
        return ref

    def point_head(self, ref: str) -> None:
        """Make HEAD name another branch (full name), there or not."""
        check_ref_name(ref.removeprefix(HEADS))
        if not ref.startswith(HEADS):
            raise RefError("HEAD can only name a branch", got=ascii(ref[:80]))
        with self._places.locked(), explained(self._places.head):
            self._places.replace(self._places.head, f"ref: {ref}\n".encode())

    def update(self, ref: str, new: str | None, *, expect: str | EllipsisType | None = ...) -> None:
        """Move a ref, make it, or (with None) remove it; it lasts once this returns.

        A ref that is already where it shall go is left alone, whatever was expected: doing a thing again is no error.

        Args:
            ref: full name.
            new: a commit.
            expect: what it must point to now, None for nothing; anything when it is left out.

        Raises:
            RefError: it has moved, or another ref is in the way.
        """
        path = self._path(ref)
        with self._places.locked():
            now = self.get(ref)
            if now == new:
                return
            if expect is not ... and now != expect:
                raise RefError(
                    "the ref has moved",
                    where=ref,
                    got=now or "no such ref",
                    expected=expect or "no such ref",
                    hint="look at what is new there, then do it again on top of that",
                )
            # Under the lock, so that `gc` has not just removed it.
            if new is not None and not (self._places.objects / new[:2] / new[2:]).is_file():
                raise RefError("no such commit", where=ref, got=new)
            self._check_room(ref, path)
            with explained(path):
                if new is None:
                    path.unlink()
                    sync_folder(path.parent)
                    self._prune(path.parent)
                else:
                    make_folder(path.parent)
                    self._places.replace(path, f"{new}\n".encode())

    def keep(self, ids: Collection[str]) -> None:
        """Bring objects to where refs are kept, before somebody relies on them without a ref: they are there already."""

    def _path(self, ref: str) -> Path:
        return self._places.root / check_full_name(ref)

    def _check_room(self, ref: str, path: Path) -> None:
        if path.is_dir():
            inside = next(self._walk(path), None)
            if inside is not None:
                raise RefError("another ref is in the way", where=ref, got=inside)
            self._prune(path)
        for above in path.relative_to(self._places.root).parents:
            if (self._places.root / above).is_file():
                raise RefError("another ref is in the way", where=ref, got=above.as_posix())

    def _prune(self, folder: Path) -> None:
        """Remove empty folders, so that `a` can be made once `a/b` is gone."""
        for here, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                Path(here).rmdir()
        while folder.parent != self._places.refs and not folder.exists():
            folder = folder.parent
            try:
                folder.rmdir()
            except OSError:
                return

    def _walk(self, folder: Path) -> Iterator[str]:
        for here, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                yield (Path(here) / name).relative_to(self._places.root).as_posix()
