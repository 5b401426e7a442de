"""Through git and back: every byte, whatever the file; and what git itself keeps is small."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from git_repositories import Git
from odd_folders import ODD, handwritten, noise, write_weights

from cofuse.checkpoint import TensorSpec
from cofuse.store.git.manifest import MAX_MANIFEST, Manifest
from cofuse.store.trees import Weights, load_tree

LARGE = {"a": TensorSpec("F32", (3000, 1000)), "b": TensorSpec("BF16", (1000, 999)), "c": TensorSpec("F32", (4,))}


def weights(path: Path, specs: dict[str, TensorSpec] = LARGE, seed: object = 0) -> bytes:
    write_weights(path, specs, {"format": "pt"}, seed)
    return path.read_bytes()


def fill(top: Path) -> None:
    """Files of every kind, below names of every kind."""
    weights(top / "odd.safetensors", ODD)
    weights(top / "large.safetensors")
    (top / "no parts").mkdir()
    weights(top / "no parts" / "naïve 模型.safetensors", {}, 1)
    handwritten(top)
    (top / "empty.safetensors").write_bytes(b"")
    (top / "short.safetensors").write_bytes(b"\x01")
    (top / "text.safetensors").write_bytes(b"no weights\r\nat all\n")
    (top / "noise.safetensors").write_bytes(noise(5_000_000, "x"))
    whole = (top / "large.safetensors").read_bytes()
    (top / "truncated.safetensors").write_bytes(whole[:-1])
    (top / "longer.safetensors").write_bytes(whole + b"!")
    # A header longer than any that is read, and one that claims to be.
    (top / "long.safetensors").write_bytes((17 << 20).to_bytes(8, "little") + b"{" + b" " * (17 << 20))
    (top / "claims.safetensors").write_bytes((1 << 63).to_bytes(8, "little") + b"{}")


def test_every_byte_comes_back(git: Git) -> None:
    fill(git.top)
    git("add", "-A")
    git("commit", "-qm", "all kinds")
    paths = [p for p in git("ls-files", "-z").split("\0") if p.endswith(".safetensors")]
    assert len(paths) == 12
    before = {path: git.sha(path) for path in paths}
    for path in paths:
        if path != "empty.safetensors":
            manifest = Manifest.parse(git.kept(f":{path}"), path)
            assert manifest is not None
            assert (manifest.sha256, manifest.size) == (before[path], (git.top / path).stat().st_size)
        (git.top / path).unlink()
    git("checkout", "-q", ".")
    assert {path: git.sha(path) for path in paths} == before
    git("add", "--renormalize", ".")
    assert git("status", "--porcelain") == ""
    sizes = git("cat-file", "--batch-all-objects", "--batch-check=%(objecttype) %(objectsize)").splitlines()
    assert all(int(line.split()[1]) <= MAX_MANIFEST for line in sizes if line.startswith("blob"))


def test_what_did_not_change_is_not_kept_again(git: Git) -> None:
    data = weights(git.top / "m.safetensors")
    git("add", "m.safetensors")
    before = {i: git.store.objects.stored_bytes(i) for i in git.store.objects}
    changed = data[:-4] + b"\x01\x02\x03\x04"  # one value of the last tensor
    git.commit("m.safetensors", changed)
    git.commit("elsewhere/m.safetensors", changed)
    new = {i: git.store.objects.stored_bytes(i) for i in git.store.objects if i not in before}
    assert len(new) == 2  # the tensor and the tree
    assert sum(new.values()) < 4000


def test_a_small_change_costs_little(git: Git) -> None:
    data = bytearray(weights(git.top / "m.safetensors"))
    git.commit("m.safetensors", bytes(data))
    before = sum(git.store.objects.stored_bytes(i) for i in git.store.objects)
    for at in range(1000, 3_000_000, 40_000):
        data[-at] ^= 1
    git.commit("m.safetensors", bytes(data))
    assert sum(git.store.objects.stored_bytes(i) for i in git.store.objects) - before < before / 50
    git("checkout", "-q", "HEAD~1")
    git("checkout", "-q", "main")
    assert git.sha("m.safetensors") == hashlib.sha256(data).hexdigest()


def test_branches_stash_and_worktrees(git: Git, tmp_path: Path) -> None:
    one, two = weights(git.top / "m.safetensors"), weights(tmp_path / "x", seed=1)
    git.commit("m.safetensors", one)
    git("checkout", "-qb", "other")
    git.commit("m.safetensors", two)
    git("checkout", "-q", "main")
    assert (git.top / "m.safetensors").read_bytes() == one
    (git.top / "m.safetensors").write_bytes(two)
    git("stash", "-q")
    assert (git.top / "m.safetensors").read_bytes() == one
    git("stash", "pop", "-q")
    assert (git.top / "m.safetensors").read_bytes() == two
    git("checkout", "-q", "-f")
    git("worktree", "add", "-q", str(tmp_path / "beside"), "other")
    beside = Git(tmp_path / "beside", tmp_path)
    assert (beside.top / "m.safetensors").read_bytes() == two
    beside.commit("m.safetensors", one)
    assert sorted(p.name for p in (git.top / ".git").glob("*cofuse*")) == [".cofuse"]
    git("merge", "-q", "--ff-only", "other")
    assert (git.top / "m.safetensors").read_bytes() == one


def test_files_from_before_the_filter_stay_as_they_are(tmp_path: Path) -> None:
    git = Git(tmp_path / "old", tmp_path)
    git.top.mkdir()
    git("init", "-q")
    data = weights(git.top / "m.safetensors")
    git.commit("m.safetensors", data)
    git.cofuse("install")
    (git.top / "m.safetensors").unlink()
    git("checkout", "-q", ".")
    assert (git.top / "m.safetensors").read_bytes() == data


def test_installing_twice_changes_nothing_and_uninstalling_takes_it_back(tmp_path: Path) -> None:
    git = Git(tmp_path / "repository", tmp_path)
    git.top.mkdir()
    git("init", "-q")
    (git.top / ".gitattributes").write_text("*.png binary")
    before = (git.top / ".git" / "config").read_bytes()
    git.cofuse("install")
    hook = git.top / ".git" / "hooks" / "pre-push"
    files = [git.top / ".git" / "config", git.top / ".gitattributes", hook]
    first = [path.read_bytes() for path in files]
    git.cofuse("install")
    assert [path.read_bytes() for path in files] == first
    assert first[1].startswith(b"*.png binary\n")
    git.cofuse("uninstall")
    assert (git.top / ".git" / "config").read_bytes() == before
    assert not hook.exists()
    hook.write_text("#!/bin/sh\necho mine\n")
    assert 'pre-push "$@"' in git.cofuse("install")
    git.cofuse("uninstall")
    assert "mine" in hook.read_text()


def test_track_adds_a_pattern_once(git: Git) -> None:
    git.cofuse("track", "*.bin")
    lines = (git.top / ".gitattributes").read_text().splitlines()
    git.cofuse("track", "*.bin")
    assert (git.top / ".gitattributes").read_text().splitlines() == lines
    git.commit("x.bin", noise(10_000, 0))
    assert Manifest.parse(git.kept(":x.bin"), "x.bin") is not None
    assert git.cofuse("track") == "x.bin\n"
    done = git.run(*git_command("track", "two words"))
    assert done.returncode == 1
    assert b"not a pattern" in done.stderr


@pytest.mark.parametrize("harm", ["object", "edit"])
def test_what_cannot_be_read_is_refused_and_git_goes_on(git: Git, harm: str, tmp_path: Path) -> None:
    git.commit("m.safetensors", weights(git.top / "m.safetensors"), "first")
    (good := tmp_path / "good").write_bytes((git.top / "m.safetensors").read_bytes())
    git("checkout", "-qb", "bad")
    git.commit("m.safetensors", weights(git.top / "m.safetensors", seed=1), "second")
    manifest = Manifest.parse(git.kept(":m.safetensors"), "m")
    assert manifest is not None
    if harm == "object":
        entry = load_tree(git.store.objects, manifest.tree).files["model.safetensors"]
        assert isinstance(entry, Weights)
        git.store.objects.path(entry.tensors[0]).unlink()
    else:
        raw = manifest.encode().replace(b"size ", b"size 0")
        blob = git("hash-object", "-w", "--stdin", given=raw).strip()
        git("update-index", "--cacheinfo", f"100644,{blob},m.safetensors")
        git("commit", "-qm", "bad")
    git("checkout", "-q", "-f", "main")
    said = git.fails("checkout", "bad")
    assert "m.safetensors" in said
    assert "cofuse: " in said
    assert git("rev-parse", "--abbrev-ref", "HEAD").strip() == "main"
    git("checkout", "-q", "-f", "main")
    assert (git.top / "m.safetensors").read_bytes() == good.read_bytes()
    assert git("status", "--porcelain") == ""
    # Without weights, every version can be had.
    git("-c", "cofuse.smudge=false", "checkout", "-q", "bad")
    assert (git.top / "m.safetensors").stat().st_size <= MAX_MANIFEST


def git_command(*arguments: str) -> list[str]:
    from git_repositories import COFUSE

    return [*COFUSE, *arguments]


def test_a_killed_add_loses_nothing(git: Git) -> None:
    specs = {f"t{i}": TensorSpec("F32", (1000, 500)) for i in range(12)}
    first = weights(git.top / "m.safetensors", specs)
    git.commit("m.safetensors", first)
    for k in range(3):
        second = weights(git.top / "m.safetensors", specs, seed=k + 1)
        adding = subprocess.Popen(
            ["git", "add", "m.safetensors"],
            cwd=git.top,
            env=git.environment,
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.1 + 0.1 * k)
        os.killpg(adding.pid, signal.SIGKILL)
        adding.wait()
        (git.top / ".git" / "index.lock").unlink(missing_ok=True)
        (git.top / "m.safetensors").unlink()
        git("checkout", "-q", "HEAD", "--", "m.safetensors")
        assert (git.top / "m.safetensors").read_bytes() == first
        (git.top / "m.safetensors").write_bytes(second)
        git("add", "m.safetensors")
        (git.top / "m.safetensors").unlink()
        git("checkout", "-q", "--", "m.safetensors")
        assert (git.top / "m.safetensors").read_bytes() == second
        git("reset", "-q", "--hard")
    assert len(list((git.store.path / "tmp").iterdir())) <= 1


def test_the_clean_and_smudge_commands_do_as_the_process_does(git: Git) -> None:
    data = weights(git.top / "m.safetensors")
    git("add", "m.safetensors")
    with_process = git.kept(":m.safetensors")
    git("config", "--unset", "filter.cofuse.process")
    (git.top / "m.safetensors").unlink()
    git("checkout", "-q", ".")
    assert (git.top / "m.safetensors").read_bytes() == data
    assert git("hash-object", "m.safetensors") == git("hash-object", "--stdin", given=with_process)


def test_code_in_the_repository_is_not_run(git: Git) -> None:
    for name in ("zstandard.py", "blake3.py", "cofuse.py", "struct.py"):
        (git.top / name).write_text("raise SystemExit('run from the repository')")
    data = weights(git.top / "m.safetensors")
    git.commit("m.safetensors", data)
    (git.top / "m.safetensors").unlink()
    git("checkout", "-q", ".")
    assert (git.top / "m.safetensors").read_bytes() == data
