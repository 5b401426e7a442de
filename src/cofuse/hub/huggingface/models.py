"""A repository as Hugging Face's clients know a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from sqlalchemy import or_
from sqlalchemy.orm import Session as Transaction

from ...checkpoint.dtypes import DTYPES
from ...errors import CofuseError
from ...store.commits import Commit, history, load_commit
from ...store.trees import Plain, Weights, load_header, load_tree
from ..access.visitor import Visitor
from ..database import Account, Repository
from ..faults import Invalid, NoFile
from ..hub import Hub
from ..repositories import visible
from .versions import VERSIONS, Empty, Version, short

_LONGEST = 1024 * 1024  # bytes of a configuration that is looked at
_SORTS = {
    "createdAt": Repository.created,
    "lastModified": Repository.updated,
    "downloads": Repository.downloads,
    "trendingScore": Repository.downloads,
    "likes": Repository.id,
}
_DEEP = 500  # commits that are walked to find what last changed a file


def moment(seconds: float) -> str:
    """A time as clients read it.

    >>> moment(0)
    '1970-01-01T00:00:00.000Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(seconds % 1 * 1000):03d}Z"


def row(repository: Repository) -> dict[str, Any]:
    """What is said of a model in a list."""
    return {
        "_id": f"{repository.id:024x}",
        "id": repository.full_name,
        "modelId": repository.full_name,
        "author": repository.owner.name,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": repository.downloads,
        "likes": 0,
        "tags": [],
        "createdAt": moment(repository.created),
        "lastModified": moment(repository.updated),
        "sha": None,
        "siblings": [],
    }


def details(
    hub: Hub, repository: Repository, revision: str, *, blobs: bool = False, expand: Iterable[str] = ()
) -> dict[str, Any]:
    """All that is said of a model.

    Args:
        hub: whose.
        repository: the model.
        revision: which version.
        blobs: also sizes and hashes of files.
        expand: only these.

    Raises:
        NoRevision: it names nothing; but nothing yet is not wrong of a new model.
    """
    said = row(repository) | {"usedStorage": repository.bytes, "tags": ["safetensors"]}
    try:
        version = VERSIONS.get(hub, repository, revision)
    except Empty:
        pass
    else:
        card = version.front
        said |= {
            "sha": version.sha,
            "lastModified": moment(version.commit.time_ns / 1e9),
            "siblings": [_sibling(version, path, blobs=blobs) for path in sorted(version.tree.files)],
            "safetensors": safetensors(version),
            "config": _config(version),
            "cardData": card,
            "library_name": card.get("library_name", "transformers" if "config.json" in version.tree.files else None),
            "pipeline_tag": card.get("pipeline_tag"),
            "tags": ["safetensors", *(t for t in card.get("tags", ()) if isinstance(t, str))]
            if isinstance(card.get("tags", ()), list | tuple)
            else ["safetensors"],
        }
    wanted = set(expand)
    return {k: v for k, v in said.items() if k in {"_id", "id", *wanted}} if wanted else said


def listed(
    transaction: Transaction,
    visitor: Visitor,
    *,
    author: str | None,
    search: str | None,
    sort: str | None,
    limit: int,
    after: int,
) -> list[Repository]:
    """Models that a visitor may see.

    Raises:
        Invalid: they cannot be sorted like that.
    """
    if sort is not None and sort not in _SORTS:
        raise Invalid("models cannot be sorted by this", got=ascii(sort[:40]), expected=", ".join(_SORTS))
    query = visible(visitor)
    if author is not None:
        query = query.where(Account.name == author)
    if search:
        by_name = Repository.name.icontains(search, autoescape=True)
        query = query.where(or_(by_name, Account.name.icontains(search, autoescape=True)))
    order = Repository.id if sort is None else _SORTS[sort]
    query = query.order_by(order.desc(), Repository.id.desc()).offset(after).limit(limit)
    return list(transaction.scalars(query))


def listing(version: Version, folder: str, *, recursive: bool) -> list[dict[str, Any] | str]:
    """What is in a folder of a version: rows of folders, and paths of files, sorted by path.

    Raises:
        NoFile: there is no such folder.
    """
    inside = f"{folder}/" if folder else ""
    files = [path for path in version.tree.files if path.startswith(inside)]
    folders = [path for path in version.folders if path.startswith(inside)]
    if folder and not files:
        raise NoFile("no such folder in this version", got=ascii(folder[:200]))
    if not recursive:
        files = [path for path in files if "/" not in path[len(inside) :]]
        folders = [path for path in folders if "/" not in path[len(inside) :]]
    rows: list[tuple[str, dict[str, Any] | str]] = [(path, path) for path in files]
    rows += [(path, version.folder(path)) for path in folders]
    return [found for _, found in sorted(rows, key=lambda pair: pair[0])]


def last_commits(version: Version, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The commit that last changed each of some files, along first parents."""
    objects, here = version.store.objects, version.commit
    waiting = {path: version.tree.files.get(path) for path in paths}
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_DEEP):
        parent = load_commit(objects, here.parents[0]) if here.parents else None
        before = load_tree(objects, parent.tree).files if parent is not None else {}
        for path in [path for path, entry in waiting.items() if before.get(path) != entry or parent is None]:
            found[path] = {"id": short(here.id), "title": title(here), "date": moment(here.time_ns / 1e9)}
            del waiting[path]
        if parent is None or not waiting:
            break
        here = parent
    return found


def commits(version: Version, start: int, count: int, *, formatted: bool) -> list[dict[str, Any]]:
    """A version and those before it, newest first."""
    found = []
    for number, commit in enumerate(history(version.store.objects, version.commit.id)):
        if number >= start + count:
            break
        if number < start:
            continue
        first, _, rest = commit.message.partition("\n")
        said: dict[str, Any] = {
            "id": short(commit.id),
            "title": first,
            "message": rest.strip(),
            "authors": [{"user": commit.author or "nobody"}],
            "date": moment(commit.time_ns / 1e9),
        }
        if formatted:
            said["formatted"] = {"title": escape(first), "message": escape(rest.strip())}
        found.append(said)
    return found


def title(commit: Commit) -> str:
    """A commit's first line."""
    return commit.message.partition("\n")[0]


def safetensors(version: Version) -> dict[str, Any] | None:
    """How many parameters of which dtype a version has."""
    counts: dict[str, int] = {}
    for path, entry in version.tree.files.items():
        if isinstance(entry, Weights) and "/" not in path:
            header = load_header(version.store.objects, entry, path)
            for spot in header.entries.values():
                counts[spot.dtype] = counts.get(spot.dtype, 0) + (spot.end - spot.start) * 8 // DTYPES[spot.dtype][0]
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def _config(version: Version) -> Mapping[str, Any] | None:
    entry = version.tree.files.get("config.json")
    if not isinstance(entry, Plain) or entry.size > _LONGEST:
        return None
    try:
        found = json.loads(bytes(version.store.objects.read(entry.id, kind="file")))
    except (ValueError, RecursionError, CofuseError):
        return None
    wanted = ("architectures", "model_type", "tokenizer_config")
    return {key: found[key] for key in wanted if key in found} if isinstance(found, dict) else None


def _sibling(version: Version, path: str, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    item = version.item(path, version.tree.files[path])
    said = {"rfilename": path, "size": item["size"], "blobId": item["oid"]}
    if "lfs" in item:
        lfs = item["lfs"]
        said["lfs"] = {"size": lfs["size"], "sha256": lfs["oid"], "pointerSize": lfs["pointerSize"]}
    return said
