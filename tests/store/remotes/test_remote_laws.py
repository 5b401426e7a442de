"""What every remote does, wherever it is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_folders import KINDS, digests
from remote_places import Place, key, noise

from cofuse.errors import RefError, StoreError
from cofuse.store import Commit, Store
from cofuse.store.refs import HEADS, TAGS
from cofuse.store.remotes import Push, Remote, clone, fetch, pull, push
from cofuse.store.remotes.missing import new_commits
from cofuse.store.remotes.remote import Move
from cofuse.store.rewriting import rewrite
from cofuse.store.trees import Weights, load_tree


def main(commit: Commit | str, force: bool = False) -> Push:
    return Push("refs/heads/main", commit if isinstance(commit, str) else commit.id, force)


def tensors(store: Store, rev: str) -> tuple[str, ...]:
    entry = load_tree(store.objects, store.load_commit(rev).tree).files["model.safetensors"]
    assert isinstance(entry, Weights)
    return entry.tensors


def test_what_was_pushed_is_cloned_byte_for_byte(store: Store, place: Place, tmp_path: Path) -> None:
    for name, make in KINDS.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name)
        store.commit(tmp_path / name, message=name)
    store.tag("v1", "main~1")
    store.branch("side/a", "main~2")
    refs = {HEADS + n: c for n, c in store.branches().items()} | {TAGS + n: c for n, c in store.tags().items()}
    moved = push(store, place.remote(), [Push(*item) for item in refs.items()], name="origin")
    assert {m.ref: m.new for m in moved} == refs == place.remote().refs()
    assert all(m.old is None for m in moved)
    made = place.clone(tmp_path / "clone")
    assert made.fsck().ok
    assert [c.id for c in made.log()] == [c.id for c in store.log()]
    assert made.branches() == {"main": store.resolve("main")}
    assert made.tags() == store.tags()
    assert made.resolve("origin/side/a") == store.resolve("origin/side/a") == store.resolve("side/a")
    for n, name in enumerate(reversed(KINDS)):
        made.checkout(f"main~{n}", tmp_path / "out" / name)
        assert digests(tmp_path / "out" / name) == digests(tmp_path / name)


def test_only_what_is_missing_moves(store: Store, place: Place, model: Path, tmp_path: Path) -> None:
    push(store, place.remote(), [main(store.commit(model, message="one"))])
    before = place.files()
    push(store, place.remote(), [main(store.resolve("main"))])
    assert place.files() == before
    made = place.clone(tmp_path / "clone")
    kept = set(made.objects)
    (model / "config.json").write_text('{"new": 1}')
    second = store.commit(model, message="two")
    push(store, place.remote(), [main(second)])
    after = place.objects()
    assert {name: after[name] for name in before if name.startswith("objects/")}.items() <= before.items()
    assert len(after.keys() - before.keys()) == 3  # a file, a tree, a commit
    assert {m.ref: m.new for m in fetch(made, place.remote(), "origin")} == {"refs/remotes/origin/main": second.id}
    assert len(set(made.objects) - kept) == 3
    assert made.branches() == {"main": second.parents[0]}


def test_who_is_behind_must_pull_first_or_lose_what_was_seen(
    store: Store, place: Place, model: Path, tmp_path: Path
) -> None:
    push(store, place.remote(), [main(store.commit(model, message="one"))], name="origin")
    other = place.clone(tmp_path / "other")
    (model / "config.json").write_text('{"theirs": 1}')
    theirs = other.commit(model, message="theirs")
    push(other, place.remote(), [main(theirs)], name="origin")
    (model / "config.json").write_text('{"ours": 1}')
    ours = store.commit(model, message="ours")
    for force in (False, True):  # what was never seen is not lost by forcing either
        with pytest.raises(RefError, match=r"has what yours has not|not where it was last seen") as caught:
            push(store, place.remote(), [main(ours, force)], name="origin")
        assert caught.value.got == theirs.id
        assert place.remote().refs() == {"refs/heads/main": theirs.id}
    assert pull(store, place.remote(), "origin", "main") == (theirs.id, None)
    assert store.resolve("main") == ours.id
    joined = store.commit(model, message="both", parents=["main", "origin/main"])
    push(store, place.remote(), [main(joined)], name="origin")
    assert pull(other, place.remote(), "origin", "main") == (joined.id, joined.id)
    assert other.resolve("main") == joined.id
    assert [m.old for m in push(store, place.remote(), [main(ours, True)], name="origin")] == [joined.id]
    assert place.remote().refs() == {"refs/heads/main": ours.id}


def test_tags_do_not_move(store: Store, place: Place, model: Path, tmp_path: Path) -> None:
    first = store.commit(model, message="one")
    push(store, place.remote(), [Push("refs/tags/v1", first.id)])
    (model / "config.json").write_text("[]")
    second = store.commit(model, message="two")
    with pytest.raises(RefError, match="that tag elsewhere"):
        push(store, place.remote(), [Push("refs/tags/v1", second.id)])
    mine = Store.init(tmp_path / "mine")
    tagged = mine.commit(model, message="mine")
    mine.tag("v1")
    assert fetch(mine, place.remote(), "origin") == []
    assert mine.tags() == {"v1": tagged.id}


def test_a_clone_is_on_the_remotes_branch_or_the_one_named(
    store: Store, place: Place, model: Path, tmp_path: Path
) -> None:
    commit = store.commit(model, message="x", branch="trunk")
    push(store, place.remote(), [Push("refs/heads/trunk", commit.id), Push("refs/heads/b", commit.id)])
    made = place.clone(tmp_path / "a")
    assert (made.refs.head(), made.branches()) == ("refs/heads/trunk", {"trunk": commit.id})
    made = clone(place.remote(), tmp_path / "b", place.named, branch="b")
    assert (made.refs.head(), made.branches()) == ("refs/heads/b", {"b": commit.id})
    with pytest.raises(StoreError, match="there is a store already"):
        place.clone(tmp_path / "b")
    with pytest.raises(RefError, match="no such branch"):
        clone(place.remote(), tmp_path / "c", place.named, branch="c")
    Store.init(tmp_path / "d")  # as far as a clone gets that is killed at once
    assert place.clone(tmp_path / "d").branches() == {"trunk": commit.id}


def test_what_is_no_store_is_said_to_be_none(store: Store, place: Place, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        place.clone(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(StoreError, match="there is no store"):
        fetch(store, place.remote(), "origin")


def test_a_remotes_refs_are_compared_and_swapped(store: Store, place: Place, model: Path) -> None:
    commits = [store.commit(model, message=str(n)).id for n in range(3)]
    push(store, place.remote(), [main(commits[2])])
    remote: Remote = place.remote()

    def move(ref: str, new: str, expect: str | None) -> None:
        remote.update([Move(f"refs/heads/{ref}", new, expect)])

    with pytest.raises(RefError, match="the ref has moved") as caught:
        move("main", commits[1], commits[0])
    assert (caught.value.got, caught.value.expected) == (commits[2], commits[0])
    with pytest.raises(RefError, match="the ref has moved"):
        move("main", commits[1], None)
    move("main", commits[2], None)  # it is there already
    remote.update([Move("refs/heads/main", commits[0], commits[2]), Move("refs/heads/a/b", commits[1], None)])
    assert place.remote().refs() == {"refs/heads/main": commits[0], "refs/heads/a/b": commits[1]}
    for taken in ("a", "a/b/c", "main/x"):
        with pytest.raises(RefError, match="another ref is in the way"):
            move(taken, commits[1], None)


def test_a_delta_goes_after_its_base_and_a_stranger_is_left_at_home(store: Store, place: Place, tmp_path: Path) -> None:
    old = store.commit(noise(tmp_path / "m", {"w": 100_000}), message="old")
    data = bytearray((tmp_path / "m" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m" / "model.safetensors").write_bytes(data)
    new = store.commit(tmp_path / "m", message="new", branch="secret")
    (before,), (after,) = tensors(store, old.id), tensors(store, new.id)
    rewrite(store.objects, before, after)
    assert store.objects.bases(before) == (after,)
    push(store, place.remote(), [main(old)])
    assert key(before) in place.objects()
    assert key(after) not in place.objects()
    assert place.clone(tmp_path / "clone").fsck().ok

    other = Store.init(tmp_path / "other")
    first = other.commit(noise(tmp_path / "n", {"w": 100_000}, seed=1), message="1")
    data = bytearray((tmp_path / "n" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "n" / "model.safetensors").write_bytes(data)
    second = other.commit(tmp_path / "n", message="2")
    (a,), (b,) = tensors(other, first.id), tensors(other, second.id)
    rewrite(other.objects, b, None)
    rewrite(other.objects, a, b)
    push(other, place.remote(), [Push("refs/heads/other", second.id)])
    assert len(place.get(key(a))) < 1000  # as the delta that it is
    made = place.clone(tmp_path / "clone2")
    assert made.objects.bases(a) == (b,)
    assert made.fsck().ok


commit_graphs = st.lists(
    st.tuples(st.lists(st.integers(0, 100), max_size=3), st.integers(0, 5)), min_size=1, max_size=12
)


@given(graph=commit_graphs, data=st.data())
def test_new_commits_are_the_difference_of_two_histories(
    graph: list[tuple[list[int], int]], data: st.DataObject
) -> None:
    """Beside the slow twin: both histories whole, subtracted. Times may lie, then more may be given but never less."""
    honest = data.draw(st.booleans())
    commits: dict[str, Commit] = {}
    for n, (parents, time) in enumerate(graph):
        before = tuple(dict.fromkeys(str(p % n) for p in parents)) if n else ()
        when = 10 * n + time if honest else time
        commits[str(n)] = Commit(str(n), "", before, "", "", {}, None, when)

    def history(tips: list[str]) -> set[str]:
        found: set[str] = set()
        while tips:
            here = tips.pop()
            if here not in found:
                found.add(here)
                tips = tips + list(commits[here].parents)
        return found

    pick = st.lists(st.sampled_from(sorted(commits)), max_size=3)
    tips, had = data.draw(pick), data.draw(pick)
    found = [c.id for c in new_commits(commits.__getitem__, tips, had)]
    expected = history(list(tips)) - history(list(had))
    assert len(found) == len(set(found))
    assert set(found) >= expected
    assert set(found) <= history(list(tips))
    if honest:
        assert set(found) == expected
    place = {c: n for n, c in enumerate(found)}
    assert all(place[p] < place[c] for c in found for p in commits[c].parents if p in place)
