"""What a download is answered with: hashes, ranges, what caches may keep, and what is not there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi

from cofuse.hub.files import git_blob

from ..serving import HubServer
from .conftest import OWNER

# What the client itself is warned of by its own dependency.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

MODEL = f"{OWNER}/served"


@pytest.fixture(scope="module")
def sha(api: HfApi, folder: Path) -> str:
    api.create_repo(MODEL)
    found = api.upload_folder(repo_id=MODEL, folder_path=folder).oid
    api.create_branch(MODEL, branch="runs/a+b")
    return found


@pytest.fixture(scope="module")
def anybody(hub_server: HubServer, sha: str) -> Iterator[httpx.Client]:
    with hub_server.client() as client:
        yield client


def test_hashes_are_those_of_the_bytes(anybody: httpx.Client, folder: Path, sha: str) -> None:
    for path in ("model.safetensors", "vocab.txt", "config.json", "empty", "sub/deep/note.txt"):
        data = (folder / path).read_bytes()
        large = path in ("model.safetensors", "vocab.txt")
        tag = hashlib.sha256(data).hexdigest() if large else git_blob(data)
        head = anybody.head(f"/{MODEL}/resolve/main/{path}")
        got = anybody.get(f"/{MODEL}/resolve/{sha}/{path}")
        assert head.status_code == got.status_code == 200
        assert got.content == data
        assert not head.content
        for answer in (head, got):
            assert answer.headers["etag"] == f'"{tag}"'
            assert answer.headers["x-repo-commit"] == sha
            assert answer.headers["content-length"] == str(len(data))
            assert answer.headers["accept-ranges"] == "bytes"
        assert "immutable" in got.headers["cache-control"]
        assert "no-cache" in head.headers["cache-control"]


def test_nothing_is_shown_as_a_page_of_the_hub(api: HfApi, anybody: httpx.Client) -> None:
    name = 'page "ü".html'
    api.upload_file(repo_id=MODEL, path_or_fileobj=b"<script>alert(1)</script>", path_in_repo=name)
    answer = anybody.get(f"/{MODEL}/resolve/main/{name}")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''page%20%22%C3%BC%22.html"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-99", 0, 99), ("bytes=100-", 100, None), ("bytes=-50", -50, None), ("bytes=5-100000000", 5, None)],
)
def test_ranges(anybody: httpx.Client, folder: Path, asked: str, first: int, last: int | None) -> None:
    data = (folder / "model.safetensors").read_bytes()
    answer = anybody.get(f"/{MODEL}/resolve/main/model.safetensors", headers={"Range": asked})
    wanted = data[first:] if last is None else data[first : last + 1]
    assert answer.status_code == 206
    assert answer.content == wanted
    start = first % len(data)
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(wanted) - 1}/{len(data)}"


def test_a_range_that_is_not_there(anybody: httpx.Client) -> None:
    answer = anybody.get(f"/{MODEL}/resolve/main/config.json", headers={"Range": "bytes=100000-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"].startswith("bytes */")


def test_what_a_cache_has_is_not_sent(anybody: httpx.Client) -> None:
    path = f"/{MODEL}/resolve/main/model.safetensors"
    tag = anybody.head(path).headers["etag"]
    for said in (tag, f"W/{tag}", f'"other", {tag}'):
        answer = anybody.get(path, headers={"If-None-Match": said})
        assert answer.status_code == 304
        assert not answer.content
        assert answer.headers["etag"] == tag
    assert anybody.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_what_is_not_there(anybody: httpx.Client, sha: str) -> None:
    for path, code in (
        (f"/{MODEL}/resolve/main/none", "EntryNotFound"),
        (f"/{MODEL}/resolve/main/sub", "EntryNotFound"),
        (f"/{MODEL}/resolve/main/", "EntryNotFound"),
        (f"/{MODEL}/resolve/none/config.json", "RevisionNotFound"),
        (f"/{MODEL}/resolve/{'0' * 40}/config.json", "RevisionNotFound"),
        (f"/{OWNER}/none/resolve/main/config.json", "RepoNotFound"),
        ("/bert/resolve/main/config.json", "RepoNotFound"),
        ("/api/models/bert", "RepoNotFound"),
        ("/api/datasets/ann/none", "RepoNotFound"),
        (f"/api/models/{MODEL}/revision/none", "RevisionNotFound"),
        (f"/api/models/{MODEL}/tree/main/none", "EntryNotFound"),
    ):
        for method in ("GET", "HEAD") if "/resolve/" in path else ("GET",):
            answer = anybody.request(method, path)
            assert (answer.status_code, answer.headers.get("x-error-code")) == (404, code), path
            assert answer.headers["x-error-message"]
    assert (
        anybody.get(f"/{MODEL}/resolve/main/none").headers["x-repo-commit"]
        == anybody.get(f"/{MODEL}/resolve/main/config.json").headers["x-repo-commit"]
    )


@pytest.mark.parametrize("revision", ["main", "runs%2Fa%2Bb", "refs%2Fheads%2Fmain"])
def test_how_revisions_are_written(anybody: httpx.Client, folder: Path, sha: str, revision: str) -> None:
    for named in (revision, sha, sha[:12]):
        answer = anybody.get(f"/{MODEL}/resolve/{named}/sub/deep/note.txt")
        assert answer.content == b"a note", named


@pytest.mark.parametrize(
    "path",
    [
        "../../../hub.sqlite",
        "%2e%2e/%2e%2e/hub.sqlite",
        "..%2f..%2fhub.sqlite",
        "%2fetc%2fpasswd",
        "config.json%00",
        "%c0%ae%c0%ae/x",
        "%ff",
        "\u2025/x",
        "..%5c..%5cx",
    ],
)
def test_no_way_out_of_a_version(anybody: httpx.Client, path: str) -> None:
    for start in (f"/{MODEL}/resolve/main/", f"/{MODEL}/resolve/", f"/api/models/{MODEL}/tree/main/", f"/{MODEL}/"):
        answer = anybody.send(anybody.build_request("GET", httpx.URL(str(anybody.base_url) + start + path)))
        assert answer.status_code in (400, 404), (start, path, answer.status_code)
        assert b"SQLite" not in answer.content
        assert b"root:" not in answer.content


def test_private_ones_are_not_there_for_others(hub_server: HubServer, api: HfApi, anybody: httpx.Client) -> None:
    api.create_repo(f"{OWNER}/secret", private=True)
    api.upload_file(repo_id=f"{OWNER}/secret", path_or_fileobj=b"x", path_in_repo="x.txt")
    other = hub_server.token("eve", "maintain")
    with hub_server.client(other) as eve:
        for client in (anybody, eve):
            for path in (
                f"/{OWNER}/secret/resolve/main/x.txt",
                f"/api/models/{OWNER}/secret",
                f"/api/models/{OWNER}/secret/tree/main",
                f"/api/models/{OWNER}/secret/refs",
                f"/api/models/{OWNER}/secret/discussions",
            ):
                there, not_there = client.get(path), client.get(path.replace("secret", "no-such"))
                assert there.status_code == not_there.status_code == 404
                assert there.headers["x-error-code"] == "RepoNotFound"
                assert there.text.replace("secret", "no-such") == not_there.text
            listed = client.get("/api/models", params={"search": "secret"}).json()
            assert listed == []
    with hub_server.client(str(api.token)) as own:
        said = own.head(f"/{OWNER}/secret/resolve/main/x.txt").headers["cache-control"]
    assert "private" in said
    assert "no-cache" in said


def test_lists_go_on_by_link(api: HfApi, anybody: httpx.Client) -> None:
    seen, path = [], f"/api/models/{MODEL}/tree/main?recursive=true&limit=2"
    while path:
        answer = anybody.get(path)
        assert answer.status_code == 200
        assert len(answer.json()) <= 2
        seen += [row["path"] for row in answer.json()]
        path = answer.links.get("next", {}).get("url", "")
    assert seen == [item.path for item in api.list_repo_tree(MODEL, recursive=True)]
    assert len(seen) > 4
    ids = [m.id for m in api.list_models(author=OWNER)]
    assert [i for i in ids if not i.endswith("/secret")] == [
        m["id"] for m in pages(anybody, f"/api/models?author={OWNER}&limit=1")
    ]


def pages(client: httpx.Client, path: str) -> Iterator[dict[str, object]]:
    """The rows of a list and those that follow."""
    while path:
        answer = client.get(path)
        yield from answer.json()
        path = answer.links.get("next", {}).get("url", "")
