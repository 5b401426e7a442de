"""What clients with hf_xet send: files put together from xorbs and shards, whatever is sent instead of these."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path

import pyarrow
import pytest
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cofuse.hub.faults import Refused
from cofuse.hub.huggingface.xorbs import Made, Part, Xorb, read_shard

from ..serving import HubServer
from .conftest import OWNER

# What the client itself is warned of by its own dependency.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

TAG = b"HFRepoMetaData\0" + bytes.fromhex("55696745 6a7b8157 83a5bdd9 5ccdd14a a9")


def grouped(data: bytes) -> bytes:
    """Bytes of every fourth place together, the slow way."""
    return bytes(data[i] for place in range(4) for i in range(len(data)) if i % 4 == place)


def chunk(data: bytes, way: int) -> bytes:
    held = grouped(data) if way == 2 else data
    stored = pyarrow.Codec("lz4").compress(held).to_pybytes() if way else held
    return b"\0" + len(stored).to_bytes(3, "little") + bytes([way]) + len(data).to_bytes(3, "little") + stored


def hashed(text: str) -> bytes:
    return struct.pack("<4Q", *(int(text[i : i + 16], 16) for i in range(0, 64, 16)))


def shard(files: list[Made], *, verified: bool = True) -> bytes:
    out = TAG + struct.pack("<QQ", 2, 0)
    for made in files:
        flags = (1 << 31 if verified else 0) | (1 << 30 if made.sha256 else 0)
        out += bytes(32) + struct.pack("<IIQ", flags, len(made.parts), 0)
        for part in made.parts:
            out += hashed(part.xorb) + struct.pack("<IIII", 0, part.size, part.first, part.stop)
        out += bytes(48) * (len(made.parts) if verified else 0)
        out += hashed(made.sha256) + bytes(16) if made.sha256 else b""
    return out + b"\xff" * 32 + bytes(16) + os.urandom(48 * 3)


CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(0, 2)), min_size=1, max_size=6)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(CHUNKS, st.sampled_from([b"", b"XETBLOB" + bytes(40)]), st.data())
def test_chunks_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[bytes, int]], footer: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("xet") / "xorb"
    path.write_bytes(b"".join(chunk(*one) for one in chunks) + footer)
    first = data.draw(st.integers(0, len(chunks) - 1))
    stop = data.draw(st.integers(first + 1, len(chunks)))
    wanted = b"".join(content for content, _ in chunks[first:stop])
    assert b"".join(Xorb(path).read(Part("0" * 64, first, stop, len(wanted)))) == wanted
    for wrong in (Part("0" * 64, first, stop, len(wanted) + 1), Part("0" * 64, first, len(chunks) + 1, len(wanted))):
        with pytest.raises(Refused):
            list(Xorb(path).read(wrong))


PARTS = st.builds(
    lambda xorb, first, more, size: Part(xorb, first, first + more, size),
    HASHES,
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.integers(0, 2**32 - 1),
)
FILES = st.lists(st.builds(Made, st.lists(PARTS, max_size=4).map(tuple), st.none() | HASHES), max_size=4)


@given(FILES, st.booleans())
def test_shards_are_read_as_they_were_written(files: list[Made], verified: bool) -> None:
    assert read_shard(shard(files, verified=verified)) == files


@given(FILES.filter(bool), st.data())
def test_damaged_shards_are_refused_or_read(files: list[Made], data: st.DataObject) -> None:
    raw = bytearray(shard(files))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(Refused):
        read_shard(cut)


@given(st.binary(max_size=200) | CHUNKS.map(lambda c: b"".join(chunk(*one) for one in c)), st.data())
def test_damaged_xorbs_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("xet") / "xorb"
    hurt = bytearray(raw)
    if hurt:
        hurt[data.draw(st.integers(0, len(hurt) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(hurt)
    with contextlib.suppress(Refused):
        list(Xorb(path).read(Part("0" * 64, 0, 1, data.draw(st.integers(0, 400)))))


def test_chunks_that_are_empty_or_without_number_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "xorb"
    for body in (chunk(b"a", 0) + chunk(b"", 0), chunk(b"a", 0) * 20_000):
        path.write_bytes(body)
        with pytest.raises(Refused):
            Xorb(path)


@pytest.fixture(scope="module")
def model(api: HfApi) -> str:
    api.create_repo(f"{OWNER}/xet")
    return f"{OWNER}/xet"


def test_a_file_of_shared_chunks(hub_server: HubServer, api: HfApi, model: str, secret: str) -> None:
    chunks = [os.urandom(60_000), b"a" * 100_000, os.urandom(100)]
    xorb = hashlib.sha256(b"its name").hexdigest()
    whole = chunks[1] + chunks[0] + chunks[1] + chunks[2]
    parts = (Part(xorb, 1, 2, 100_000), Part(xorb, 0, 3, 160_100))
    made = Made(parts, hashlib.sha256(whole).hexdigest())
    with hub_server.client(secret) as client:
        cas = client.get(f"/api/models/{model}/xet-write-token/main").json()["casUrl"]
        assert client.post(f"{cas}/v1/shards", content=shard([made])).status_code == 422  # the xorb is missing
        body = b"".join(chunk(data, way) for way, data in enumerate(chunks))
        assert client.post(f"{cas}/v1/xorbs/default/{xorb}", content=body).json() == {"was_inserted": True}
        assert client.post(f"{cas}/v1/xorbs/default/{xorb}", content=body).json() == {"was_inserted": False}
        lying = Made(parts, hashlib.sha256(b"another").hexdigest())
        assert client.post(f"{cas}/v1/shards", content=shard([lying])).status_code == 422
        assert client.post(f"{cas}/v1/shards", content=shard([made])).status_code == 200
        lines = [
            '{"key": "header", "value": {"summary": "x"}}',
            f'{{"key": "lfsFile", "value": {{"path": "x.dat", "algo": "sha256", "oid": "{made.sha256}"}}}}',
        ]
        committed = client.post(f"/api/models/{model}/commit/main", content="\n".join(lines).encode())
        assert committed.status_code == 200
    assert Path(api.hf_hub_download(model, "x.dat")).read_bytes() == whole


def test_a_xorb_is_its_senders_alone(hub_server: HubServer, api: HfApi, model: str, secret: str) -> None:
    xorb, data = hashlib.sha256(b"mine").hexdigest(), os.urandom(1000)
    other = hub_server.token("trudy", "maintain")
    HfApi(endpoint=hub_server.url, token=other).create_repo("trudy/m", exist_ok=True)
    made = Made((Part(xorb, 0, 1, 1000),), hashlib.sha256(data).hexdigest())
    with hub_server.client(secret) as client, hub_server.client(other) as trudy:
        assert client.post(f"/xet/0/{model}/v1/xorbs/default/{xorb}", content=chunk(data, 0)).status_code == 200
        assert trudy.post("/xet/0/trudy/m/v1/shards", content=shard([made])).status_code == 422
        assert trudy.post(f"/xet/0/{model}/v1/shards", content=shard([made])).status_code == 422


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(st.binary(max_size=300) | FILES.map(shard), st.binary(max_size=100), st.text(max_size=70))
def test_nothing_makes_the_hub_fail(
    hub_server: HubServer, secret: str, model: str, sent: bytes, xorb: bytes, name: str
) -> None:
    with hub_server.client(secret) as client:
        assert client.post(f"/xet/0/{model}/v1/shards", content=sent).status_code in (200, 400, 413, 422, 507)
        name = name.encode().hex()[:64].ljust(64, "0")
        assert client.post(f"/xet/0/{model}/v1/xorbs/default/{name}", content=xorb).status_code == 200
        made = Made((Part(name, 0, 1, len(xorb)),), None)
        assert client.post(f"/xet/0/{model}/v1/shards", content=shard([made])).status_code in (200, 422)
        assert client.post(f"/xet/0/{model}/v1/xorbs/default/..%2f..%2fx", content=xorb).status_code in (400, 404)
