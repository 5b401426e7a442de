"""What git calls: filters, drivers and hooks. No typer and no rich here: they take longer to load than a file to add."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import CofuseError, StoreError
from .keys import account

if TYPE_CHECKING:
    from ..store.git.filter import Filter
    from ..store.git.repository import Repository
    from ..store.remotes import Remote

_IN, _OUT = 0, 1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of GNU's mallopt


def filter_process() -> None:
    """Clean and smudge for as long as a git command runs."""
    from ..store.git.filter import serve
    from ..store.git.pktline import Packets

    serve(Packets(_IN, _OUT), _filter)


def clean(path: str) -> None:
    """A file on standard input becomes its manifest."""
    _print(_filter().clean(path, _readinto))


def smudge(path: str) -> None:
    """A manifest on standard input becomes its file."""
    _print(_filter().smudge(path, _readinto))


def diff_driver(path: str, *rest: str) -> None:
    """What changed in one file: git gives two files, their blobs and modes."""
    from ..store.git import drivers

    print(f"diff --cofuse a/{path} b/{rest[6] if len(rest) > 6 else path}")
    if len(rest) < 6:
        print("  unmerged")
        return
    versions = drivers.Versions(_repository(), _threads())
    before, after = versions.of(rest[0], rest[1], path), versions.of(rest[3], rest[4], path)
    for line in drivers.diff(before, after, _threads()):
        print(line)


def textconv(file: str) -> None:
    """A line a tensor."""
    from ..store.git import drivers

    versions = drivers.Versions(_repository(), _threads())
    for line in versions.listed(versions.of(file, "", file)):
        print(line)


def merge_driver(base: str, ours: str, theirs: str, path: str) -> int:
    """Merge; the result takes the place of ours, which stays when there is none."""
    from ..store.git import drivers

    raw = tuple(Path(file).read_bytes() for file in (base, ours, theirs))
    try:
        result, said = drivers.merge(_repository(), (raw[0], raw[1], raw[2]), path, _threads())
    except CofuseError as error:
        # Git takes 1 for a conflict, and leaves ours in the working folder.
        print(f"cofuse: {path}: {error}", file=sys.stderr)
        return 1
    Path(ours).write_bytes(result)
    print(said)
    return 0


def pre_push(remote: str, address: str = "") -> None:
    """Share the tensors of what git is about to push, before it does."""
    from ..store.git import sharing

    zero = "0" * 40
    revisions = []
    for line in sys.stdin:
        local = line.split()[1]
        if local.strip(zero):
            revisions.append(local)
    if not revisions:
        return
    repository = _repository()
    manifests = sharing.named(*revisions, "--not", f"--remotes={remote}")
    if manifests and repository.config("cofuse.remote") is None:
        print(
            f"cofuse: {len(manifests)} versions stay here alone; git config cofuse.remote says where to share them",
            file=sys.stderr,
        )
    elif manifests:
        sharing.share(repository, manifests)
        print(f"cofuse: {len(manifests)} versions shared", file=sys.stderr)


def reach(address: str, endpoint: str | None, region: str | None) -> Remote:
    """Open a remote, with the keys that the environment has."""
    from ..store.remotes import open_remote

    return open_remote(address, account(endpoint, region))


def pass_on(verb: str, arguments: Sequence[str]) -> NoReturn:
    """Become git, which takes manifests for files: that is all that the diff driver wants to see."""
    os.execvp("git", ["git", "-c", "cofuse.smudge=false", verb, "--ext-diff", *arguments])  # noqa: S606, S607


PASSED = ("diff", "log", "show")  # git's own verbs
VERBS: dict[str, tuple[Callable[..., int | None], int]] = {  # verb -> what it does, the least number of arguments
    "filter-process": (filter_process, 0),
    "clean": (clean, 1),
    "smudge": (smudge, 1),
    "diff-driver": (diff_driver, 1),
    "textconv": (textconv, 1),
    "merge-driver": (merge_driver, 4),
    "pre-push": (pre_push, 1),
}


def run(verb: str, arguments: Sequence[str]) -> None:
    """Do one verb; git is told by the exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # git has stopped: so do we
    if verb in PASSED:
        pass_on(verb, arguments)
    _keep_memory()
    work, count = VERBS[verb]
    try:
        if len(arguments) < count:
            raise StoreError(
                "called with too few arguments",
                where=f"cofuse git {verb}",
                got=len(arguments),
                expected=count,
                hint="git calls this by itself, after: cofuse git install",
            )
        sys.exit(work(*[word for word in arguments if word != "--"]) or 0)
    except CofuseError as error:
        print(f"cofuse: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _repository() -> Repository:
    from ..store.git.repository import Repository

    return Repository.here(reach)


def _filter() -> Filter:
    from ..store.git.filter import Filter

    return Filter(_repository())


def _keep_memory() -> None:
    """Have malloc keep what chunks have used for the next ones: asking the system for it anew takes as long as inflating."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 64 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 256 << 20)


def _threads() -> int:
    return min(os.cpu_count() or 1, 8)


def _readinto(view: memoryview) -> int:
    return os.readv(_IN, [view])


def _print(pieces: object) -> None:
    with open(_OUT, "wb", closefd=False) as out:
        for piece in pieces:  # type: ignore[attr-defined]
            out.write(piece)
