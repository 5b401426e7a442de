"""What clients read of models: what they are, which files they have, in which versions."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ...store.refs import HEADS, PULLS, TAGS
from ..access.roles import Role
from ..access.visitor import Visitor
from ..api.depends import Asks, Reads, TheHub
from ..faults import Invalid, NoRepository, TooLarge
from ..hub import Hub
from ..repositories import Seen
from . import models
from .addresses import revision_and_path, url_of
from .versions import DEFAULT, VERSIONS, Empty, short

router = APIRouter(tags=["hugging face"])
_PAGE, _EXPANDED = 1000, 50  # rows of a listing
_MOST_PATHS = 1000
# Query parameters of `list_models` that choose by what the hub does not keep.
_NOT_KEPT = ("filter", "pipeline_tag", "apps", "inference", "inference_provider", "num_parameters", "trained_dataset")
MODEL = "/api/models/{owner}/{name}"
_REST = {"skip": 5}  # parts of a path before the revision


@router.get("/api/models")
def list_models(
    hub: TheHub,
    visitor: Asks,
    request: Request,
    author: str | None = None,
    search: Annotated[str | None, Query(max_length=200)] = None,
    sort: str | None = None,
    full: bool = False,
    limit: Annotated[int, Query(ge=1)] = 100,
    cursor: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> JSONResponse:
    """Models that the visitor may see, newest first; pages by Link."""
    asked = [key for key in _NOT_KEPT if key in request.query_params]
    if asked:
        raise Invalid("models cannot be chosen by this", got=", ".join(asked), expected="search, author, sort, limit")
    count = min(limit, _EXPANDED if full else _PAGE)
    with hub.database.reading() as transaction:
        found = models.listed(transaction, visitor, author=author, search=search, sort=sort, limit=count, after=cursor)
    rows = [models.details(hub, one, DEFAULT) if full else models.row(one) for one in found]
    return _page(hub, request, rows, cursor + count if len(found) == count else None)


@router.get("/api/models/{name}")
def one_without_owner(visitor: Asks, name: str) -> None:
    """Models of this hub have owners."""
    raise NoRepository("no such repository", got=name[:200], expected="owner/name")


@router.get(MODEL)
def model(
    hub: TheHub,
    seen: Reads,
    expand: Annotated[list[str], Query(default_factory=list)],
    bracketed: Annotated[list[str], Query(alias="expand[]", default_factory=list)],
    blobs: bool = False,
) -> dict[str, Any]:
    """A model, as its main branch is."""
    return models.details(hub, seen.repository, DEFAULT, blobs=blobs, expand=[*expand, *bracketed])


@router.get(MODEL + "/revision/{rest:path}")
def model_at(
    hub: TheHub,
    seen: Reads,
    request: Request,
    expand: Annotated[list[str], Query(default_factory=list)],
    bracketed: Annotated[list[str], Query(alias="expand[]", default_factory=list)],
    blobs: bool = False,
) -> dict[str, Any]:
    """A model, as it is in a version."""
    revision, _ = revision_and_path(request, **_REST)
    return models.details(hub, seen.repository, revision, blobs=blobs, expand=[*expand, *bracketed])


@router.get(MODEL + "/tree/{rest:path}")
def tree(
    hub: TheHub,
    seen: Reads,
    request: Request,
    recursive: bool = False,
    expand: bool = False,
    limit: Annotated[int, Query(ge=1)] = _PAGE,
    cursor: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> JSONResponse:
    """Files and folders of a version; pages by Link."""
    revision, path = revision_and_path(request, **_REST)
    try:
        version = VERSIONS.get(hub, seen.repository, revision)
    except Empty:
        return JSONResponse([])
    found = models.listing(version, path.rstrip("/"), recursive=recursive)
    count = min(limit, _EXPANDED if expand else _PAGE)
    page = found[cursor : cursor + count]
    rows = [version.item(one, version.entry(one)) if isinstance(one, str) else one for one in page]
    if expand:
        last = models.last_commits(version, [one for one in page if isinstance(one, str)])
        rows = [{**row, "lastCommit": last[row["path"]]} if row["path"] in last else row for row in rows]
    response = _page(hub, request, rows, cursor + count if len(found) > cursor + count else None)
    response.headers["X-Repo-Commit"] = version.sha
    return response


@router.post(MODEL + "/paths-info/{rest:path}")
async def paths_info(hub: TheHub, seen: Reads, request: Request) -> list[dict[str, Any]]:
    """Some files and folders of a version; what is not there is left out."""
    revision, _ = revision_and_path(request, **_REST)
    if "json" in request.headers.get("content-type", ""):
        try:
            body = await request.json()
            paths, expand = body["paths"], bool(body.get("expand"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Invalid("not a list of paths", expected='{"paths": [...]}') from None
    else:
        form = await request.form()
        paths, expand = form.getlist("paths"), str(form.get("expand")).lower() == "true"
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise Invalid("not a list of paths", expected='{"paths": [...]}')
    if len(paths) > _MOST_PATHS:
        raise TooLarge("too many paths", got=len(paths), expected=f"at most {_MOST_PATHS}")
    return await run_in_threadpool(_paths_info, hub, seen, revision, paths, expand)


def _paths_info(hub: Hub, seen: Seen, revision: str, paths: list[str], expand: bool) -> list[dict[str, Any]]:
    version = VERSIONS.get(hub, seen.repository, revision)
    wanted = [path.strip("/") for path in dict.fromkeys(paths)]
    rows = [version.item(path, version.entry(path)) for path in wanted if path in version.tree.files]
    if expand:
        last = models.last_commits(version, [row["path"] for row in rows])
        rows = [{**row, "lastCommit": last[row["path"]]} if row["path"] in last else row for row in rows]
    return rows + [version.folder(path) for path in wanted if path in version.folders]


@router.get(MODEL + "/refs")
def refs(hub: TheHub, seen: Reads, include_prs: bool = False) -> dict[str, Any]:
    """Branches, tags and, if asked for, contributions."""
    store = hub.store(seen.repository)

    def under(prefix: str, shown: str = "") -> list[dict[str, str]]:
        rows = store.refs.all(prefix).items()
        return [{"name": shown + n, "ref": prefix + n, "targetCommit": short(commit)} for n, commit in rows]

    said: dict[str, Any] = {"branches": under(HEADS), "converts": [], "tags": under(TAGS)}
    return said | {"pullRequests": under(PULLS, PULLS)} if include_prs else said


@router.get(MODEL + "/commits/{rest:path}")
def commits(
    hub: TheHub,
    seen: Reads,
    request: Request,
    limit: Annotated[int, Query(ge=1)] = 100,
    cursor: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> JSONResponse:
    """A version and those before it; pages by Link."""
    revision, _ = revision_and_path(request, **_REST)
    version = VERSIONS.get(hub, seen.repository, revision)
    count = min(limit, _PAGE)
    formatted = "formatted" in request.query_params.getlist("expand[]")
    rows = models.commits(version, cursor, count + 1, formatted=formatted)
    return _page(hub, request, rows[:count], cursor + count if len(rows) > count else None)


@router.get(MODEL + "/auth-check")
async def may_read(seen: Reads) -> dict[str, str]:
    """Whether the visitor may read."""
    return {"role": seen.role.word}


@router.get(MODEL + "/auth-check/write")
async def may_write(seen: Reads) -> dict[str, str]:
    """Whether the visitor may push."""
    seen.must(Role.MAINTAIN)
    return {"role": seen.role.word}


@router.get("/api/whoami-v2")
def whoami(visitor: Asks) -> dict[str, Any]:
    """Whose a token is."""
    visitor.known()
    return {
        "type": "user",
        "id": f"{visitor.account:024x}",
        "name": visitor.name,
        "fullname": visitor.name,
        "isPro": False,
        "canPay": False,
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": "token", "role": _hugging_role(visitor)}},
    }


@router.get("/api/datasets/{rest:path}", include_in_schema=False)
@router.get("/api/spaces/{rest:path}", include_in_schema=False)
def models_alone(visitor: Asks, rest: str) -> None:
    """The hub has models, no data sets or spaces."""
    raise NoRepository("this hub has models alone", expected="repo_type model")


def _hugging_role(visitor: Visitor) -> str:
    return "write" if visitor.scope >= Role.CONTRIBUTE else "read"


def _page(hub: Hub, request: Request, rows: list[dict[str, Any]], after: int | None) -> JSONResponse:
    response = JSONResponse(rows)
    if after is not None:
        query = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
        # The path as it came: decoded, a branch's slash would end its name.
        path = (request.scope.get("raw_path") or request.url.path.encode()).partition(b"?")[0].decode("ascii")
        link = f"{url_of(hub, request)}{path}?{urlencode([*query, ('cursor', after)])}"
        response.headers["Link"] = f'<{link}>; rel="next"'
    return response
