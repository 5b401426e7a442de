"""Which versions of what may decide the last bit of a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Of Python, and of those packages that are installed.

    >>> next(iter(versions()))
    'python'
    """
    found = {"python": platform.python_version()}
    for package in ("cofuse", "torch", "transformers", "scikit-learn", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
