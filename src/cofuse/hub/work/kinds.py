"""The kinds of work there are. Modules are imported when their kind is first done: some need much."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .kind import Kind

# Each module has its `KIND`.
KINDS: dict[str, str] = {
    "screen": "screening",  # look at a contribution
    "compare": "comparing",  # put it beside those that wait with it
    "evaluate": "evaluating",  # score a version on the repository's suite
    "fuse": "fusing",  # make a round's commit
    "judge": "judging",  # ask the gate
    "publish": "publishing",  # make the release
}


def kind_of(name: str) -> Kind:
    """The kind of a name."""
    kind: Kind = import_module(f".{KINDS[name]}", __package__).KIND
    return kind
