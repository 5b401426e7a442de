"""The format as docs/formats/store.md writes it down: golden ids and bytes, and what a hostile object meets."""

import json
import os
import re
import struct
from pathlib import Path

import pytest
from blake3 import blake3

from cofuse.checkpoint import CHUNK, TensorSpec
from cofuse.errors import CofuseError, CorruptError, StoreError
from cofuse.store import Store
from cofuse.store.canonical import canonical, parse_canonical
from cofuse.store.envelope import MAGIC, Envelope, Head, Row, parse
from cofuse.store.trees import Plain, Tree, Weights, check_path
from cofuse.store.writing import writing

SPECIFICATION = Path(__file__).parents[2] / "docs" / "formats" / "store.md"

WEIGHTS = b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
GOLDEN_FILE = len(WEIGHTS).to_bytes(8, "little") + WEIGHTS + struct.pack("<6f", 0, 1, 2, 3, 4, 5)


def golden(store: Store, folder: Path) -> dict[str, str]:
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}\n")
    (folder / "model.safetensors").write_bytes(GOLDEN_FILE)
    commit = store.commit(folder, message="golden", author="Ada", record={"seed": 1})
    files = json.loads(store.objects.read(commit.tree))["files"]
    return {
        "file": files["config.json"]["id"],
        "header": files["model.safetensors"]["header"],
        "tensor": files["model.safetensors"]["tensors"][0],
        "content": str(commit.content),
        "tree": commit.tree,
        "commit": commit.id,
    }


def by_hand(kind: str, data: bytes) -> str:
    digests = b"".join(blake3(data[a : a + CHUNK]).digest() for a in range(0, len(data), CHUNK))
    return blake3(f"cofuse {kind} 1\n{len(data)}\n".encode() + digests).hexdigest()


def test_golden_ids_are_those_of_the_specification(store: Store, tmp_path: Path) -> None:
    written = dict(re.findall(r"^\| (\w+) \| `([0-9a-f]{64})` \|$", SPECIFICATION.read_text(), re.MULTILINE))
    assert golden(store, tmp_path / "g") == written


def test_ids_follow_from_the_formulas_alone(store: Store, tmp_path: Path) -> None:
    ids = golden(store, tmp_path / "g")
    header, data = GOLDEN_FILE[: 8 + len(WEIGHTS)], GOLDEN_FILE[8 + len(WEIGHTS) :]
    tensor = blake3(b"cofuse tensor 1\nF32\n[2,3]\n" + blake3(data).digest()).hexdigest()
    content = blake3(f"cofuse content 1\nw\n{tensor}\n".encode()).hexdigest()
    tree = (
        f'{{"content":"{content}","files":{{"config.json":{{"id":"{by_hand("file", b"{}" + bytes([10]))}","size":3}},'
        f'"model.safetensors":{{"header":"{by_hand("file", header)}","size":{len(GOLDEN_FILE)},"tensors":["{tensor}"]}}}}}}'
    ).encode()
    commit = (
        f'{{"author":"Ada","content":"{content}","message":"golden","parents":[],"record":{{"seed":1}},'
        f'"tree":"{by_hand("tree", tree)}"}}'
    ).encode()
    assert ids["tensor"] == tensor
    assert ids["content"] == content
    assert ids["tree"] == by_hand("tree", tree)
    assert ids["commit"] == by_hand("commit", commit)


def test_golden_bytes_of_an_object(store: Store, tmp_path: Path) -> None:
    ids = golden(store, tmp_path / "g")
    written = re.search(r"```hex\n(.*?)```", SPECIFICATION.read_text(), re.DOTALL)
    assert written is not None
    expected = bytes.fromhex("".join(line.split("#")[0] for line in written.group(1).splitlines()))
    assert store.objects.path(ids["file"]).read_bytes() == expected


def test_every_kind_has_a_domain_of_its_own() -> None:
    digests = [b"\0" * 32]
    ids = [Head(kind, 5).id(digests) for kind in ("file", "tree", "commit")]
    ids.append(Head.tensor(TensorSpec("U8", (5,))).id(digests))
    ids.append(Head.tensor(TensorSpec("I8", (5,))).id(digests))
    ids.append(Head.tensor(TensorSpec("U8", (5, 1))).id(digests))
    ids.append(Head("file", 6).id(digests))
    assert len(set(ids)) == len(ids)


def test_the_layout_of_the_folder(store: Store, tmp_path: Path) -> None:
    ids = golden(store, tmp_path / "g")
    assert (store.path / "format").read_bytes() == b"cofuse store 1\n"
    assert (store.path / "HEAD").read_bytes() == b"ref: refs/heads/main\n"
    assert (store.path / "refs/heads/main").read_bytes() == f"{ids['commit']}\n".encode()
    for name in ("file", "header", "tensor", "tree", "commit"):
        assert (store.path / "objects" / ids[name][:2] / ids[name][2:]).is_file()
    assert list((store.path / "tmp").iterdir()) == []


def parsed(path: Path, data: bytes) -> Envelope:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return parse(fd, "x")
    finally:
        os.close(fd)


def envelope_bytes(head: bytes, rows: list[tuple[bytes, int, bytes, int]], chunks: bytes = b"") -> bytes:
    body = struct.pack("<8sII", MAGIC, len(head), len(rows)) + head
    body += b"".join(struct.pack("<32sB3sI", *row) for row in rows)
    return body + blake3(body).digest() + chunks


NO = bytes(3)
ROW = (blake3(b"hello").digest(), 0, NO, 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"COFUSE\x00\x03" + bytes(100), "not an object"),
        (struct.pack("<8sII", MAGIC, 0xFFFFFFFF, 1), "does not fit"),
        (struct.pack("<8sII", MAGIC, 10, 0xFFFFFFFF) + bytes(100), "does not fit"),
        (struct.pack("<8sII", MAGIC, 2, 0) + b"{}" + bytes(32), "is damaged"),
        (envelope_bytes(b"[" * 4000, []), "not readable"),
        (envelope_bytes(b'{"kind":"file","size":-1}', []), "not readable"),
        (envelope_bytes(b'{"kind":"file","size":5.0}', [ROW], b"hello"), "not readable"),
        (envelope_bytes(b'{"kind":"file","size":true}', [ROW], b"hello"), "not readable"),
        (envelope_bytes(b'{"kind":"file", "size":5}', [ROW], b"hello"), "not canonical"),
        (envelope_bytes(b'{"kind":"file","size":9,"size":5}', [ROW], b"hello"), "not canonical"),
        (envelope_bytes(b'{"kind":"blob","size":5}', [ROW], b"hello"), "not readable"),
        (envelope_bytes(b'{"kind":"file","size":5,"x":1}', [ROW], b"hello"), "not readable"),
        (envelope_bytes(b'{"dtype":"F99","kind":"tensor","shape":[5]}', [ROW], b"hello"), "not readable"),
        (envelope_bytes(b'{"dtype":"U8","kind":"tensor","shape":[99999999999999]}', [ROW], b"hello"), "wrong number"),
        (envelope_bytes(b'{"dtype":"F4","kind":"tensor","shape":[1]}', [ROW], b"hello"), "not canonical"),
        (envelope_bytes(b'{"kind":"file","size":5}', [], b"hello"), "wrong number"),
        (envelope_bytes(b'{"kind":"file","size":5}', [(ROW[0], 77, NO, 5)], b"hello"), "unknown codec"),
        (envelope_bytes(b'{"kind":"file","size":5}', [(ROW[0], 3, NO, 0)]), "a delta without a base"),
        (envelope_bytes(b'{"kind":"file","size":5}', [(ROW[0], 1, NO, 6)], b"hello!"), "more than it holds"),
        (envelope_bytes(b'{"kind":"file","size":5}', [ROW], b"hell"), "truncated"),
        (envelope_bytes(b'{"kind":"file","size":5}', [ROW], b"hello!"), "bytes after"),
    ],
)
def test_a_hostile_envelope_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        parsed(tmp_path / "object", data)


def test_an_envelope_comes_back(tmp_path: Path) -> None:
    good = parsed(tmp_path / "object", envelope_bytes(b'{"kind":"file","size":5}', [ROW], b"hello"))
    assert good == Envelope.of(Head("file", 5), [Row(*ROW)])
    assert good.id == by_hand("file", b"hello")


def test_no_change_of_an_object_goes_unseen(store: Store) -> None:
    with writing(store.objects) as pen:
        made = pen.put_bytes(Head("file", 40), bytes(range(40)))
        pen.sync()
    path = store.objects.path(made)
    whole = path.read_bytes()
    path.chmod(0o644)
    harmed = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    harmed += [whole[:at] for at in range(len(whole))] + [whole + b"\0"]
    for data in harmed:
        path.write_bytes(data)
        with pytest.raises(CofuseError):
            Store.open(store.path).objects.read(made)
    path.write_bytes(whole)
    assert store.objects.read(made) == bytes(range(40))


def test_two_spellings_of_one_value_are_not_both_taken() -> None:
    assert parse_canonical(b'{"a":1,"b":[]}', "x") == {"a": 1, "b": []}
    for bad in (b'{"b":[],"a":1}', b'{"a":1, "b":[]}', b'{"a":1,"a":1}', b"NaN", b"[" * 100_000, b"\xff", b"1e400"):
        with pytest.raises(CorruptError):
            parse_canonical(bad, "x")
    with pytest.raises(StoreError):
        canonical(10**5000, "record")


def test_a_tree_comes_back() -> None:
    tree = Tree({"a": Plain("0" * 64, 3), "b/c": Weights("1" * 64, 9, ("2" * 64,))}, "3" * 64)
    assert Tree.decode(tree.encode(), "x") == tree
    assert tree.objects() == ["0" * 64, "1" * 64, "2" * 64]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "a\\b",
        "a\0",
        "a\nb",
        "\x1b[2J",
        "\ud800",
        "a" * 256,
        "x/" * 3000 + "x",
        ".git/config",
        ".GIT/config",
        "a/.cofuse/HEAD",
        ".cache/huggingface/x",
    ],
)
def test_a_tree_cannot_name_a_path_that_must_not_be_written(path: str) -> None:
    with pytest.raises(StoreError):
        check_path(path)
    raw = json.dumps(
        {"content": None, "files": {path: {"id": "0" * 64, "size": 1}}}, sort_keys=True, separators=(",", ":")
    )
    with pytest.raises(CorruptError):
        Tree.decode(raw.encode(), "x")


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {"content": None},
        {"content": "x", "files": {}},
        {"content": None, "files": {}, "more": 1},
        {"content": None, "files": {"a": {"id": "0" * 64, "size": -1}}},
        {"content": None, "files": {"a": {"id": "../../etc", "size": 1}}},
        {"content": None, "files": {"a": {"id": "0" * 64, "size": True}}},
        {"content": None, "files": {"a": {"id": "0" * 64, "size": 1, "mode": 7}}},
        {"content": None, "files": {"a": {"header": "0" * 64, "size": 1, "tensors": [1]}}},
        {"content": None, "files": {"a": {"id": "0" * 64, "size": 1}, "a/b": {"id": "0" * 64, "size": 1}}},
    ],
)
def test_a_malformed_tree_is_refused(tree: object) -> None:
    with pytest.raises(CorruptError):
        Tree.decode(canonical(tree, "tree"), "x")
