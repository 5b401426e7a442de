"""Named remotes, kept in the store: an address and how to reach it; never a key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ...errors import CorruptError, StoreError
from ..places import Places, explained
from ..refs import check_ref_name

DEFAULT = "origin"
OPTIONS = ("endpoint", "region")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Named:
    """A remote as it is kept.

    Attributes:
        address: a folder's absolute path or file:// URL, s3://bucket/prefix, or https://hub/owner/name.
        options: for a bucket, `endpoint` and `region`.
    """

    address: str
    options: Mapping[str, str] = field(default_factory=dict)


class Settings:
    """The remotes of a store, by name; in the file `remotes` of its folder.

    Args:
        places: the store's paths.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._path = places.root / "remotes"

    def all(self) -> dict[str, Named]:
        """Remotes by name.

        Raises:
            CorruptError: the file is damaged.
        """
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError("cannot read the remotes", where=self._path, got=error.strerror) from None
        try:
            found = {name: _named(entry) for name, entry in json.loads(raw).items()}
            for name in found:
                check_remote_name(name)
        except (ValueError, AttributeError, TypeError, RecursionError, StoreError) as error:
            raise CorruptError("the list of remotes is damaged", where=self._path, got=str(error)[:80]) from None
        return found

    def get(self, name: str) -> Named:
        """A remote.

        Raises:
            StoreError: there is none of that name.
        """
        found = self.all()
        if name not in found:
            raise StoreError(
                "no such remote",
                got=ascii(name[:80]),
                expected=", ".join(sorted(found)) or "none is known yet",
                hint="add it: cofuse remote add NAME ADDRESS",
            )
        return found[name]

    def add(self, name: str, remote: Named) -> None:
        """Keep a remote; the same one again is no error.

        Raises:
            StoreError: another has that name, or there is a key in the address.
        """
        check_remote_name(name)
        check_no_secret(remote.address)
        for option, value in remote.options.items():
            if option not in OPTIONS:
                raise StoreError("no such option of a remote", got=option, expected=", ".join(OPTIONS))
            check_no_secret(value)
        with self._places.locked():
            found = self.all()
            if found.get(name, remote) != remote:
                raise StoreError("there is a remote of that name", got=name, where=found[name].address)
            self._write({**found, name: remote})

    def remove(self, name: str) -> None:
        """Forget a remote.

        Raises:
            StoreError: there is none of that name.
        """
        with self._places.locked():
            self.get(name)
            self._write({other: remote for other, remote in self.all().items() if other != name})

    def _write(self, remotes: Mapping[str, Named]) -> None:
        entries = {name: {"address": r.address, **r.options} for name, r in sorted(remotes.items())}
        with explained(self._path):
            self._places.replace(self._path, (json.dumps(entries, indent=1) + "\n").encode())


def check_remote_name(name: str) -> str:
    """Refuse a name that could not be part of a ref.

    Raises:
        StoreError: it is one.

    >>> check_remote_name("origin")
    'origin'
    """
    if not _NAME.fullmatch(name):
        raise StoreError("not a name for a remote", got=ascii(name[:80]), expected="letters, digits, . _ and -")
    return check_ref_name(name)


def check_no_secret(url: str) -> None:
    """Refuse a URL with a user or a password in it: it would be kept, and shown.

    Raises:
        StoreError: there is one, which the error does not repeat.
    """
    if "://" in url and not url.startswith("file:") and "@" in urlsplit(url).netloc:
        raise StoreError(
            "there is a name or a key in the address",
            hint="keys come from the environment (AWS_ACCESS_KEY_ID) or, for a hub, from cofuse login",
        )


def _named(entry: Mapping[str, str]) -> Named:
    if "address" not in entry or not all(isinstance(value, str) for value in entry.values()):
        raise ValueError("not a remote")
    return Named(entry["address"], {key: value for key, value in entry.items() if key != "address"})
