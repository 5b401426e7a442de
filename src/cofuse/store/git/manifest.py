r"""What git keeps in place of a file: five lines that say what it is.

    cofuse git 1
    tree 9b136a9a...       the tree in the store that holds the file
    content 004d3cc5...    content id of the weights, or "none" for a file that is no safetensors
    size 284009864
    sha256 5f70bf18...     of the file, as Hugging Face clients ask for it

A function of the file's bytes alone, in one spelling: git takes two spellings for two versions. Written down in
docs/formats/git.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import CorruptError, StoreError

MAX_MANIFEST = 320  # bytes; none is longer
_FIRST = b"cofuse git "
_MANIFEST = re.compile(
    rb"cofuse git 1\ntree ([0-9a-f]{64})\ncontent ([0-9a-f]{64}|none)\nsize (0|[1-9][0-9]{0,17})\nsha256 ([0-9a-f]{64})\n"
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of one file.

    Attributes:
        tree: id of a tree of this file alone, named as `NAMES` says.
        content: content id of the weights; None when it is kept as a plain file.
        size: in bytes.
        sha256: of the file, 64 hex digits.
    """

    tree: str
    content: str | None
    size: int
    sha256: str

    def encode(self) -> bytes:
        r"""The bytes that git keeps.

        >>> Manifest("0" * 64, None, 3, "1" * 64).encode().splitlines()[2:4]
        [b'content none', b'size 3']
        """
        lines = ["cofuse git 1", f"tree {self.tree}", f"content {self.content or 'none'}"]
        return "\n".join([*lines, f"size {self.size}", f"sha256 {self.sha256}", ""]).encode()

    @classmethod
    def parse(cls, raw: bytes, where: object) -> Manifest | None:
        """Read a manifest; None when it is something else, such as a file from before the filter.

        Raises:
            CorruptError: it starts like one, and is none.
        """
        if not raw.startswith(_FIRST):
            return None
        match = _MANIFEST.fullmatch(raw)
        if match is None:
            raise CorruptError(
                "a manifest that cannot be read",
                where=where,
                got=ascii(raw[:80]),
                expected="cofuse git 1, tree, content, size and sha256, a line each",
                hint="was it edited, or written by a later version of cofuse?",
            )
        tree, content, size, sha256 = (group.decode() for group in match.groups())
        return cls(tree, None if content == "none" else content, int(size), sha256)


def load_manifest(raw: bytes, where: object) -> Manifest:
    """Read what must be a manifest.

    Raises:
        StoreError: it is none.
        CorruptError: it starts like one, and is none.
    """
    manifest = Manifest.parse(raw, where)
    if manifest is None:
        raise StoreError(
            "not kept by cofuse",
            where=where,
            got=f"{len(raw)} bytes of something else",
            expected="a manifest",
            hint="git add it again once the filter is installed: cofuse git install",
        )
    return manifest
