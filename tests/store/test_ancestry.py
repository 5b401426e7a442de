"""Merge bases beside a slow twin, on histories of every shape, whatever their commits say of the time."""

from pathlib import Path

from histories import Dag, model
from hypothesis import given
from hypothesis import strategies as st

from cofuse.store import Store
from cofuse.store.ancestry import best_common, is_ancestor, merge_bases


def before(dag: Dag, name: str) -> set[str]:
    """A commit and all that come before it."""
    return {name}.union(*(before(dag, parent) for parent in dag.nodes[name].parents))


def slow(dag: Dag, ours: str, theirs: str) -> list[str]:
    """The maximal elements of the common ancestors."""
    common = before(dag, ours) & before(dag, theirs)
    below = {a for c in common for a in before(dag, c) if a != c}
    return sorted(common - below)


@st.composite
def dags(draw: st.DrawFn) -> Dag:
    """Up to 14 commits, each with up to three parents among those before it; times in order, equal, or at random."""
    dag = Dag()
    honest = draw(st.booleans())
    for k in range(draw(st.integers(1, 14))):
        parents = draw(st.lists(st.integers(0, k - 1), max_size=3, unique=True)) if k else []
        dag.add(f"{k:02d}", [f"{p:02d}" for p in parents], k if honest else draw(st.integers(0, 3)))
    return dag


@given(dags(), st.data())
def test_like_the_slow_twin(dag: Dag, data: st.DataObject) -> None:
    names = sorted(dag.nodes)
    ours, theirs = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    found = best_common(dag.load, ours, theirs)
    assert found == slow(dag, ours, theirs)
    assert found == best_common(dag.load, theirs, ours)
    assert (found == [ours]) == (ours in before(dag, theirs))


def test_only_what_happened_since_is_read() -> None:
    dag = Dag()
    for k in range(1000):
        dag.add(f"{k:04d}", [f"{k - 1:04d}"] if k else [], k)
    for side in "ab":
        dag.add(side, ["0990"], 2000)
    read = []
    assert best_common(lambda name: read.append(name) or dag.load(name), "a", "b") == ["0990"]  # type: ignore[func-returns-value]
    assert len(read) < 10


def test_a_deep_history(tmp_path: Path) -> None:
    store = Store.init(tmp_path)
    first = store.commit(model({"w": 0}), message="0")
    store.branch("side")
    for k in range(30):
        store.commit(model({"w": k}), message=f"main {k}")
    tips = [store.resolve("main"), store.commit(model({"w": -1}), message="side", branch="side").id]
    assert merge_bases(store.objects, *tips) == [first.id]
    assert is_ancestor(store.objects, first.id, tips[0])
    assert not is_ancestor(store.objects, tips[0], first.id)
    lone = store.commit(model({"w": 0}), message="elsewhere", branch="other", parents=[])
    assert merge_bases(store.objects, lone.id, tips[0]) == []
