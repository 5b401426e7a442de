"""Versions of hubs, opened as checkpoints: fetched once into a store in the user's cache, then read from there."""

from __future__ import annotations

from blake3 import blake3

from ...credentials import machine
from ...errors import AddressError, HubError, RefError
from ...progress import SILENT, Progress
from ..checkpoint import StoreCheckpoint
from ..store import Store
from .addresses import HubAddress
from .moving import receive
from .opening import hub_remote


def fetched(address: HubAddress, *, threads: int | None = None, progress: Progress = SILENT) -> StoreCheckpoint:
    """Open a version of a repository on a hub; of what the cache has, nothing is fetched again.

    Args:
        address: the repository and revision; its HEAD when that is None.
        threads: how many.
        progress: told of every byte.

    Raises:
        AddressError: the hub has no such repository or revision, or does not give it.
        StoreError: the hub cannot be reached, or the cache cannot be written.
        CorruptError: what arrived is not what its id says.
    """
    shown = address.url + (f"@{address.rev}" if address.rev else "")
    try:
        remote = hub_remote(address)
        if not remote.exists():
            raise AddressError(
                "the hub has no such repository, or none that you may see",
                got=shown,
                hint=f"cofuse login {address.hub}",
            )
        commit, tree = remote.resolve(address.rev)
    except HubError as error:
        raise AddressError(
            error.what, where=error.where, got=error.got or shown, expected=error.expected, hint=error.hint
        ) from None
    except RefError as error:
        raise AddressError(error.what, where=address.url, got=error.got or shown, hint=error.hint) from None
    # One store a repository, named by a hash: a name that somebody typed becomes no path.
    folder = machine().cache / "hubs" / f"{blake3(address.url.encode()).hexdigest()[:32]}.cofuse"
    folder.parent.mkdir(parents=True, exist_ok=True)
    store = Store.init(folder)
    receive(store, remote, trees=[tree], threads=threads, progress=progress)
    return StoreCheckpoint(store.objects, tree, f"{address.url}@{commit[:12]}")
