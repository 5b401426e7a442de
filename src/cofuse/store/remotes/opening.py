"""From an address to the remote: one row a scheme."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...credentials import machine
from ...errors import AddressError, HubError, StoreError
from .addresses import HubAddress, parse
from .bucket import BucketRemote
from .folder import FolderRemote
from .http import PATIENCE, Http
from .hub import HubRemote
from .remote import Remote
from .s3 import Account, Bucket
from .settings import check_no_secret


def open_remote(address: str, account: Account | None = None) -> Remote:
    """The store at an address, there already or not.

    Args:
        address: a folder, `file:///folder`, `s3://bucket/prefix`, or `https://hub/owner/name`.
        account: for a bucket: endpoint, region and keys.

    Raises:
        StoreError: not such an address.
    """
    check_no_secret(address)
    for scheme, opener in SCHEMES.items():
        if address.startswith(scheme):
            return opener(address, account or Account())
    if "://" in address:
        raise StoreError("no remote of this kind", got=ascii(address[:200]), expected=f"a folder, {', '.join(SCHEMES)}")
    return FolderRemote(Path(absolute(address)))


def absolute(address: str) -> str:
    """The address as it is kept: a path that does not depend on the working folder.

    >>> absolute("s3://bucket/models")
    's3://bucket/models'
    """
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))


def _folder(address: str, account: Account) -> Remote:
    url = urlsplit(address)
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise StoreError("not a folder", got=ascii(address[:200]), expected="file:///absolute/path")
    return FolderRemote(Path(unquote(url.path)))


def _bucket(address: str, account: Account) -> Remote:
    if account.endpoint is not None:
        check_no_secret(account.endpoint)
    return BucketRemote(Bucket(address, account))


def _hub(address: str, account: Account) -> Remote:
    return open_hub(address, patience=account.patience)


def open_hub(address: str, *, patience: float = PATIENCE) -> HubRemote:
    """The repository at an address on a hub; what token is shown, this machine knows (`cofuse login`).

    Raises:
        StoreError: not such an address.
    """
    try:
        found = parse(address)
        if found.rev is not None:
            raise StoreError(
                "a repository, not a revision of it, is wanted", got=ascii(address[:200]), expected=found.url
            )
        return hub_remote(found, patience=patience)
    except (AddressError, HubError) as error:
        raise StoreError(
            error.what, where=error.where, got=error.got, expected=error.expected, hint=error.hint
        ) from None


def hub_remote(found: HubAddress, *, patience: float = PATIENCE) -> HubRemote:
    """The repository of an address that has been taken apart.

    Raises:
        HubError: the connection would not be encrypted, or the tokens cannot be read.
    """
    here = machine()
    http = Http(found.hub, here.token_for(found.hub), patience=patience, plain=here.plain)
    return HubRemote(http, found)


SCHEMES: Mapping[str, Callable[[str, Account], Remote]] = {
    "file://": _folder,
    "s3://": _bucket,
    "https://": _hub,
    "http://": _hub,
}
