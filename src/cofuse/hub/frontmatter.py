"""A model's card, and what it begins with: keys and values in YAML, between two lines of dashes, as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from ..document import NOT_YAML
from ..store.objects import Objects
from ..store.trees import Plain, Tree
from .faults import Invalid

CARD = "README.md"
LONGEST = 1024 * 1024  # bytes of a card that is read
MOST = 128 * 1024  # letters that are read: that takes a second
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them would fill any memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed in a card")
        return super().compose_node(parent, index)


def read_card(objects: Objects, tree: Tree) -> str:
    """What a tree's card says; empty where it has none, or one that is too long.

    Raises:
        CorruptError: it is damaged.
    """
    entry = tree.files.get(CARD)
    if not isinstance(entry, Plain) or entry.size > LONGEST:
        return ""
    return bytes(objects.read(entry.id, kind="file")).decode("utf-8", "replace")


def without_front(text: str) -> str:
    r"""A card after its front matter.

    >>> without_front("---\nlicense: mit\n---\n# Model\n")
    '# Model\n'
    """
    return _FRONT.sub("", text, count=1)


def front_matter(text: str) -> dict[str, Any]:
    r"""The values at the start of a card, as JSON has them; none where it begins otherwise, or with more than `MOST` letters.

    Raises:
        Invalid: they are no YAML of keys and values.

    >>> front_matter("---\nlicense: mit\n---\n# Model\n")
    {'license': 'mit'}
    """
    found = _FRONT.match(text)
    if found is None or len(found[1]) > MOST:
        return {}
    try:
        said = yaml.load(found[1], Loader=_Loader)  # noqa: S506 - a SafeLoader
        plain = json.loads(json.dumps(said, default=str, allow_nan=False))
    except NOT_YAML as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Invalid("the card's first lines are not YAML", got=first[:160]) from None
    if plain is not None and not isinstance(plain, dict):
        raise Invalid("the card's first lines are not keys and values", got=type(plain).__name__)
    return plain or {}
