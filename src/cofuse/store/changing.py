"""A version made of another by changing some of its files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import EllipsisType, MappingProxyType
from typing import TYPE_CHECKING, Any

from ..progress import SILENT, Progress
from .adding import Change, Known, add
from .commits import Commit, load_commit, put_commit
from .trees import Plain, Weights, load_tree
from .writing import writing

if TYPE_CHECKING:
    from .store import Store


def change(
    store: Store,
    parent: str | None,
    places: Mapping[str, Path],
    removed: Collection[str] = (),
    *,
    copied: Mapping[str, Plain | Weights] = MappingProxyType({}),
    message: str,
    author: str = "",
    record: Mapping[str, Any] | None = None,
    ref: str | None = None,
    expect: str | EllipsisType | None = ...,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Commit:
    """Keep a version that is another one but for some files; what did not change is neither read nor written.

    Args:
        store: where.
        parent: id of the commit that it comes after; None for the first of a store.
        places: files that are new or different: where their bytes are, by path.
        removed: paths that go.
        copied: entries of other versions of the store, by the paths that they get.
        message: what is new.
        author: who did it.
        record: how it was made.
        ref: full name of the ref that is moved to it; none when None, and then `gc` lets it go some day.
        expect: where the ref must be when it is moved; the parent when left out.
        threads: how many.
        progress: told of every chunk.

    Raises:
        RefError: the ref has moved meanwhile.
        StoreError: a path cannot be kept, or the store cannot be written.
        CheckpointError: a safetensors file is damaged.

    >>> import tempfile
    >>> from cofuse.store import Store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     new = Path(folder, "new.txt")
    ...     _ = new.write_text("x")
    ...     store = Store.init(Path(folder, "a"))
    ...     first = change(store, None, {"a.txt": new, "b.txt": new}, message="two", ref="refs/heads/main")
    ...     second = change(store, first.id, {}, {"a.txt"}, message="one", ref="refs/heads/main")
    ...     sorted(load_tree(store.objects, second.tree).files)
    ['b.txt']
    """
    with writing(store.objects, threads) as pen:
        kept: dict[str, Plain | Weights] = {}
        known = Known()
        if parent is not None:
            pen.rely_on(parent)
            tree = load_commit(store.objects, parent).tree
            known = Known.of(store.objects, [tree])
            kept = {path: e for path, e in load_tree(store.objects, tree).files.items() if path not in removed}
        for entry in copied.values():
            for part in (entry.id,) if isinstance(entry, Plain) else (entry.header, *entry.tensors):
                pen.rely_on(part)
        made = add(pen, store.objects, Change(places, {**kept, **copied}), known, threads=threads, progress=progress)
        commit = put_commit(
            pen,
            store.objects,
            tree=made,
            content=load_tree(store.objects, made).content,
            parents=[] if parent is None else [parent],
            message=message,
            author=author,
            record=record or {},
        )
        pen.sync()
        if ref is not None:
            store.refs.update(ref, commit.id, expect=parent if expect is ... else expect)
    return commit
