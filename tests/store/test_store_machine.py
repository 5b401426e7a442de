"""The store beside a plain dict: whatever is done to both, and whenever it is killed, they answer alike."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
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
from cofuse.store.collecting import needs
from cofuse.store.joining import How, merge
from cofuse.store.remotes import Push, open_remote, push

names = st.sampled_from(["main", "side", "runs/a", "runs/b"])
# A tensor's value, and how many rows it has: changes, resizes and removals of tensors that are worth a delta.
contents = st.dictionaries(
    st.sampled_from(["w", "x.y", "z"]), st.tuples(st.integers(0, 3), st.sampled_from([0, 300, 301])), min_size=1
)
Content = tuple[tuple[str, tuple[int, int]], ...]


def tensor(value: int, rows: int) -> torch.Tensor:
    """Those of different values differ in a few places."""
    made = torch.arange(rows * 20, dtype=torch.float32).reshape(rows, 20)
    made[: 3 * value] += value
    return made


def checkpoint(content: Content) -> Memory:
    return Memory({name: tensor(*what) for name, what in content})


@dataclass(frozen=True)
class Version:
    content: Content
    parents: tuple[str, ...]
    message: str


class StoreMachine(RuleBasedStateMachine):
    """Commits, merges, branches, tags and their removal, pushes, packing, collecting, kills; reopening in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store.init(self.folder)
        self.versions: dict[str, Version] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pushed: dict[str, str] = {}
        self.count = 0

    # What writes

    @rule(branch=names, content=contents, again=st.booleans())
    def commit(self, branch: str, content: dict[str, tuple[int, int]], again: bool) -> None:
        parents = (self.branches[branch],) if branch in self.branches else ()
        self.count += not again
        self._committed(branch, tuple(sorted(content.items())), parents, f"commit {self.count}")

    def _committed(self, branch: str, content: Content, parents: tuple[str, ...], message: str) -> None:
        made = self.store.commit(
            checkpoint(content), message=message, branch=branch, parents=list(parents) or None, threads=1
        )
        version = Version(content, parents, message)
        assert self.versions.setdefault(made.id, version) == version
        self.branches[branch] = made.id

    @rule(branch=names, source=names)
    def make_branch(self, branch: str, source: str) -> None:
        self._make(self.store.branch, self.branches, branch, source)

    @rule(tag=st.sampled_from(["v1", "v2", "rel/1"]), source=names)
    def make_tag(self, tag: str, source: str) -> None:
        self._make(self.store.tag, self.tags, tag, source)

    def _make(self, make: Callable[[str, str], str], table: dict[str, str], name: str, source: str) -> None:
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

    @rule(tag=st.sampled_from(["v1", "v2", "rel/1"]))
    def remove_tag(self, tag: str) -> None:
        self.store.update_ref(f"refs/tags/{tag}", None, expect=self.tags.pop(tag, None))

    @rule(a=names, b=names, content=contents)
    def commit_with_two_parents(self, a: str, b: str, content: dict[str, tuple[int, int]]) -> None:
        if a in self.branches and b in self.branches:
            self.count += 1
            parents = tuple(dict.fromkeys((self.branches[a], self.branches[b])))
            self._committed(a, tuple(sorted(content.items())), parents, f"commit {self.count}")

    @precondition(lambda self: self.branches)
    @rule(data=st.data(), value=st.integers(0, 3), other=st.integers(0, 3))
    def part_and_merge(self, data: st.DataObject, value: int, other: int) -> None:
        """Two branches from one commit change a tensor each; their merge has both changes."""
        branch = data.draw(st.sampled_from(sorted(self.branches)))
        base = self.branches[branch]
        here = dict(self.versions[base].content)
        ours, theirs = {**here, "ours": (value, 300)}, {**here, "theirs": (other, 300)}
        self.count += 1
        self.store.update_ref("refs/heads/parted", base)
        self._committed("parted", tuple(sorted(theirs.items())), (base,), f"theirs {self.count}")
        self._committed(branch, tuple(sorted(ours.items())), (base,), f"ours {self.count}")
        parents = (self.branches[branch], self.branches.pop("parted"))
        joined = merge(self.store, "parted", into=branch, how=How(), message=f"merge {self.count}", threads=1)
        content = tuple(sorted({**ours, **theirs}.items()))
        made = joined.commit
        expected = Version(content, made.parents, made.message)
        assert made.parents in (parents, parents[:1], parents[1:]) or made.id in parents
        if made.id in self.versions:
            assert self.versions[made.id].content == content
        else:
            self.versions[made.id] = expected
        self.branches[branch] = made.id
        self.store.update_ref("refs/heads/parted", None)

    @rule()
    def reopen(self) -> None:
        self.store = Store.open(self.folder)

    # Upkeep and remotes

    @rule(packing=st.booleans())
    def collect(self, packing: bool) -> None:
        self.store.gc(packing=packing, grace_days=0, threads=1)
        needed: set[str] = set()
        waiting = [*self.branches.values(), *self.tags.values()]
        while waiting:
            here = waiting.pop()
            if here not in needed:
                needed.add(here)
                waiting += [below for below, _ in needs(self.store.objects, here)]
        if not packing:  # which may leave what it has just freed for the next time
            assert set(self.store.objects) == needed

    @precondition(lambda self: self.branches)
    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from(sorted(self.branches)))
        moves = [Push(f"refs/heads/{branch}", self.branches[branch], force=True)]
        push(self.store, open_remote(str(self.folder / "remote.cofuse")), moves, threads=1)
        self.pushed[branch] = self.branches[branch]

    @rule(packing=st.booleans())
    def collect_the_remote(self, packing: bool) -> None:
        if self.pushed:
            Store.open(self.folder / "remote.cofuse").gc(packing=packing, grace_days=0, threads=1)

    # Kills

    @rule(branch=names, content=contents, step=st.integers(0, 120))
    def commit_killed(self, branch: str, content: dict[str, tuple[int, int]], step: int) -> None:
        self.count += 1
        message = f"commit {self.count}"
        version = tuple(sorted(content.items()))
        before = self.branches.get(branch)
        killed_at(
            step,
            lambda: Store.open(self.folder).commit(checkpoint(version), message=message, branch=branch, threads=1),
        )
        tip = self.store.branches().get(branch)
        if tip != before:  # it had got so far
            assert tip is not None
            assert self.store.load_commit(tip).message == message
            self.versions[tip] = Version(version, (before,) if before else (), message)
            self.branches[branch] = tip

    @rule(packing=st.booleans(), step=st.integers(0, 200))
    def collect_killed(self, packing: bool, step: int) -> None:
        killed_at(step, lambda: Store.open(self.folder).gc(packing=packing, grace_days=0, threads=1))

    @rule()
    def leave_staged_files(self) -> None:
        """What a killed writer leaves is swept by the next."""
        (self.store.path / "tmp/0123456789abcdef").mkdir(exist_ok=True)
        (self.store.path / "tmp/0123456789abcdef/0").write_bytes(b"half")

    # What must be true after every step

    @invariant()
    def the_refs_agree(self) -> None:
        assert self.store.branches() == self.branches
        assert self.store.tags() == self.tags

    @invariant()
    def every_ref_reads_back_bit_for_bit(self) -> None:
        for store, refs in self._stores():
            for commit in set(refs.values()):
                opened = store.checkpoint(commit)
                content = dict(self.versions[commit].content)
                assert set(opened.names()) == set(content)
                for name, what in content.items():
                    read = opened.read(name)
                    assert read.shape == (what[1], 20)
                    assert torch.equal(read, tensor(*what))
                assert store.load_commit(commit).message == self.versions[commit].message

    def _stores(self) -> list[tuple[Store, dict[str, str]]]:
        found = [(self.store, self.branches | {f"tag {k}": v for k, v in self.tags.items()})]
        if self.pushed:
            found.append((Store.open(self.folder / "remote.cofuse"), self.pushed))
        return found

    @precondition(lambda self: self.branches)
    @rule(data=st.data(), back=st.integers(0, 3))
    def step_back(self, data: st.DataObject, back: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.branches)))
        expected: str | None = self.branches[name]
        for _ in range(back):
            parents = self.versions[expected].parents if expected else ()
            expected = parents[0] if parents else None
        if expected is None:
            with pytest.raises(RefError):
                self.store.resolve(f"{name}~{back}")
        else:
            assert self.store.resolve(f"{name}~{back}") == expected

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

    def teardown(self) -> None:
        for store, refs in self._stores():
            assert store.fsck(threads=1).ok
            for commit in sorted(set(refs.values())):
                with tempfile.TemporaryDirectory() as out:
                    store.checkout(commit, Path(out) / "a", threads=1)
                    checkpoint(self.versions[commit].content).save(Path(out) / "b")
                    assert _bytes(Path(out) / "a") == _bytes(Path(out) / "b")
        shutil.rmtree(self.folder)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(step: int, work: Callable[[], object]) -> None:
    """Do some work in a child that is killed just before its system call of this number; or ends, if there are fewer."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in ("fsync", "link", "rename", "replace", "pwrite", "mkdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestStoreMachine = StoreMachine.TestCase
