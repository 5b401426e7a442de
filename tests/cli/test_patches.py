"""`cofuse diff -o`, `apply`, `show x.patch`, and MODEL+x.patch wherever a model is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cofuse
from cofuse import address
from cofuse.checkpoint import Memory, content_id, open_local
from cofuse.cli import patches
from cofuse.errors import AddressError, PatchError
from cofuse.patch import Patch
from cofuse.patch.choice import share_of

from .test_newcomer import done, refused


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    generator = torch.Generator().manual_seed(0)
    base = {f"{n}.weight": torch.randn((20, 16), generator=generator) for n in ("q_proj", "up_proj")}
    files = {"config.json": b'{"model_type": "none"}'}
    Memory(base, files=files).save(tmp_path / "base")
    tuned = {name: tensor + 0.1 * torch.randn((20, 16), generator=generator) for name, tensor in base.items()}
    Memory(tuned, files={"config.json": b"{}"}).save(tmp_path / "tuned")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(out: str = "x.patch", **options: object) -> Patch:
    patches.make("base", "tuned", Path(out), **options)  # type: ignore[arg-type]
    return Patch.load(out)


def test_an_exact_patch_there_and_back(here: Path) -> None:
    made()
    assert "20 tensors" not in done("apply", "base", "x.patch", "out", cwd=here)
    assert content_id(open_local(here / "out")) == content_id(open_local(here / "tuned"))
    assert (here / "out" / "config.json").read_bytes() == b"{}"
    said = json.loads(done("apply", "base", "x.patch", "--verify", "--json", cwd=here))
    assert said["content"] == content_id(open_local(here / "tuned"))
    assert said["exact"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exact"),
        ({"exact": True}, "exact"),
        ({"sparse": "5%"}, "sparse: 5 % by magnitude"),
        ({"sparse": "0.05", "per_tensor": True}, "sparse: 5 % of each tensor by magnitude"),
        ({"sparse": "5%", "by": "random:7"}, "sparse: 5 % at random, seed 7"),
        ({"sparse": "5%", "by": "fisher:tuned-fisher"}, "sparse: 5 % by Fisher"),
        ({"by": "names:*q_proj*, none"}, "sparse: tensors named *q_proj*, none"),
        ({"by": "bias"}, "sparse: biases alone"),
        ({"rank": 2}, "low rank: rank 2 at most"),
        ({"error": 0.5}, "low rank: error 0.5 at most"),
        ({"rank": 3, "error": 0.5}, "low rank: rank 3 at most, error 0.5 at most"),
    ],
)
def test_every_way_says_what_it_is_and_gives_what_it_says(
    options: dict[str, object], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Memory({f"{n}.weight": torch.rand(20, 16) for n in ("q_proj", "up_proj")}).save(here / "tuned-fisher")
    patch = made(**options)
    assert patch.manifest.made == words
    assert words in capsys.readouterr().out
    assert content_id(address.open("base+x.patch")) == patch.result


def test_show_explains_a_patch(here: Path) -> None:
    patch = made(sparse="5%")
    said = done("show", "x.patch", cwd=here)
    for part in (
        "sparse: 5 % by magnitude",
        patch.base,
        patch.result,
        "values: 32 of 640",
        "q_proj.weight",
        "config.json",
    ):
        assert part in said
    data = json.loads(done("show", "x.patch", "--json", cwd=here))
    assert (data["values"], data["elements"], data["exact"], data["bytes"]) == (32, 640, False, patch.nbytes)
    change = {n: address.open("tuned").read(n) - address.open("base").read(n) for n in data["tensors"]}
    left = {n: address.open("tuned").read(n) - address.open("base+x.patch").read(n) for n in change}
    norms = [sum(float(t.square().sum()) for t in held.values()) ** 0.5 for held in (left, change)]
    assert data["error"] == pytest.approx(norms[0] / norms[1], rel=1e-3)
    assert f"error {data['error']:.4f} of the whole change" in said
    made(rank=2)
    assert "(rank 2)" in done("show", "x.patch", cwd=here)


def test_a_patch_on_a_base_is_a_model_for_recipes_and_stores(here: Path) -> None:
    made()
    (here / "r.yaml").write_text("merge_method: linear\nmodels: [{model: base}, {model: base+x.patch}]\n")
    done("fuse", "r.yaml", "fused", cwd=here)
    both = [address.open(a).read("q_proj.weight") for a in ("base", "tuned")]
    torch.testing.assert_close(open_local(here / "fused").read("q_proj.weight"), (both[0] + both[1]) / 2)
    assert content_id(address.open("base+x.patch")) == content_id(address.open("tuned"))
    assert content_id(address.open("x.patch", base="base")) == content_id(address.open("tuned"))
    assert content_id(cofuse.apply(cofuse.open("base"), cofuse.Patch.load("x.patch"))) == content_id(
        address.open("tuned")
    )
    with pytest.raises(AddressError, match="needs its base"):
        address.open("x.patch")
    with pytest.raises(AddressError, match="no such file"):
        address.open("base+y.patch")


def test_the_command_line_makes_them(here: Path) -> None:
    done("init", cwd=here)
    done("commit", "base", "-m", "base", cwd=here)
    said = json.loads(
        done("diff", "main", "tuned", "-o", "x.patch", "--sparse", "5%", "--by", "random:1", "--json", cwd=here)
    )
    assert (said["made"], said["values"]) == ("sparse: 5 % at random, seed 1", 32)
    assert content_id(address.open("main+x.patch")) == said["result"]
    assert "do not go together" in refused("diff", "main", "tuned", "-o", "x.patch", "--exact", "--rank", "2", cwd=here)


def test_patches_on_patches(here: Path) -> None:
    made("1.patch", sparse="10%")
    patches.make("base+1.patch", "tuned", Path("2.patch"))
    assert content_id(address.open("base+1.patch+2.patch")) == content_id(address.open("tuned"))


def test_adapters_in_and_out(here: Path) -> None:
    done("extract-lora", "base", "tuned", "adapter", "--rank", "3", cwd=here)
    patches.make("base", "adapter", Path("x.patch"))
    patch = Patch.load("x.patch")
    assert {c.rank for c in patch.manifest.tensors.values()} == {3}
    assert patch.manifest.made == "adapter"
    done("apply", "base", "x.patch", "again", "--adapter", cwd=here)
    for name in ("q_proj.weight", "up_proj.weight"):
        torch.testing.assert_close(address.open("base+again").read(name), address.open("base+adapter").read(name))


def test_what_cannot_be_is_refused(here: Path) -> None:
    for options, match in (
        ({"exact": True, "rank": 2}, "do not go together"),
        ({"sparse": "5%", "rank": 2}, "do not go together"),
        ({"sparse": "5 percent"}, "not a share"),
        ({"sparse": "0%"}, "not a share"),
        ({"sparse": "nan"}, "not a share"),
        ({"by": "magnitude"}, "how many values"),
        ({"sparse": "1%", "by": "random:x"}, "has a seed"),
        ({"sparse": "1%", "by": "fishr:x"}, "no such mask"),
        ({"sparse": "1%", "by": "fisher"}, "needs one"),
        ({"per_tensor": True}, "do not go together"),
    ):
        with pytest.raises(PatchError, match=match):
            made(**options)  # type: ignore[arg-type]
    assert not (here / "x.patch").exists()


def test_a_wrong_base_and_a_damaged_patch_write_nothing(here: Path) -> None:
    patch = made(sparse="5%", values=True)
    said = refused("apply", "tuned", "x.patch", "out", cwd=here)
    assert patch.base in said
    assert content_id(open_local(here / "tuned")) in said
    assert "approximate" in done("apply", "tuned", "x.patch", "anyway", "--any-base", cwd=here)
    data = bytearray((here / "x.patch").read_bytes())
    data[-1] ^= 1
    (here / "x.patch").write_bytes(data)
    refused("apply", "base", "x.patch", "out", cwd=here)
    refused("show", "x.patch", cwd=here)
    refused("apply", "base", "x.patch", cwd=here)
    assert not (here / "out").exists()


def test_a_patch_that_gives_something_else_writes_nothing(here: Path) -> None:
    """Its own check sums are right; what comes out has another id than it says."""
    from patch.forged import manifest, write

    base = content_id(open_local(here / "base"))
    write(here / "x.patch", manifest(base=base, removed=["q_proj.weight"]))
    assert "another model than it says" in refused("apply", "base", "x.patch", "out", cwd=here)
    assert "another model than it says" in refused("apply", "base", "x.patch", "--verify", cwd=here)
    assert not (here / "out").exists()


def test_shares() -> None:
    assert [share_of(text) for text in ("0.5%", " 50 %", "1", "1e-3")] == [0.005, 0.5, 1.0, 0.001]
