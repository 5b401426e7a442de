"""Where the command line keeps what it can find out again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache: XDG_CACHE_HOME, else ~/.cache; `cofuse` in it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored, as the XDG base directory specification says.
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".cache"
    return home / "cofuse"
