"""The store beside a plain dict: whatever is done to both, they answer alike."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cofuse.checkpoint import Memory
from cofuse.errors import RefError
from cofuse.store import Store

names = st.sampled_from(["main", "side", "runs/a", "runs/b"])
contents = st.dictionaries(st.sampled_from(["w", "x.y", "z"]), st.integers(0, 3), min_size=1)


@dataclass(frozen=True)
class Version:
    content: tuple[tuple[str, int], ...]
    parents: tuple[str, ...]
    message: str


class StoreMachine(RuleBasedStateMachine):
    """Commits, branches, tags and their removal; reopening in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store.init(self.folder)
        self.versions: dict[str, Version] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.count = 0

    @rule(branch=names, content=contents, again=st.booleans())
    def commit(self, branch: str, content: dict[str, int], again: bool) -> None:
        parents = (self.branches[branch],) if branch in self.branches else ()
        self.count += not again
        message = f"commit {self.count}"
        made = self.store.commit(
            Memory({name: torch.full((3,), float(value)) for name, value in content.items()}),
            message=message,
            branch=branch,
            threads=1,
        )
        version = Version(tuple(sorted(content.items())), parents, message)
        assert self.versions.setdefault(made.id, version) == version
        self.branches[branch] = made.id

    @rule(branch=names, source=names)
    def make_branch(self, branch: str, source: str) -> None:
        self._make(self.store.branch, self.branches, branch, source)

    @rule(tag=st.sampled_from(["v1", "v2", "rel/1"]), source=names)
    def make_tag(self, tag: str, source: str) -> None:
        self._make(self.store.tag, self.tags, tag, source)

    def _make(self, make, table: dict[str, str], name: str, source: str) -> None:  # type: ignore[no-untyped-def]
        target = self.branches.get(source)
        if target is None or table.get(name, target) != target:
            with pytest.raises(RefError):
                make(name, source)
        else:
            assert make(name, source) == target
            table[name] = target

    @rule(name=names)
    def remove_branch(self, name: str) -> None:
        self.store.update_ref(f"refs/heads/{name}", None, expect=self.branches.pop(name, None))

    @rule(a=names, b=names, content=contents)
    def merge(self, a: str, b: str, content: dict[str, int]) -> None:
        if a not in self.branches or b not in self.branches:
            return
        self.count += 1
        parents = (self.branches[a], self.branches[b])
        made = self.store.commit(
            Memory({name: torch.full((3,), float(value)) for name, value in content.items()}),
            message=f"commit {self.count}",
            branch=a,
            parents=[a, b],
            threads=1,
        )
        self.versions[made.id] = Version(tuple(sorted(content.items())), parents, f"commit {self.count}")
        self.branches[a] = made.id

    @rule()
    def reopen(self) -> None:
        self.store = Store.open(self.folder)

    @precondition(lambda self: self.branches)
    @rule(data=st.data(), back=st.integers(0, 3))
    def open(self, data: st.DataObject, back: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.branches)))
        expected: str | None = self.branches[name]
        for _ in range(back):
            parents = self.versions[expected].parents if expected else ()
            expected = parents[0] if parents else None
        if expected is None:
            with pytest.raises(RefError):
                self.store.resolve(f"{name}~{back}")
            return
        opened = self.store.checkpoint(f"{name}~{back}")
        version = self.versions[expected]
        assert {n: int(opened.read(n)[0]) for n in opened.names()} == dict(version.content)
        assert self.store.load_commit(f"{name}~{back}").message == version.message

    @precondition(lambda self: self.branches)
    @rule(data=st.data())
    def log(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.branches)))
        reached, waiting = set(), [self.branches[name]]
        while waiting:
            here = waiting.pop()
            if here not in reached:
                reached.add(here)
                waiting += self.versions[here].parents
        log = self.store.log(name)
        assert [c.id for c in log] == list(dict.fromkeys(c.id for c in log))
        assert {c.id for c in log} == reached
        place = {c.id: n for n, c in enumerate(log)}
        assert all(place[c.id] < place[p] for c in log for p in c.parents)

    @invariant()
    def the_refs_agree(self) -> None:
        assert self.store.branches() == self.branches
        assert self.store.tags() == self.tags

    def teardown(self) -> None:
        assert self.store.fsck(threads=1).ok
        shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestStoreMachine = StoreMachine.TestCase
