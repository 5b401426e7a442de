"""git diff says what changed in which tensor; git merge merges the weights."""

from __future__ import annotations

import numpy as np
import pytest
from git_repositories import Git

from cofuse.checkpoint import build_header
from cofuse.store.git.manifest import MAX_MANIFEST

FLOATS = np.float32
Tensors = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]


def tensors(**changed: object) -> Tensors:
    rng = np.random.default_rng(0)
    found = {name: rng.standard_normal((20, 30), FLOATS) for name in ("a", "b", "c", "d")}
    return {**found, **changed}  # type: ignore[dict-item]


def encoded(values: Tensors) -> bytes:
    header = build_header({name: ("F32", value.shape) for name, value in values.items()}, {"format": "pt"})
    return header.raw + b"".join(np.ascontiguousarray(values[name]).tobytes() for name in header.entries)


def decoded(git: Git, path: str = "m.safetensors") -> Tensors:
    from safetensors.numpy import load_file

    return load_file(git.top / path)


def two_sides(git: Git, base: Tensors, ours: Tensors, theirs: Tensors) -> None:
    """Branches `main` with ours and `other` with theirs, which part at the base."""
    git.commit("m.safetensors", encoded(base), "base")
    git("checkout", "-qb", "other")
    git.commit("m.safetensors", encoded(theirs), "theirs")
    git("checkout", "-q", "main")
    git.commit("m.safetensors", encoded(ours), "ours")


def test_diff_names_what_changed_and_by_how_much(git: Git) -> None:
    git.commit("m.safetensors", encoded(tensors()))
    b = tensors()["b"].copy()
    b[0, :3] += 1
    git.commit("m.safetensors", encoded(tensors(b=b, c=tensors()["c"] * 2)))
    relative = np.sqrt(3) / np.linalg.norm(tensors()["b"])
    for said in (
        git("diff", "HEAD~1"),
        git.cofuse("diff", "HEAD~1"),
        git.cofuse("show"),
        git.cofuse("log", "-p", "-1"),
    ):
        assert "diff --cofuse a/m.safetensors b/m.safetensors\n2 tensors differ, 2 do not" in said
        rows = [line.split() for line in said.splitlines() if line.startswith("  changed")]
        assert [row[1] for row in rows] == ["c", "b"]
        assert [row[-2] for row in rows] == ["100.000%", "0.500%"]
        assert float(rows[0][-1]) == pytest.approx(1, rel=1e-3)
        assert float(rows[1][-1]) == pytest.approx(relative, rel=1e-2)
    assert git.cofuse("diff", "HEAD") == git("diff", "HEAD") == ""


def test_diff_of_the_working_folder_and_of_what_comes_and_goes(git: Git) -> None:
    git.commit("m.safetensors", encoded(tensors()))
    (git.top / "m.safetensors").write_bytes(encoded(tensors(a=tensors()["a"] + 1)))
    assert "changed   a" in git("diff")
    assert "changed   a" in git.cofuse("diff")
    git("add", "m.safetensors")
    assert "changed   a" in git.cofuse("diff", "--cached")
    git("rm", "-q", "-f", "m.safetensors")
    assert "to nothing" in git.cofuse("diff", "--cached")
    git.commit("n.safetensors", b"no weights")
    assert "nothing, 0 bytes to no safetensors, 10 bytes" in git.cofuse("show")


def test_log_p_without_us_lists_the_tensors_that_changed(git: Git) -> None:
    git.commit("m.safetensors", encoded(tensors()))
    git.commit("m.safetensors", encoded(tensors(c=tensors()["c"] * 2)))
    lines = git("log", "-p", "-1").splitlines()
    assert [line[:3] for line in lines if line.startswith(("+c", "-c", "+a", "-a", "+b"))] == ["-c ", "+c "]


def test_merge_takes_what_one_side_changed_and_averages_what_both_did(git: Git) -> None:
    base = tensors()
    ours = tensors(a=base["a"] + 1, c=base["c"] + 2)
    theirs = tensors(b=base["b"] + 3, c=base["c"] + 4)
    two_sides(git, base, ours, theirs)
    assert "1 tensors fused by linear" in git("merge", "-m", "both", "other")
    found = decoded(git)
    np.testing.assert_array_equal(found["a"], ours["a"])
    np.testing.assert_array_equal(found["b"], theirs["b"])
    np.testing.assert_array_equal(found["d"], base["d"])
    np.testing.assert_allclose(found["c"], base["c"] + 3, rtol=1e-5)
    assert git("status", "--porcelain") == ""
    assert len(git.kept("HEAD:m.safetensors")) <= MAX_MANIFEST
    merged = git.sha("m.safetensors")
    assert merged in git.kept("HEAD:m.safetensors").decode()
    git("checkout", "-q", "other")
    git("checkout", "-q", "main")
    assert git.sha("m.safetensors") == merged


def test_merging_either_way_round_gives_the_same_bytes(git: Git) -> None:
    base = tensors()
    two_sides(git, base, tensors(c=base["c"] * 1.1), tensors(c=base["c"] * 0.7))
    git("merge", "-q", "-m", "one", "other")
    one = git.sha("m.safetensors")
    git("checkout", "-q", "other")
    git("merge", "-q", "-m", "two", "main~1")
    assert git.sha("m.safetensors") == one


@pytest.mark.slow
def test_the_method_is_git_s_to_configure(git: Git) -> None:
    base = tensors()
    two_sides(git, base, tensors(c=base["c"] + 1), tensors(c=base["c"] + 2))
    git("config", "cofuse.mergeMethod", "task_arithmetic weight=1.0")
    assert "task_arithmetic" in git("merge", "-m", "both", "other")
    np.testing.assert_allclose(decoded(git)["c"], base["c"] + 3, rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["shape", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("file", "method", "both added"))]
)
def test_a_conflict_leaves_ours_and_says_why(git: Git, kind: str) -> None:
    base = tensors()
    larger = np.zeros((21, 30), FLOATS)
    if kind == "both added":
        git.commit("x", b"1")
        git("checkout", "-qb", "other")
        git.commit("m.safetensors", encoded(tensors(a=larger)))
        git("checkout", "-q", "main")
        git.commit("m.safetensors", encoded(base))
    else:
        two_sides(git, base, tensors(c=base["c"] + 1), tensors(c=larger if kind == "shape" else base["c"] + 2))
    if kind == "file":
        git("checkout", "-q", "other")
        git.commit("m.safetensors", b"no weights")
        git("checkout", "-q", "main")
    if kind == "method":
        git("config", "cofuse.mergeMethod", "magic")
    before = git.sha("m.safetensors")
    done = git.run("git", "merge", "-m", "both", "other")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"cofuse: m.safetensors: " in done.stderr
    if kind == "shape":
        assert b"reshaped from [20, 30] to [21, 30]" in done.stderr
    assert git.sha("m.safetensors") == before
    assert git("diff", "--name-only", "--diff-filter=U") == "m.safetensors\n"
    if kind == "shape":
        git("merge", "--abort")
        git("-c", "cofuse.mergeTheirs=c", "merge", "-q", "-m", "both", "other")
        assert decoded(git)["c"].shape == (21, 30)
        return
    git("checkout", "-q", "--theirs", "m.safetensors")
    git("add", "m.safetensors")
    git("commit", "-qm", "theirs")
    assert git.kept("HEAD:m.safetensors") == git.kept("other:m.safetensors")


@pytest.mark.slow
def test_rebase_and_cherry_pick_merge_too(git: Git) -> None:
    base = tensors()
    two_sides(git, base, tensors(a=base["a"] + 1), tensors(b=base["b"] + 1))
    git("cherry-pick", "other")
    found = decoded(git)
    np.testing.assert_array_equal(found["a"], base["a"] + 1)
    np.testing.assert_array_equal(found["b"], base["b"] + 1)
