"""Files of a version, and the commits before it."""

from __future__ import annotations

import json
from itertools import islice
from urllib.parse import quote

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from ...store.commits import history
from ..api.values import After
from ..faults import NoFile
from ..huggingface.downloads import COUNTED
from ..huggingface.versions import DEFAULT, VERSIONS
from .depends import Reads
from .versions import latest, rows, split

router = APIRouter(include_in_schema=False)
COMMITS = 40  # of a page
_RECORD = 60_000  # letters of a record that are shown


@router.get("/{owner}/{name}/tree")
def top(page: Reads) -> Response:
    """The files of main."""
    return page.go(page.at("tree", DEFAULT))


@router.get("/{owner}/{name}/tree/{rest:path}")
@router.get("/{owner}/{name}/blob/{rest:path}")
def tree(page: Reads, rest: str) -> Response:
    """The files of a folder of a version."""
    repository = page.seen.repository
    if rest.strip("/") == DEFAULT and latest(page.hub, repository) is None:
        return page.show(
            "files", tab="files", version=None, revision=DEFAULT, below="", rows=[], branches=[], tags=[], tree=None
        )
    revision, version, below = split(page.hub, repository, rest.strip("/"))
    found = rows(version, below)
    if not found:
        if below in version.tree.files:
            return page.go(page.at("download", revision, *below.split("/")))
        raise NoFile("no such folder in this version", got=ascii(below[:200]))
    store = page.hub.store(repository)
    return page.show(
        "files",
        tab="files",
        version=version,
        revision=revision,
        below=below,
        rows=found,
        branches=sorted(store.branches()),
        tags=sorted(store.tags(), reverse=True)[:100],
        tree=version.tree,
    )


@router.get("/{owner}/{name}/download/{rest:path}")
def download(page: Reads, rest: str) -> Response:
    """A file, for whoever is signed in here; programs have `resolve`, where tokens count."""
    _, version, path = split(page.hub, page.seen.repository, rest)
    entry = version.entry(path)
    if path == COUNTED:
        page.hub.tally.add(page.seen.repository.id)
    name = quote(path.rpartition("/")[2], safe="")
    # Never shown by the browser: what somebody uploaded would act as a page of the hub.
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Cache-Control": "private, no-cache",
        "Vary": "Cookie",
    }
    return FileResponse(version.place(entry), headers=headers, media_type="application/octet-stream")


@router.get("/{owner}/{name}/commits")
@router.get("/{owner}/{name}/commits/{revision:path}")
def commits(page: Reads, revision: str = DEFAULT, after: After = 0) -> Response:
    """Commits, the newest first."""
    repository = page.seen.repository
    if latest(page.hub, repository) is None:
        return page.show("commits", tab="commits", revision=revision, commits=[], after=None, named={})
    version = VERSIONS.get(page.hub, repository, revision)
    store = version.store
    # Counted from the first: from a commit on, a merged line beside it would be left out.
    found = list(islice(history(store.objects, version.commit.id), after, after + COMMITS + 1))
    named: dict[str, list[str]] = {}
    for name, commit in [*store.tags().items(), *store.branches().items()]:
        named.setdefault(commit, []).append(name)
    rest = after + COMMITS if len(found) > COMMITS else None
    return page.show("commits", tab="commits", revision=revision, commits=found[:COMMITS], after=rest, named=named)


@router.get("/{owner}/{name}/commit/{revision:path}")
def commit(page: Reads, revision: str) -> Response:
    """A commit: what it says of how it was made."""
    version = VERSIONS.get(page.hub, page.seen.repository, revision)
    record = json.dumps(dict(version.commit.record), indent=2, ensure_ascii=False)
    return page.show("commit", tab="commits", version=version, one=version.commit, record=record[:_RECORD])
