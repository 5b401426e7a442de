"""Blame beside a slow twin on random histories."""

from pathlib import Path
from tempfile import TemporaryDirectory

from histories import fork, model
from hypothesis import given, settings
from hypothesis import strategies as st

from cofuse.store import Commit, Store
from cofuse.store.blame import blame
from cofuse.store.joining import How, merge

NAMES = ("a", "b", "c")


def slow(store: Store, commit: Commit, name: str) -> str:
    """Follow one tensor to the first parent that has the same, for ever."""
    mine = store.checkpoint(commit.id).tensor_ids()[name]
    for parent in commit.parents:
        if store.checkpoint(parent).tensor_ids().get(name) == mine:
            return slow(store, store.load_commit(parent), name)
    return commit.id


version = st.tuples(
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2), min_size=1),
    st.lists(st.integers(1, 4), max_size=2, unique=True),  # parents, counted backwards
)


@settings(max_examples=25)
@given(st.lists(version, min_size=1, max_size=7))
def test_like_the_slow_twin(versions: list[tuple[dict[str, int], list[int]]]) -> None:
    with TemporaryDirectory() as folder:
        store = Store.init(Path(folder))
        made: list[Commit] = []
        for k, (tensors, back) in enumerate(versions):
            parents = [made[k - b].id for b in back if b <= k]
            made.append(store.commit(model(tensors), message=str(k), parents=parents, threads=1))
        for commit in made:
            found = blame(store.objects, commit.id)
            assert {name: c.id for name, c in found.items()} == {
                name: slow(store, commit, name) for name in store.checkpoint(commit.id).names()
            }


def test_a_merge_answers_for_what_it_fused_alone(store: Store) -> None:
    base, ours, theirs = fork(
        store,
        model({"a": 0, "b": 0, "c": 0, "d": 0}),
        model({"a": 1, "b": 0, "c": 1, "d": 0}),
        model({"a": 0, "b": 2, "c": 2, "d": 0}),
    )
    done = merge(store, "side", how=How("linear"))
    assert {name: c.id for name, c in blame(store.objects, done.commit.id).items()} == {
        "a": ours.id,
        "b": theirs.id,
        "c": done.commit.id,
        "d": base.id,
    }
    assert list(blame(store.objects, done.commit.id, "[bd]")) == ["b", "d"]


def test_no_tensor_is_read(store: Store) -> None:
    fork(store, model({"a": 0, "b": 1}), model({"a": 3, "b": 1}), model({"a": 0, "b": 2}))
    for rev in ("main", "main~1"):
        for tensor in store.checkpoint(rev).tensor_ids().values():
            store.objects.path(tensor).unlink(missing_ok=True)
    assert [c.message for c in blame(store.objects, store.resolve("main")).values()] == ["ours", "base"]
