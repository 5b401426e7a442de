"""Commits as clients send them: whole or not at all, never over somebody else's, never with what could run."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import pickle
import struct
import threading
import time
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from cofuse.hub.faults import NoFile, Refused
from cofuse.hub.huggingface.changes import Changes
from cofuse.hub.huggingface.committing import _removed
from cofuse.hub.huggingface.names import check_bytes
from cofuse.store import Store
from cofuse.store.trees import Plain, Tree

from ..serving import HubServer
from .conftest import OWNER

# What the client itself is warned of by its own dependency.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def model(api: HfApi) -> str:
    name = f"{OWNER}/c-{os.urandom(4).hex()}"
    api.create_repo(name)
    api.upload_file(repo_id=name, path_or_fileobj=b"first", path_in_repo="first.txt")
    return name


def line(key: str, **value: Any) -> bytes:
    return json.dumps({"key": key, "value": value}).encode() + b"\n"


def file(path: str, data: bytes) -> bytes:
    return line("file", path=path, content=base64.b64encode(data).decode(), encoding="base64")


HEADER = line("header", summary="a commit", description="")
# What is allowed where file systems allow it, and what clients do not change on their way.
PARTS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12).filter(
    lambda part: not set(part) & set("\\/.:") and unicodedata.normalize("NFKC", part) == part
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.dictionaries(st.lists(PARTS, min_size=1, max_size=3).map("/".join), st.binary(max_size=200), min_size=1))
def test_any_bytes_under_any_name(api: HfApi, model: str, tmp_path: Path, files: dict[str, bytes]) -> None:
    own = os.urandom(4).hex()  # a file here may be a folder in the next example
    files = {f"{own}/{p}": data for p, data in files.items() if not any(o.startswith(p + "/") for o in files)}
    adds = [CommitOperationAdd(path, data) for path, data in files.items()]
    sha = api.create_commit(model, adds, commit_message="any").oid
    for path, data in files.items():
        got = api.hf_hub_download(model, path, revision=sha, local_dir=tmp_path)
        assert Path(got).read_bytes() == data


def test_many_files_and_shards_at_once(api: HfApi, model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    here = tmp_path / "many"
    for n in range(300):
        place = here / f"d{n % 7}" / f"{n}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"file {n}\n" * n)
    shards = [f"model-{n:05d}-of-00012.safetensors" for n in range(1, 13)]
    for n, shard in enumerate(shards):
        (here / shard).write_bytes(save({f"w{n}": torch.randn(100, 100)}))
    index = {"metadata": {}, "weight_map": {f"w{n}": shard for n, shard in enumerate(shards)}}
    (here / "model.safetensors.index.json").write_text(json.dumps(index))
    api.upload_folder(repo_id=model, folder_path=here)
    got = Path(api.snapshot_download(model))
    for place in here.rglob("*"):
        if place.is_file():
            assert (got / place.relative_to(here)).read_bytes() == place.read_bytes()
    assert len(api.get_safetensors_metadata(model).files_metadata) == 12


def test_commits_at_once_all_count(hub_server: HubServer, api: HfApi, model: str, secret: str) -> None:
    def one(n: int) -> None:
        with hub_server.client(secret) as client:
            body = HEADER + file(f"{n}.txt", b"x" * n)
            assert client.post(f"/api/models/{model}/commit/main", content=body).status_code == 200

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.rfilename for s in api.model_info(model).siblings} == {"first.txt", *(f"{n}.txt" for n in range(4))}
    assert len(api.list_repo_commits(model)) == 5


def test_of_those_who_name_their_parent_one_wins(hub_server: HubServer, api: HfApi, model: str, secret: str) -> None:
    parent = api.model_info(model).sha
    answers = []

    def one(n: int) -> None:
        with hub_server.client(secret) as client:
            head = line("header", summary=f"{n}", description="", parentCommit=parent)
            answers.append(client.post(f"/api/models/{model}/commit/main", content=head + file("a", b"%d" % n)))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412]
    assert len(api.list_repo_commits(model)) == 2


BAD_PATHS = [
    *("../a", "/a", "a//b", "a/./b", "a/../b", "a\\b", "a\0b", "a\nb", "", ".git/config", "x/.GIT/x", ".cofuse/x"),
    *("a\u202etxt.py", "a\u200bb", "cafe\u0301", "a ", " a", "a.", "a/b ./c", "x" * 300, "\ue000", "a\u2028b"),
]
PICKLES = [
    *("model.bin", "MODEL.PT", "a/b.pkl", "x.pth", "model.bin.gz", "x.ckpt", "x.\uff42\uff49\uff4e", "w.npy", "m.h5"),
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_names_that_are_refused(hub_server: HubServer, api: HfApi, model: str, secret: str, path: str) -> None:
    with hub_server.client(secret) as client:
        asked = client.post(f"/api/models/{model}/preupload/main", json={"files": [{"path": path, "size": 1}]})
        answer = client.post(f"/api/models/{model}/commit/main", content=HEADER + file(path, b"x"))
    assert (asked.status_code, answer.status_code) == (400, 400), answer.text
    assert len(api.list_repo_commits(model)) == 1


@pytest.mark.parametrize("path", PICKLES)
def test_pickles_are_refused_by_name(hub_server: HubServer, api: HfApi, model: str, secret: str, path: str) -> None:
    with hub_server.client(secret) as client:
        asked = client.post(f"/api/models/{model}/preupload/main", json={"files": [{"path": path, "size": 1}]})
        answer = client.post(f"/api/models/{model}/commit/main", content=HEADER + file(path, b"x"))
    for said in (asked, answer):
        assert said.status_code == 422
        assert "safetensors" in said.headers["x-error-message"]
    assert len(api.list_repo_commits(model)) == 1


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def zipped(name: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        packed.writestr(name, pickle.dumps(1))
    return held.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(pickle.dumps(Evil(), protocol) for protocol in range(6)),
        b"\x80\x01" + pickle.dumps(Evil(), 1),
        zipped("archive/data.pkl"),
        b"junk" + zipped("x/DATA.PKL"),
    ],
)
def test_pickles_are_refused_by_their_bytes(
    hub_server: HubServer, api: HfApi, model: str, secret: str, data: bytes
) -> None:
    with hub_server.client(secret) as client:
        answer = client.post(f"/api/models/{model}/commit/main", content=HEADER + file("notes.txt", data))
    assert answer.status_code == 422
    assert "safetensors" in answer.headers["x-error-message"]
    assert len(api.list_repo_commits(model)) == 1


def test_a_long_list_of_names_is_refused_unread(tmp_path: Path) -> None:
    place, size = tmp_path / "packed", 1 << 28
    with open(place, "wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0))
    tracemalloc.start()
    with pytest.raises(Refused):
        check_bytes("notes.txt", place)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < size // 16


def bad_safetensors() -> list[bytes]:
    good = save({"w": torch.zeros(4)})
    text = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,16]}}'
    return [b"", b"x" * 20, good[:-1], good + b"x", b"\xff" * 16, len(text).to_bytes(8, "little") + text + bytes(16)]


@pytest.mark.parametrize("data", bad_safetensors())
def test_damaged_weights_are_refused(hub_server: HubServer, api: HfApi, model: str, secret: str, data: bytes) -> None:
    with hub_server.client(secret) as client:
        answer = client.post(f"/api/models/{model}/commit/main", content=HEADER + file("model.safetensors", data))
    assert answer.status_code == 422
    assert str(hub_server.data) not in answer.text
    assert len(api.list_repo_commits(model)) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([HEADER, file("a", b"x"), HEADER[:-4]])), max_size=5))
def test_no_body_makes_the_hub_fail(hub_server: HubServer, secret: str, api: HfApi, lines: list[bytes]) -> None:
    with hub_server.client(secret) as client:
        answer = client.post(f"/api/models/{OWNER}/no-such/commit/main", content=b"\n".join(lines))
        assert answer.status_code == 404
        api.create_repo(f"{OWNER}/fuzzed", exist_ok=True)
        answer = client.post(f"/api/models/{OWNER}/fuzzed/commit/main", content=b"\n".join(lines))
        assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    ("revision", "body", "status"),
    [
        ("none", HEADER + file("a", b"x"), 404),
        ("v1", HEADER + file("a", b"x"), 404),
        ("refs%2Fpr%2F1", HEADER + file("a", b"x"), 404),
        ("main", file("a", b"x"), 400),
        ("main", HEADER + line("deletedFile", path="none"), 404),
        ("main", HEADER + line("deletedFolder", path="none/"), 404),
        ("main", HEADER + line("lfsFile", path="a.txt", algo="sha256", oid="0" * 64, size=3), 400),
        ("main", HEADER + line("lfsFile", path="a.txt", algo="md5", oid="0" * 64, size=3), 400),
        ("main", HEADER + line("file", path="a", content="?", encoding="base64"), 400),
        ("main", HEADER + line("file", path="first.txt/a", content="x"), 400),
        ("main", line("header", summary="", description="") + file("a", b"x"), 400),
        ("main", line("header", summary="x", parentCommit="../../etc"), 400),
        ("main", HEADER + line("chmod", path="a"), 400),
    ],
)
def test_what_is_no_commit(
    hub_server: HubServer, api: HfApi, model: str, secret: str, revision: str, body: bytes, status: int
) -> None:
    api.create_tag(model, tag="v1")
    with hub_server.client(secret) as client:
        answer = client.post(f"/api/models/{model}/commit/{revision}", content=body)
    assert answer.status_code == status, answer.text
    assert len(api.list_repo_commits(model)) == 1


def test_a_slash_written_another_way_leads_to_no_other_branch(
    hub_server: HubServer, api: HfApi, model: str, secret: str
) -> None:
    api.create_branch(model, branch="other")
    with hub_server.client(secret) as client:
        path = f"/api/models/{model.replace('/', '%2F')}/commit/other"
        assert client.post(path, content=HEADER + file("a", b"x")).status_code == 400
    assert len(api.list_repo_commits(model)) == 1


@given(
    st.sets(st.lists(st.sampled_from("ab."), min_size=1, max_size=4).map("/".join)),
    st.lists(st.lists(st.sampled_from("ab."), max_size=3).map("/".join), max_size=3),
)
def test_a_folder_goes_with_all_that_is_in_it(paths: set[str], folders: list[str]) -> None:
    before = Tree({path: Plain("0" * 64, 1) for path in paths}, None)
    inside = {folder: {path for path in paths if path.startswith(f"{folder}/")} for folder in folders}
    if all(inside.values()):
        assert set(_removed(before, Changes(folders=folders))) == set().union(*inside.values())
    else:
        with pytest.raises(NoFile):
            list(_removed(before, Changes(folders=folders)))


def test_many_folders_are_looked_for_at_once() -> None:
    before = Tree({f"d/e/{n}": Plain("0" * 64, 1) for n in range(20_000)}, None)
    began = time.perf_counter()
    assert set(_removed(before, Changes(folders=["d", "d/e"] * 12_000))) == set(before.files)
    assert time.perf_counter() - began < 5


# Who may what

WRITES = [
    ("POST", "/api/models/{model}/commit/main", {"content": HEADER + file("a", b"x")}, "maintain"),
    ("POST", "/api/models/{model}/preupload/main", {"json": {"files": []}}, "contribute"),
    ("POST", "/{model}.git/info/lfs/objects/batch", {"json": {"operation": "upload", "objects": []}}, "contribute"),
    ("GET", "/api/models/{model}/xet-write-token/main", {}, "contribute"),
    ("POST", "/xet/0/{model}/v1/shards", {"content": b""}, "contribute"),
    ("PUT", "/api/models/{model}/settings", {"json": {}}, "maintain"),
    ("POST", "/api/models/{model}/branch/b", {"json": {}}, "maintain"),
    ("POST", "/api/models/{model}/tag/main", {"json": {"tag": "t"}}, "maintain"),
    ("DELETE", "/api/models/{model}/branch/none", {}, "maintain"),
    ("DELETE", "/api/models/{model}/tag/none", {}, "maintain"),
    ("GET", "/api/models/{model}/auth-check/write", {}, "maintain"),
    ("GET", "/api/models/{model}", {}, "nobody"),
    ("GET", "/{model}/resolve/main/first.txt", {}, "nobody"),
]
ORDER = ["nobody", "read", "contribute", "maintain"]


@pytest.mark.parametrize(("method", "path", "sent", "needs"), WRITES)
def test_every_role_on_every_route(
    hub_server: HubServer, model: str, method: str, path: str, sent: dict[str, Any], needs: str
) -> None:
    for role in ORDER:
        token = None if role == "nobody" else hub_server.token(f"one-{role}", role)
        with hub_server.client(token) as client:
            status = client.request(method, path.format(model=model), **sent).status_code
        if ORDER.index(role) >= ORDER.index(needs):
            assert status not in (401, 403), (role, path, status)
        else:
            assert status == (401 if role == "nobody" else 403), (role, path, status)


# Large files


def batch(client: httpx.Client, model: str, data: bytes, **more: Any) -> dict[str, Any]:
    oid = hashlib.sha256(data).hexdigest()
    wanted = {"operation": "upload", "objects": [{"oid": oid, "size": len(data)}], "hash_algo": "sha256", **more}
    answer = client.post(f"/{model}.git/info/lfs/objects/batch", json=wanted)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["objects"][0]
    return found


def test_a_large_file_by_basic_transfer(hub_server: HubServer, api: HfApi, model: str, secret: str) -> None:
    data = os.urandom(2_000_000)
    oid = hashlib.sha256(data).hexdigest()
    with hub_server.client(secret) as client:
        actions = batch(client, model, data)["actions"]
        with hub_server.client() as nobody:  # the URL is all that is shown
            wrong = nobody.put(actions["upload"]["href"], content=b"x" * len(data))
            assert wrong.status_code == 422
            assert nobody.put(actions["upload"]["href"], content=data).status_code == 200
        verify = client.post(actions["verify"]["href"], json={"oid": oid, "size": len(data)})
        assert verify.status_code == 200
        assert "actions" not in batch(client, model, data)  # it is here
        body = HEADER + line("lfsFile", path="big.dat", algo="sha256", oid=oid, size=len(data))
        assert client.post(f"/api/models/{model}/commit/main", content=body).status_code == 200
        assert "actions" not in batch(client, model, data)  # it still is
    assert Path(api.hf_hub_download(model, "big.dat")).read_bytes() == data


def test_files_are_sent_where_the_hub_was_reached(hub_server: HubServer, model: str, secret: str) -> None:
    port = hub_server.url.rpartition(":")[2]
    with httpx.Client(base_url=f"http://localhost:{port}", headers={"Authorization": f"Bearer {secret}"}) as client:
        assert batch(client, model, b"x" * 100)["actions"]["upload"]["href"].startswith(f"http://localhost:{port}/")
        cas = client.get(f"/api/models/{model}/xet-write-token/main").json()["casUrl"]
        assert cas.startswith(f"http://localhost:{port}/xet/")


def test_to_know_a_hash_is_not_to_have_the_bytes(hub_server: HubServer, api: HfApi, model: str, secret: str) -> None:
    data = os.urandom(1_500_000)
    api.upload_file(repo_id=model, path_or_fileobj=data, path_in_repo="mine.dat")
    other = hub_server.token("mallory", "maintain")
    HfApi(endpoint=hub_server.url, token=other).create_repo("mallory/m", exist_ok=True)
    oid = hashlib.sha256(data).hexdigest()
    body = HEADER + line("lfsFile", path="stolen.dat", algo="sha256", oid=oid, size=len(data))
    with hub_server.client(other) as client:
        assert "actions" in batch(client, "mallory/m", data)
        assert client.post("/api/models/mallory/m/commit/main", content=body).status_code == 400


@pytest.mark.slow
def test_parts_follow_one_another(start_hub: Any) -> None:
    # The hub's parts are large; what is tried here is their order, so a file of three of them that is mostly zeros.
    from cofuse.hub.huggingface.lfs import PART

    server = start_hub()
    secret = server.token("ann", "maintain")
    HfApi(endpoint=server.url, token=secret).create_repo("ann/m")
    zeros, tail = bytes(1 << 20), b"the end"
    digest = hashlib.sha256()
    for _ in range(PART // len(zeros)):
        digest.update(zeros)
    digest.update(tail)
    size = PART + len(tail)
    wanted = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [{"oid": digest.hexdigest(), "size": size}],
    }
    with server.client(secret) as client, server.client() as nobody:
        found = client.post("/ann/m.git/info/lfs/objects/batch", json=wanted).json()
        assert found["transfer"] == "multipart"
        upload, verify = (found["objects"][0]["actions"][key] for key in ("upload", "verify"))
        assert int(upload["header"]["chunk_size"]) == PART
        assert set(upload["header"]) == {"chunk_size", "1", "2"}
        said = {"oid": digest.hexdigest(), "size": size}
        assert nobody.put(upload["header"]["2"], content=tail).status_code == 409
        assert nobody.post(upload["href"], json=said).status_code == 409

        def half() -> Any:
            yield from (zeros for _ in range(10))

        first = upload["header"]["1"]
        assert nobody.put(first, content=half(), headers={"Content-Length": str(10 << 20)}).status_code == 408
        for _ in range(2):  # twice: the first answer may get lost
            whole = (zeros for _ in range(PART // len(zeros)))
            answer = nobody.put(first, content=whole, headers={"Content-Length": str(PART)})
            assert answer.status_code == 200
            assert answer.headers["etag"]
        assert nobody.put(upload["header"]["2"], content=tail).status_code == 200
        assert nobody.post(upload["href"], json=said).json()["oid"] == digest.hexdigest()
        assert client.post(verify["href"], json=said).status_code == 200
        assert nobody.put(upload["header"]["2"].replace("/2", "/3"), content=b"").status_code == 400
        assert nobody.put("/lfs/" + "0" * 32 + "/1", content=b"").status_code == 404


def test_bytes_that_others_have_are_not_written_over(
    hub_server: HubServer, api: HfApi, model: str, secret: str
) -> None:
    """Two send one upload at once: what the first has finished, and is downloaded by then, the second must not touch."""
    data, evil = os.urandom(3_000_000), bytes(3_000_000)
    oid = hashlib.sha256(data).hexdigest()
    with hub_server.client(secret) as client:
        href = batch(client, model, data)["actions"]["upload"]["href"]
        begun, gone_on, answers = threading.Event(), threading.Event(), []

        def slowly(what: bytes) -> Any:
            yield what[:1_000_000]
            begun.set()
            gone_on.wait(20)
            yield what[1_000_000:]

        def send(what: Any) -> None:
            with hub_server.client() as nobody:
                answers.append(nobody.put(href, content=what, headers={"Content-Length": str(len(data))}))

        first = threading.Thread(target=send, args=(slowly(data),))
        first.start()
        begun.wait(20)
        second = threading.Thread(target=send, args=(evil,))
        second.start()
        second.join(1)  # it waits for the first
        gone_on.set()
        first.join()
        second.join()
        body = HEADER + line("lfsFile", path="big.dat", algo="sha256", oid=oid, size=len(data))
        assert client.post(f"/api/models/{model}/commit/main", content=body).status_code == 200
        assert client.get(f"/{model}/resolve/main/big.dat").content == data
    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.slow
def test_a_kill_leaves_all_of_a_commit_or_nothing(start_hub: Any) -> None:
    server = start_hub()
    secret = server.token("ann", "maintain")
    api = HfApi(endpoint=server.url, token=secret)
    api.create_repo("ann/m")
    acknowledged = []
    for round_ in range(4):

        def commits(round_: int = round_) -> None:
            with contextlib.suppress(httpx.HTTPError), server.client(secret) as client:
                for n in range(200):
                    name = f"{round_}-{n}"
                    body = HEADER + b"".join(file(f"{name}/{part}", name.encode() * 50) for part in "abc")
                    assert client.post("/api/models/ann/m/commit/main", content=body).status_code == 200
                    acknowledged.append(name)

        sender = threading.Thread(target=commits)
        sender.start()
        time.sleep(0.4 + 0.17 * round_)
        server.kill()
        sender.join()
        server.start()
        there = {s.rfilename for s in api.model_info("ann/m").siblings}
        names = {path.partition("/")[0] for path in there}
        assert there == {f"{name}/{part}" for name in names for part in "abc"}
        assert names >= set(acknowledged)
        assert len(names - set(acknowledged)) <= round_ + 1  # one a kill: done, and not heard of
    (repository,) = (p for p in server.hub.repositories.glob("??/*.cofuse"))
    assert Store.open(repository).fsck().ok
