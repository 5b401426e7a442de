"""What a check looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoint import Checkpoint, content_id_of
from ...errors import CofuseError, FullError, HubError, Interrupted
from ...patch import Patch
from ...store import Store
from ..faults import Unavailable
from ..states import Checked
from ..work.kind import Workplace


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found.

    Attributes:
        state: pass, warn, refuse or skip.
        figure: in words, with the number that decides.
        detail: more, as JSON.
    """

    state: Checked
    figure: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class Case:
    """A contribution on its worker. Checks fill in what those after them need.

    Attributes:
        payload: of the job.
        place: where this is.
        store: the repository's.
        base: what it says that it was trained from.
        sent: what was handed in, as a checkpoint.
        patch: the patch, where that is what was handed in.
        body: as it would be fused: the base's names, shapes and files.
        ids: of the body's tensors.
        fisher: its Fisher as the hub keeps it.
    """

    payload: Mapping[str, Any]
    place: Workplace
    store: Store
    base: Checkpoint
    sent: Checkpoint | None = None
    patch: Patch | None = None
    body: Checkpoint | None = None
    ids: Mapping[str, str] = field(default_factory=dict)
    fisher: Checkpoint | None = None

    @property
    def source(self) -> str:
        """What was handed in: commit, weights or patch."""
        return str(self.payload["source"])

    @property
    def content(self) -> str:
        """The content id of the body."""
        return content_id_of(self.ids)

    def files(self, part: str = "files") -> dict[str, Path]:
        """Uploads by the names they were handed in under, which never become paths."""
        sent: Mapping[str, Mapping[str, Any]] = self.payload["sent"].get(part, {})
        return {name: self.place.upload(one["key"]) for name, one in sorted(sent.items())}

    def plain(self, text: str) -> str:
        """A text without the places on this machine, and without the keys of uploads."""
        for part in ("files", "fisher"):
            for name, path in self.files(part).items():
                text = text.replace(str(path), name).replace(path.name, name)
        return text.replace(str(self.store.path), self.payload["repository"]).replace(str(self.place.folder), "")


def is_theirs(error: CofuseError) -> bool:
    """Whether an error is about what was handed in, and not about the machine that looks at it."""
    return not isinstance(error, FullError | Interrupted | Unavailable) and type(error) is not HubError
