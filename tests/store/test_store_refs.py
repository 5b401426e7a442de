"""Names, revisions, and refs that only move from where they were seen."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cofuse.errors import RefError, StoreError
from cofuse.store import Store, places
from cofuse.store.commits import put_commit
from cofuse.store.refs import check_ref_name
from cofuse.store.writing import writing

GOOD = ["main", "v1.0", "runs/digits-2", "a/b/c", "ünicode", "A_b+c=d,e", "dead", "a@b"]
BAD = [
    "",
    "@",
    "HEAD",
    "-x",
    "/a",
    "a/",
    "a//b",
    ".a",
    "a/.b",
    "a..b",
    "a.lock",
    "a.lock/b",
    "a.",
    "a b",
    "a~1",
    "a^",
    "a:b",
]
BAD += ["a?", "a*", "a[", "a\\b", "a@{0}", "a\n", "a\x7f", "a\u2028b", "0" * 64, "x" * 2000, "../../etc/passwd", "a#b"]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(store: Store, model: Path, name: str) -> None:
    commit = store.commit(model, message="x", branch=name)
    store.tag(f"t/{name}", name)
    assert store.branches() == {name: commit.id}
    assert store.tags() == {f"t/{name}": commit.id}
    assert store.resolve(f"{name}~0") == commit.id


@pytest.mark.parametrize("name", BAD)
def test_bad_names(store: Store, model: Path, name: str) -> None:
    with pytest.raises(RefError, match="not a name"):
        check_ref_name(name)
    with pytest.raises(RefError, match="not a name"):
        store.commit(model, message="x", branch=name)
    assert store.branches() == {}


def test_revisions(store: Store, model: Path) -> None:
    ids = [store.commit(model, message=str(n), record={"n": n}).id for n in range(4)]
    store.tag("v1", "main~3")
    assert store.resolve("main") == store.resolve("HEAD") == store.resolve("refs/heads/main") == ids[3]
    assert store.resolve("v1") == store.resolve("refs/tags/v1") == ids[0]
    assert [store.resolve(f"main~{n}") for n in range(4)] == ids[::-1]
    assert store.resolve("main^^~1") == store.resolve("main~1^1~") == ids[0]
    assert store.resolve(ids[2]) == store.resolve(ids[2][:12]) == ids[2]
    assert store.resolve(ids[2][:12] + "~1") == ids[1]
    for rev, message in [
        ("main~4", "no such ancestor"),
        ("main^2", "no such ancestor"),
        ("v1^", "no such ancestor"),
        ("mian", "no such revision"),
        (ids[0][:3], "no such revision"),
        ("f" * 64, "no such revision"),
        ("refs/heads/no", "no such revision"),
        ("../../x", "no such revision"),
        ("main~x", "not a revision"),
        ("main~99999999", "not a revision"),
        ("~", "not a revision"),
        ("", "not a revision"),
    ]:
        with pytest.raises(RefError, match=message):
            store.resolve(rev)
    with pytest.raises(RefError) as caught:
        store.resolve("mian")
    assert caught.value.hint == 'did you mean "main"?'


def test_a_prefix_of_two_commits_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    tree = store.add(tmp_path / "m")
    seen: set[str] = set()
    with writing(store.objects) as pen:
        for n in range(2000):  # a birthday among 65,536 prefixes; ids hold no times, so it is always the same one
            made = put_commit(
                pen, store.objects, tree=tree, content=None, parents=[], message="", author="", record={"n": n}
            )
            if made.id[:4] in seen:
                break
            seen.add(made.id[:4])
    with pytest.raises(RefError, match="more than one commit"):
        store.resolve(made.id[:4])


def test_a_prefix_of_a_tree_is_no_commit(store: Store, model: Path) -> None:
    commit = store.commit(model, message="x")
    with pytest.raises(RefError, match="no such revision"):
        store.resolve(commit.tree[:12])
    assert store.checkpoint(commit.tree).tree_id == commit.tree


def test_one_name_for_a_branch_and_a_tag(store: Store, model: Path) -> None:
    a = store.commit(model, message="a", branch="x")
    b = store.commit(model, message="b", branch="y")
    store.tag("x", "y")
    with pytest.raises(RefError, match="a branch and a tag"):
        store.resolve("x")
    assert store.resolve("refs/heads/x") == a.id
    assert store.resolve("refs/tags/x") == b.id


def test_refs_move_only_from_where_they_were_seen(store: Store, model: Path) -> None:
    a = store.commit(model, message="a").id
    b = store.commit(model, message="b").id
    with pytest.raises(RefError, match="has moved"):
        store.update_ref("refs/heads/main", a, expect=a)
    with pytest.raises(RefError, match="has moved"):
        store.update_ref("refs/heads/main", a, expect=None)
    with pytest.raises(RefError, match="has moved"):
        store.commit(model, message="c", expect=a)
    assert store.resolve("main") == b
    store.update_ref("refs/heads/main", b, expect=a)  # already there
    store.update_ref("refs/heads/main", a, expect=b)
    assert store.resolve("main") == a
    store.update_ref("refs/heads/main", None, expect=a)
    store.update_ref("refs/heads/main", None)
    assert store.branches() == {}
    with pytest.raises(RefError, match="not a full ref name"):
        store.update_ref("main", a)


def test_a_tag_does_not_move_and_a_branch_is_not_made_twice(store: Store, model: Path) -> None:
    store.commit(model, message="a")
    store.tag("v1")
    store.branch("side")
    store.commit(model, message="b")
    store.tag("v1", "main~1")  # where it is
    for make in (store.tag, store.branch):
        with pytest.raises(RefError, match="has moved"):
            make("v1" if make == store.tag else "side", "main")


def test_a_ref_in_the_way(store: Store, model: Path) -> None:
    store.commit(model, message="a", branch="a/b")
    with pytest.raises(RefError, match="another ref is in the way"):
        store.branch("a", "a/b")
    with pytest.raises(RefError, match="another ref is in the way"):
        store.branch("a/b/c/d", "a/b")
    store.branch("z", "a/b")
    store.update_ref("refs/heads/a/b", None)
    store.branch("a", "z")  # the empty folder has gone
    store.update_ref("refs/heads/a", None)
    store.branch("a/b/c", "z")
    assert set(store.branches()) == {"a/b/c", "z"}


def test_a_damaged_ref_is_said_so(store: Store, model: Path) -> None:
    store.commit(model, message="a")
    (store.path / "refs/heads/main").write_bytes(b"")
    with pytest.raises(RefError, match="the ref is damaged"):
        store.log()
    assert [d.id for d in store.fsck().damaged] == ["refs/heads/main"]
    (store.path / "HEAD").write_text("ref: /etc/passwd\n")
    with pytest.raises(RefError, match="HEAD is damaged"):
        store.commit(model, message="b")


def test_a_lock_of_a_dead_process_holds_nobody_up(store: Store, model: Path) -> None:
    code = "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    ended = subprocess.run([sys.executable, "-c", code, str(store.path / "lock")], check=False)
    assert ended.returncode == -9
    store.commit(model, message="a")


def test_a_lock_that_is_held_is_waited_for_and_then_given_up(
    store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LOCK_SECONDS", 0.05)
    fd = os.open(store.path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match="the store is busy"):
        store.commit(model, message="a")
    os.close(fd)
    store.commit(model, message="a")


RACER = """
import sys
from pathlib import Path
from cofuse.errors import RefError
from cofuse.store import Store
store, folder = Store.open(sys.argv[1]), Path(sys.argv[2])
moved = 0
for n in range(15):
    while True:
        try:
            store.commit(folder, message=f"{sys.argv[3]} {n}", threads=1)
            break
        except RefError:
            moved += 1
print(moved)
"""


def test_racing_writers_lose_nothing(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(store.path), str(folder), name], stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b", "c")
    ]
    outputs = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], outputs
    log = store.log()
    assert len(log) == 45
    assert all(len(c.parents) <= 1 for c in log)
    for name in ("a", "b", "c"):
        assert [c.message for c in reversed(log) if c.message.startswith(name)] == [f"{name} {n}" for n in range(15)]
    assert store.fsck().ok
