"""The git repository that a command runs in, asked through the git that is installed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import StoreError
from ..store import Store
from .manifest import Manifest

if TYPE_CHECKING:
    from ..remotes import Remote

    Reach = Callable[[str, str | None, str | None], Remote]


@dataclass(frozen=True)
class Repository:
    """A repository and, where it has one, its working folder.

    Attributes:
        common: git's own folder, which all working folders of the repository share.
        top: the working folder; `common` in a bare repository.
        reach: opens the remote at an address.
    """

    common: Path
    top: Path
    reach: Reach

    @classmethod
    def here(cls, reach: Reach) -> Repository:
        """The repository of the working folder, as git finds it.

        Args:
            reach: opens the remote at an address; given git's `cofuse.endpoint` and `cofuse.region` too.

        Raises:
            StoreError: there is none, or no git.
        """
        common = Path(run_git("rev-parse", "--git-common-dir").decode().removesuffix("\n")).absolute()
        bare = run_git("rev-parse", "--is-inside-work-tree").strip() != b"true"
        top = common if bare else Path(run_git("rev-parse", "--show-toplevel").decode().removesuffix("\n"))
        return cls(common.resolve(), top, reach)

    @cached_property
    def store(self) -> Store:
        """The store in git's folder, made when it is first asked for."""
        return Store.init(self.common)

    def remote(self) -> Remote | None:
        """What git's `cofuse.remote` names; None when it is not set.

        Raises:
            StoreError: it is no address.
        """
        address = self.config("cofuse.remote")
        if address is None:
            return None
        if "://" not in address:
            address = str(self.top / Path(address).expanduser())
        return self.reach(address, self.config("cofuse.endpoint"), self.config("cofuse.region"))

    def config(self, key: str) -> str | None:
        """A setting of git's; None where it is not set."""
        found = ask_git("config", "--get", key)
        return None if found is None else found.decode().removesuffix("\n")

    def flag(self, key: str, default: bool) -> bool:
        """A setting that is true or false."""
        found = ask_git("config", "--type=bool", "--get", key)
        return default if found is None else found.strip() == b"true"

    def manifest(self, spec: str) -> Manifest | None:
        """The manifest that a blob (`:path`, `HEAD:path`, an id) is; None where it is none."""
        raw = ask_git("cat-file", "blob", spec)
        return None if raw is None else Manifest.parse(raw, spec)

    def trees(self, *specs: str) -> list[str]:
        """The trees of those blobs that are manifests, in order: as a guess, so that nothing is an error."""
        found: dict[str, None] = {}
        for spec in specs:
            with suppress(StoreError):
                if (manifest := self.manifest(spec)) is not None:
                    found[manifest.tree] = None
        return list(found)


def run_git(*arguments: str, given: bytes | None = None) -> bytes:
    """What a git command prints.

    Raises:
        StoreError: it failed, or there is no git.
    """
    done = _run(arguments, given)
    if done.returncode:
        raise StoreError(
            f"git {arguments[0]} failed", where=Path.cwd(), got=done.stderr.decode(errors="replace").strip()[:400]
        )
    return done.stdout


def ask_git(*arguments: str) -> bytes | None:
    """What a git command prints; None when it fails, which is an answer too."""
    done = _run(arguments, None)
    return None if done.returncode else done.stdout


def _run(arguments: tuple[str, ...], given: bytes | None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], input=given, capture_output=True, check=False)  # noqa: S603, S607
    except OSError as error:
        raise StoreError("cannot run git", got=error.strerror, hint="install git 2.20 or later") from None
