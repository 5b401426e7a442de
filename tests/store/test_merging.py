"""What must hold of every merge, cherry-pick and revert."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from histories import CONFIG, fork, model, values
from hypothesis import given
from hypothesis import strategies as st
from odd_folders import ODD, digests, write_weights

import cofuse as cf
from cofuse.checkpoint import Hashed, Memory, TensorSpec, content_id
from cofuse.errors import ConflictError, FuseError, RefError, StoreError
from cofuse.fuse import METHODS, fuse
from cofuse.store import Store
from cofuse.store.deciding import Settled, agreed
from cofuse.store.joining import How, cherry_pick, merge, revert
from cofuse.store.replaying import replay

SYMMETRIC = ["linear", "task_arithmetic", "ties", "dare_ties", "model_stock", "karcher", "median", "norm_clip"]


def noisy(seed: int, dtype: torch.dtype = torch.float32) -> Memory:
    """A model of which every tensor depends on the seed."""
    source = torch.Generator().manual_seed(seed)
    return model({n: torch.randn(9, 7, generator=source).to(dtype) for n in ("a.weight", "b.weight", "c.weight")})


def tree(store: Store, rev: str) -> str:
    return store.load_commit(rev).tree


# Which side a tensor is taken from


def test_what_one_side_changed_is_taken_and_what_both_changed_is_fused(store: Store) -> None:
    base = {"same": 0, "ours": 0, "theirs": 0, "alike": 0, "both": 0}
    fork(
        store,
        model(base),
        model({**base, "ours": 1, "alike": 5, "both": 2}),
        model({**base, "theirs": 3, "alike": 5, "both": 4}),
    )
    done = merge(store, "side")
    assert values(store) == {"same": 0, "ours": 1, "theirs": 3, "alike": 5, "both": 3}
    assert done.commit.parents == (store.resolve("main^1"), store.resolve("side"))
    assert (done.report.ours, done.report.theirs, done.report.fused) == (1, 1, ["both"])
    assert store.fsck().ok


@given(*(st.one_of(st.none(), st.integers(0, 2)) for _ in range(3)))
def test_the_table_is_the_same_seen_from_either_side(base: int | None, ours: int | None, theirs: int | None) -> None:
    side, other = agreed(base, ours, theirs), agreed(base, theirs, ours)
    picked = [None if k is None else (base, *pair)[k] for k, pair in ((side, (ours, theirs)), (other, (theirs, ours)))]
    assert (side is None) == (other is None) == (base not in (ours, theirs) and ours != theirs)
    assert picked[0] == picked[1]
    if side is not None and ours == theirs:
        assert picked[0] == ours


def test_a_version_merged_with_itself_is_itself(store: Store) -> None:
    fork(store, noisy(0), noisy(1), noisy(1))
    merge(store, "side")
    assert tree(store, "main") == tree(store, "main^1") == tree(store, "side")


@pytest.mark.parametrize("shards", [None, 300])
def test_a_side_that_changed_nothing_gives_the_others_tree(store: Store, tmp_path: Path, shards: int | None) -> None:
    for name, seed in (("base", 0), ("theirs", 1)):
        noisy(seed).save(tmp_path / name, max_shard_bytes=shards)
    (tmp_path / "theirs" / "notes.md").write_text("new")
    (tmp_path / "theirs" / "sub").mkdir()
    write_weights(tmp_path / "theirs" / "sub" / "extra.safetensors", {"x": TensorSpec("I64", (4,))}, {"a": "b"})
    store.commit(tmp_path / "base", message="base")
    store.branch("side")
    store.commit(tmp_path / "base", message="empty")
    store.commit(tmp_path / "theirs", message="theirs", branch="side")
    merge(store, "side")
    assert tree(store, "main") == tree(store, "side")
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "theirs")


@pytest.mark.parametrize("method", SYMMETRIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_symmetric_method_gives_one_content_either_way(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    found = set()
    settings = {"density": 0.5} if "density" in METHODS[method].parameters else {}
    for name, sides in (("one", (1, 2)), ("two", (2, 1))):
        store = Store.init(tmp_path / name)
        fork(store, noisy(0, dtype), *(noisy(seed, dtype) for seed in sides))
        found.add(merge(store, "side", how=How(method, settings, seed=7)).commit.content)
    assert len(found) == 1


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "ema", "iso_c", "multislerp"])
def test_a_merge_is_the_fuse_of_the_three(store: Store, method: str) -> None:
    checkpoints = [noisy(seed, torch.bfloat16) for seed in range(3)]
    fork(store, *checkpoints)
    own = {"weight": 1.0} if METHODS[method].parameters.get("weight") else {}
    done = merge(
        store, "side", how=How(method, {f"{side}.{k}": v for k, v in own.items() for side in ("ours", "theirs")})
    )
    named = dict(zip(("base", "ours", "theirs"), checkpoints, strict=True))
    order = [named[one["model"]] for one in done.commit.record["merge"]["recipe"]["models"]]
    by_hand = fuse(method, order, base=checkpoints[0], weights=[1.0, 1.0] if own else None)
    opened = store.checkpoint("main")
    for name in opened.names():
        assert opened.read_bytes(name) == bytes(by_hand.read_bytes(name)), name


def test_settings_of_one_side(store: Store) -> None:
    fork(store, model({"w": 0}), model({"w": 4}), model({"w": 8}))
    merge(store, "side", how=How("linear", {"ours.weight": 3, "theirs.weight": 1}))
    assert values(store) == {"w": 5}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (How("linaer"), 'did you mean "linear"'),
        (How("slerp", {"t": 0.5}), "1 model besides the base"),
        (How("krum"), "at least 3 models"),
        (How("linear", {"wieght": 1}), 'did you mean "weight"'),
        (How("linear", {"mine.weight": 1}), "only ours and theirs"),
        (How("ties", {"density": 2}), "density"),
    ],
)
def test_a_method_that_does_not_fit_is_refused(store: Store, how: How, said: str) -> None:
    fork(store, noisy(0), noisy(1), noisy(2))
    before = store.branches()
    with pytest.raises(FuseError) as caught:
        merge(store, "side", how=how)
    assert said in str(caught.value)
    assert store.branches() == before


def test_a_value_that_is_not_finite_is_refused(store: Store) -> None:
    fork(store, noisy(0), noisy(1), model({n: torch.full((9, 7), float("nan")) for n in noisy(0).names()}))
    before = store.branches()
    with pytest.raises(FuseError, match="not finite"):
        merge(store, "side")
    assert store.branches() == before
    assert store.fsck().ok


# Conflicts


def conflicts_of(store: Store, how: How | None = None) -> dict[str, tuple[str, str]]:
    before = store.branches()
    with pytest.raises(ConflictError) as caught:
        merge(store, "side", how=how or How())
    assert store.branches() == before
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    found = {c.name: (c.ours, c.theirs) for c in caught.value.conflicts}  # type: ignore[attr-defined]
    assert all(name in str(caught.value) for name in found)
    return found


def test_everything_that_cannot_be_fused_is_told_at_once(store: Store) -> None:
    base = {
        "vocabulary": torch.zeros(10, 4),
        "cast": 0,
        "gone": 0,
        "count": torch.zeros(3, dtype=torch.int64),
        "fine": 0,
    }
    ours = {
        "vocabulary": torch.zeros(12, 4),
        "cast": torch.zeros(2, 3, dtype=torch.bfloat16),
        "count": torch.ones(3, dtype=torch.int64),
        "new": 1,
        "fine": 1,
    }
    theirs = {
        "vocabulary": torch.ones(10, 4),
        "cast": 1,
        "gone": 1,
        "count": torch.full((3,), 2),
        "new": torch.zeros(5),
        "fine": 2,
    }
    files = [{"config.json": name, "vocab.txt": name} for name in (b"{}", b'{"a": 1}', b'{"a": 2}')]
    del files[1]["vocab.txt"]
    fork(store, *(model(t, f) for t, f in zip((base, ours, theirs), files, strict=True)))
    assert conflicts_of(store) == {
        "vocabulary": ("reshaped from [10, 4] to [12, 4]", "changed"),
        "cast": ("cast from F32 to BF16", "changed"),
        "gone": ("removed", "changed"),
        "count": ("changed (I64 is never averaged)", "changed (I64 is never averaged)"),
        "new": ("added as F32 [2, 3]", "added as F32 [5]"),
        "config.json": ("changed", "changed"),
        "vocab.txt": ("removed", "changed"),
    }
    settled = Settled(ours=("voc*", "cast", "gone", "config.json"), theirs=("count", "new"))
    assert sorted(conflicts_of(store, How(settled=settled._replace(ours=("vocabulary", "gone"))))) == [
        "cast",
        "config.json",
        "vocab.txt",
    ]
    done = merge(store, "side", how=How(settled=settled))
    assert values(store) == {"vocabulary": 0, "cast": 0, "count": 2, "new": 0, "fine": 1.5}
    assert store.checkpoint("main").spec("vocabulary").shape == (12, 4)
    assert dict(store.checkpoint("main").files) == {"config.json": b'{"a": 1}'}
    assert done.report.settled["count"] == "theirs"
    assert done.commit.record["merge"]["settled"] == {"ours": list(settled.ours), "theirs": list(settled.theirs)}
    assert replay(store, "main").same


def test_what_is_settled_must_be_there_and_settled_once(store: Store) -> None:
    fork(store, noisy(0), noisy(1), noisy(2))
    with pytest.raises(StoreError, match="nothing that both sides changed"):
        merge(store, "side", how=How(settled=Settled(ours=("d.*",))))
    with pytest.raises(StoreError, match="settled both ways"):
        merge(store, "side", how=How(settled=Settled(("a.*",), ("*.weight",))))


def test_a_glob_goes_before_the_method(store: Store) -> None:
    fork(store, model({"a": 0, "b": 0}), model({"a": 1, "b": 2}), model({"a": 3, "b": 4}))
    merge(store, "side", how=How(settled=Settled(theirs=("a",))))
    assert values(store) == {"a": 3, "b": 3}


def test_added_and_removed(store: Store) -> None:
    fork(
        store, model({"a": 0, "b": 0, "c": 0}), model({"a": 1, "c": 0, "ours": 1}), model({"a": 0, "b": 0, "theirs": 1})
    )
    merge(store, "side")
    assert values(store) == {"a": 1, "ours": 1, "theirs": 1}


def test_tied_names(store: Store) -> None:
    def tied(value: float, *names: str, **more: float) -> Memory:
        shared = torch.full((2, 3), float(value))
        return model({**dict.fromkeys(names, shared), **more})

    fork(store, tied(0, "emb", "head", x=0), tied(1, "emb", "head", x=0), tied(2, "emb", "head", x=5))
    merge(store, "side")
    assert values(store) == {"emb": 1.5, "head": 1.5, "x": 5}
    assert dict(store.checkpoint("main").aliases) == {"head": "emb"}
    store.branch("untied", "main~1")
    store.commit(tied(0, "emb", head=7, x=0), message="untied", branch="untied", parents=["main^1"])
    merge(store, "untied", how=How(settled=Settled(ours=("emb",))))
    assert values(store) == {"emb": 1.5, "x": 5, "head": 7}
    assert dict(store.checkpoint("main").aliases) == {}
    assert store.fsck().ok


def test_a_tie_to_what_the_other_side_removed(store: Store) -> None:
    shared = torch.zeros(2)
    fork(
        store,
        model({"emb": torch.zeros(2), "head": torch.ones(2)}),
        Memory({"emb": shared, "head": shared}, files={"config.json": CONFIG}),
        model({"head": torch.ones(2)}),
    )
    assert conflicts_of(store) == {"head": ("tied to emb", "emb removed")}


# Files


def test_the_layout_of_ours_is_kept(store: Store, tmp_path: Path) -> None:
    for name, seed, size in (("base", 0, None), ("ours", 1, 300), ("theirs", 2, None)):
        noisy(seed).save(tmp_path / name, max_shard_bytes=size)
    store.commit(tmp_path / "base", message="base")
    store.branch("side")
    store.commit(tmp_path / "ours", message="ours")
    store.commit(tmp_path / "theirs", message="theirs", branch="side")
    merge(store, "side")
    store.checkout("main", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in (tmp_path / "ours").iterdir())
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (tmp_path / "ours" / index).read_bytes()
    opened = cf.open(tmp_path / "out")
    assert content_id(opened) == store.load_commit("main").content
    assert torch.allclose(opened.read("a.weight"), (noisy(1).read("a.weight") + noisy(2).read("a.weight")) / 2)


def test_names_that_no_side_has_so_make_one_file(store: Store, tmp_path: Path) -> None:
    fork(store, model({"a": 0, "b": 0}), model({"a": 0, "b": 0, "c": 1}), model({"a": 1}))
    merge(store, "side")
    store.checkout("main", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json"}
    assert values(store) == {"a": 1, "c": 1}


def test_metadata_goes_with_the_layout_and_the_rest_is_told(store: Store) -> None:
    fork(store, *(model({"w": k}, metadata={"made": str(k)}) for k in range(3)))
    done = merge(store, "side")
    assert store.checkpoint("main").metadata["made"] == "1"
    assert "metadata is left out" in done.report.notes[0]


def test_other_weights_files_are_merged_too(store: Store, tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("ours", 1), ("theirs", 2)):
        noisy(0 if name == "base" else 1).save(tmp_path / name)
        noisy(seed).save(tmp_path / name / "vae")
    store.commit(tmp_path / "base", message="base")
    store.branch("side")
    store.commit(tmp_path / "ours", message="ours")
    store.commit(tmp_path / "theirs", message="theirs", branch="side")
    done = merge(store, "side")
    assert done.report.fused == [f"vae/model.safetensors: {n}" for n in noisy(0).names()]
    store.checkout("main", tmp_path / "out")
    found = cf.open(tmp_path / "out" / "vae").read("a.weight")
    assert torch.allclose(found, (noisy(1).read("a.weight") + noisy(2).read("a.weight")) / 2)
    assert replay(store, "main").same


def test_a_folder_of_every_dtype(store: Store, tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("ours", 0), ("theirs", 1)):
        (tmp_path / name).mkdir()
        write_weights(tmp_path / name / "model.safetensors", ODD, {"format": "pt"}, seed)
    (tmp_path / "ours" / "notes.md").write_text("x")
    store.commit(tmp_path / "base", message="base")
    store.branch("side")
    store.commit(tmp_path / "ours", message="ours")
    store.commit(tmp_path / "theirs", message="theirs", branch="side")
    merge(store, "side")
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == {
        **digests(tmp_path / "theirs"),
        **digests(tmp_path / "ours"),
        **digests(tmp_path / "theirs"),
    }


def test_a_record_of_a_fuse_stays_with_its_tensors_alone(store: Store) -> None:
    def recorded(value: int) -> dict[str, bytes]:
        return {"cofuse.json": json.dumps({"made": value}).encode(), "config.json": CONFIG}

    fork(store, model({"w": 0, "x": 0}), model({"w": 1, "x": 0}, recorded(1)), model({"w": 0, "x": 2}, recorded(2)))
    done = merge(store, "side")
    assert set(store.checkpoint("main").files) == {"config.json"}
    assert "cofuse.json is left out" in done.report.notes[0]


def test_nothing_is_read_but_what_is_fused(store: Store) -> None:
    fork(store, model({"a": 3, "b": 4, "c": 0}), model({"a": 5, "b": 4, "c": 1}), model({"a": 3, "b": 6, "c": 2}))
    ids = {i for rev in ("main", "side", "main~1") for n, i in store.checkpoint(rev).tensor_ids().items() if n != "c"}
    for tensor in ids:
        path = store.objects.path(tensor)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"?")  # whoever reads one of these meets damage
    merge(store, "side")
    assert store.checkpoint("main").read("c")[0, 0] == 1.5


# Histories


def test_fast_forward_and_already_there(store: Store) -> None:
    first = store.commit(model({"w": 0}), message="0")
    store.branch("side")
    second = store.commit(model({"w": 1}), message="1", branch="side")
    made = merge(store, "side", fast_forward=False, message="joined")
    assert made.commit.parents == (first.id, second.id)
    assert made.commit.tree == second.tree
    store.update_ref("refs/heads/main", first.id)
    assert merge(store, "side") == (second, False, made.report.__class__())
    assert store.resolve("main") == second.id
    assert not merge(store, "side~1").made
    assert store.resolve("main") == second.id


def test_into_another_branch_and_into_nothing(store: Store, tmp_path: Path) -> None:
    fork(store, noisy(0), noisy(1), noisy(2))
    main = store.resolve("main")
    done = merge(store, "main", into="side")
    assert (store.resolve("main"), store.resolve("side")) == (main, done.commit.id)
    with pytest.raises(RefError, match="no such branch"):
        merge(store, "main", into="nowhere")
    store.refs.point_head("refs/heads/fresh")
    assert merge(store, "main").commit.id == store.resolve("fresh") == main


def test_criss_cross_is_told_and_settled_by_naming_a_base(store: Store) -> None:
    _, ours, theirs = fork(store, model({"w": 0}), model({"w": 2}), model({"w": 4}))
    merge(store, theirs.id, into="main")
    merge(store, ours.id, into="side", how=How("task_arithmetic"))
    with pytest.raises(StoreError, match="criss-cross") as caught:
        merge(store, "side")
    assert "2 merge bases" in str(caught.value)
    assert all(c.id[:12] in str(caught.value) for c in (ours, theirs))
    done = merge(store, "side", base=ours.id)
    assert values(store) == {"w": 4.5}
    assert done.commit.record["merge"]["base"] == ours.id
    assert replay(store, "main").same


def test_unrelated_histories(store: Store) -> None:
    store.commit(model({"w": 1}), message="one")
    other = store.commit(model({"w": 3}), message="two", branch="side", parents=[])
    with pytest.raises(StoreError, match="no commit in common"):
        merge(store, "side")
    before = store.commit(model({"w": 0}), message="zero", branch="zero", parents=[])
    assert merge(store, "side", base=before.id).commit.parents[1] == other.id
    assert values(store) == {"w": 2}


def test_reverting_the_last_commit_gives_the_tree_before_it(store: Store) -> None:
    fork(store, noisy(0), noisy(1), noisy(2))
    revert(store, "main")
    assert tree(store, "main") == tree(store, "main~2")
    assert store.load_commit("main").parents == (store.resolve("main~1"),)
    revert(store, "main")
    assert tree(store, "main") == tree(store, "main~2")


def test_reverting_what_others_came_after(store: Store) -> None:
    for n, (a, b) in enumerate([(0, 0), (1, 0), (3, 7)]):
        store.commit(model({"a": a, "b": b}), message=str(n))
    revert(store, "main~1")
    assert values(store) == {"a": 2, "b": 7}
    assert "revert" in store.load_commit("main").message
    assert replay(store, "main").same


def test_picking_onto_its_own_parent_gives_the_commits_tree(store: Store) -> None:
    fork(store, noisy(0), noisy(1), noisy(2))
    store.branch("again", "side~1")
    cherry_pick(store, "side", into="again")
    assert tree(store, "again") == tree(store, "side")
    assert store.load_commit("again").message == "theirs"


def test_picking_adds_the_change(store: Store) -> None:
    fork(store, model({"a": 1, "b": 0}), model({"a": 2, "b": 0}), model({"a": 5, "b": 3}))
    cherry_pick(store, "side")
    assert values(store) == {"a": 6, "b": 3}
    assert replay(store, "main").same
    before = store.resolve("main")
    store.commit(store.checkpoint("main"), message="the same", branch="side", parents=["main"])
    assert not cherry_pick(store, "side").made  # it changes nothing
    assert store.resolve("main") == before


def test_of_a_merge_the_parent_must_be_named(store: Store) -> None:
    first, ours, theirs = fork(store, model({"w": 0, "x": 0}), model({"w": 1, "x": 0}), model({"w": 0, "x": 1}))
    merge(store, "side")
    with pytest.raises(StoreError, match="which parent"):
        revert(store, "main")
    with pytest.raises(StoreError, match="which parent"):
        revert(store, "main", mainline=3)
    revert(store, "main", mainline=1)
    assert tree(store, "main") == ours.tree
    with pytest.raises(StoreError, match="a first commit"):
        cherry_pick(store, first.id)
    store.branch("base", first.id)
    cherry_pick(store, "main~1", into="base", mainline=1)
    assert tree(store, "base") == theirs.tree


# Records


@pytest.mark.parametrize(("method", "settings"), [("linear", {}), ("dare_ties", {"density": 0.5}), ("norm_clip", {})])
def test_a_merge_made_again_is_the_same(store: Store, method: str, settings: dict[str, float]) -> None:
    fork(store, noisy(0), noisy(1), noisy(2))
    done = merge(store, "side", how=How(method, settings, seed=3))
    for threads in (1, 3):
        assert replay(store, done.commit.id, threads=threads) == (done.commit.tree, done.commit.tree, (), ())
    record = done.commit.record["merge"]
    assert (record["verb"], record["seed"]) == ("merge", 3)
    assert [record[side] for side in ("base", "ours", "theirs")] == [
        store.resolve(r) for r in ("main~2", "main~1", "side")
    ]
    assert record["fused"]["names"] == list(noisy(0).names())


def test_a_record_that_lies_is_found_out(store: Store) -> None:
    fork(store, noisy(0), noisy(1), noisy(2))
    done = merge(store, "side")
    record = dict(done.commit.record)
    record["merge"] = {**record["merge"], "recipe": {**record["merge"]["recipe"], "merge_method": "median"}}
    changed = {n: noisy(1).read(n) for n in noisy(0).names()}
    store.commit(model(changed), message="false", record=record)
    again = replay(store, "main")
    assert not again.same
    assert again.tensors == tuple(f"model.safetensors: {n}" for n in noisy(0).names())
    assert again.files == ("model.safetensors",)
    with pytest.raises(StoreError, match="no record of a merge"):
        replay(store, "side")


def test_the_ids_do_not_depend_on_threads(tmp_path: Path) -> None:
    found = set()
    for threads in (1, 2, 7):
        store = Store.init(tmp_path / str(threads))
        fork(store, noisy(0), noisy(1), noisy(2))
        found.add(merge(store, "side", threads=threads).commit.id)
    assert len(found) == 1


def test_a_tensor_of_several_chunks(store: Store) -> None:
    def large(seed: int) -> Memory:
        return model({"w": torch.randn(1300, 1000, generator=torch.Generator().manual_seed(seed))})

    fork(store, large(0), large(1), large(2))
    merge(store, "side")
    mean = (large(1).read("w") + large(2).read("w")) / 2
    assert torch.allclose(store.checkpoint("main").read("w"), mean, atol=1e-6)
    assert content_id(Hashed(store.checkpoint("main"))) == store.load_commit("main").content
