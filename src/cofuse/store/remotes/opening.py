"""From an address to the remote: one row a scheme."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import StoreError
from .bucket import BucketRemote
from .folder import FolderRemote
from .remote import Remote
from .s3 import Account, Bucket
from .settings import check_no_secret


def open_remote(address: str, account: Account | None = None) -> Remote:
    """The store at an address, there already or not.

    Args:
        address: a folder, `file:///folder`, or `s3://bucket/prefix`.
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
    raise StoreError("hubs cannot be cloned from or pushed to in this version", got=ascii(address[:200]))


SCHEMES: Mapping[str, Callable[[str, Account], Remote]] = {
    "file://": _folder,
    "s3://": _bucket,
    "https://": _hub,
}
