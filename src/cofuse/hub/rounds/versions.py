"""Versions by compatibility: vMAJOR.MINOR.PATCH."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ..database import Release, Round

Step: TypeAlias = Literal["patch", "minor", "major"]
_VERSION = re.compile(r"v(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
FIRST = "v0.1.0"


def after(versions: Iterable[str], step: str | None) -> str:
    """The version that comes after all of these by a step; `minor` where nobody can tell.

    >>> after(["v0.1.0", "v0.10.0", "v0.9.3"], "minor"), after(["v1.2.3"], "patch"), after([], "major")
    ('v0.11.0', 'v1.2.4', 'v0.1.0')
    """
    numbers = [parts(version) for version in versions if _VERSION.fullmatch(version)]
    if not numbers:
        return FIRST
    major, minor, patch = max(numbers)
    if step == "major":
        return f"v{major + 1}.0.0"
    return f"v{major}.{minor}.{patch + 1}" if step == "patch" else f"v{major}.{minor + 1}.0"


def parts(version: str) -> tuple[int, int, int]:
    """Its three numbers."""
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ValueError(version)
    return int(found[1]), int(found[2]), int(found[3])


def step_between(one: str, other: str) -> Step:
    """How far two versions are apart."""
    a, b = parts(one), parts(other)
    return "major" if a[0] != b[0] else "minor" if a[1] != b[1] else "patch"


def next_version(transaction: Transaction, repository: int, step: str | None, tags: Iterable[str] = ()) -> str:
    """The next version of a repository: after its releases, what is about to be released, and tags that people made."""
    released = transaction.scalars(select(Release.version).where(Release.repository_id == repository))
    coming = transaction.scalars(
        select(Round.version).where(Round.repository_id == repository, Round.version.is_not(None))
    )
    return after([*released, *(version for version in coming if version), *tags], step)
