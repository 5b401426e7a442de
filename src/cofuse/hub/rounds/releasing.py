"""Making a release's commit out of a round's: its card, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...store import Store
from ...store.commits import Commit, put_commit
from ...store.envelope import Head
from ...store.trees import Plain, Tree, load_tree
from ...store.writing import writing
from ..faults import Invalid
from ..frontmatter import CARD, front_matter, read_card
from .card import BASE_CARD, card


def make_release(store: Store, of: Commit, release: Mapping[str, Any]) -> Commit:
    """Make a release's commit; the same round and record give the same commit. No ref is moved.

    Args:
        store: where the round's commit is.
        of: the round's commit.
        release: version, verdict, what came before; see docs/formats/record.md.
    """
    tree = load_tree(store.objects, of.tree)
    round_ = of.record["round"]
    said = {**release, "of": of.id, "base": of.parents[0], "content": of.content}
    before = store.load_commit(of.parents[0])
    with writing(store.objects, 1) as pen:
        pen.rely_on(of.id)
        files = dict(tree.files)
        there = files.get(CARD)
        said["licences"] = _licences(store, before, tree)
        if round_["kind"] != "rollback":  # which gives every file back as it was
            if there is not None and BASE_CARD not in files and "release" not in before.record:
                files[BASE_CARD] = there
            text = card(round_, said)
            files[CARD] = Plain(pen.put_bytes(Head("file", len(text)), text), len(text))
        made = Tree(files, tree.content)
        data = made.encode()
        commit = put_commit(
            pen,
            store.objects,
            tree=pen.put_bytes(Head("tree", len(data)), data, like=of.tree),
            content=tree.content,
            parents=of.parents,
            message=f"{release['version']}: {of.message}",
            author="",
            record={"round": round_, "release": said},
        )
        pen.sync()
    return commit


def _licences(store: Store, before: Commit, tree: Tree) -> list[str]:
    """The licences of what a release comes after."""
    if "release" in before.record:
        earlier = [one["licence"] for one in before.record["round"].get("inputs", ()) if one["licence"]]
        return sorted({*earlier, *before.record["release"].get("licences", ())})
    try:
        found = front_matter(read_card(store.objects, tree)).get("license")
    except Invalid:
        found = None
    return [found[:100]] if isinstance(found, str) else []
