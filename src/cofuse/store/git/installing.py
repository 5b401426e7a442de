"""Telling a git repository about the filter, the drivers and the hook, and taking them out again."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from ...checkpoint import replace_file
from ...errors import StoreError
from ..places import explained
from .manifest import MAX_MANIFEST, Manifest
from .repository import Repository, ask_git, run_git

ATTRIBUTES = "filter=cofuse diff=cofuse merge=cofuse -text"
PATTERN = "*.safetensors"
_MERGE_NAME = "three-way merging of weights"
_KEYS = {  # what git's configuration is told; {} is the command
    "filter.cofuse.process": "{} filter-process",
    "filter.cofuse.clean": "{} clean -- %f",
    "filter.cofuse.smudge": "{} smudge -- %f",
    "filter.cofuse.required": "true",
    "diff.cofuse.command": "{} diff-driver",
    "diff.cofuse.textconv": "{} textconv",
    "diff.cofuse.cachetextconv": "true",
    "merge.cofuse.name": _MERGE_NAME,
    "merge.cofuse.driver": "{} merge-driver %O %A %B %P",
}
_HOOK = '#!/bin/sh\nexec {} pre-push "$@"\n'


def install(repository: Repository, command: list[str]) -> list[str]:
    """Set everything up, or again; gives lines that say what was done and what is left to do.

    Args:
        repository: where.
        command: how git is to call `cofuse git`.
    """
    called = shlex.join(command)
    for key, value in _KEYS.items():
        run_git("config", "--local", key, value.format(called))
    said = [f"git calls: {called}", f"tensors are kept in {repository.store.path}"]
    if repository.top != repository.common and not any("filter=cofuse" in line for line in _lines(repository)):
        track(repository, [PATTERN])
        said.append(f"{PATTERN} is tracked in .gitattributes: commit that file")
    hook = _hook(repository)
    wanted = _HOOK.format(called)
    if hook.exists() and hook.read_text(errors="replace") not in (wanted, ""):
        if f"{called} pre-push" not in hook.read_text(errors="replace"):
            said.append(f'there is a pre-push hook already; add to {hook}:\n    {called} pre-push "$@" || exit 1')
    else:
        replace_file(hook, wanted.encode())
        with explained(hook):
            hook.chmod(0o755)
    return said


def uninstall(repository: Repository) -> None:
    """Take out what `install` put in. The store, `.gitattributes` and what is in the working folder stay."""
    for section in ("filter.cofuse", "diff.cofuse", "merge.cofuse"):
        ask_git("config", "--local", "--remove-section", section)
    hook = _hook(repository)
    if hook.exists() and re.fullmatch(r'#!/bin/sh\nexec .* pre-push "\$@"\n', hook.read_text(errors="replace")):
        with explained(hook):
            hook.unlink()


def track(repository: Repository, patterns: list[str]) -> list[str]:
    """Add patterns to `.gitattributes`; gives those that were not there.

    Raises:
        StoreError: a pattern that git would read otherwise, or no working folder.
    """
    if repository.top == repository.common:
        raise StoreError("a bare repository has no .gitattributes", where=repository.common)
    bad = next((p for p in patterns if not p or p[0] in '#!"' or any(c.isspace() for c in p)), None)
    if bad is not None:
        raise StoreError(
            "not a pattern for .gitattributes", got=ascii(bad), expected="such as *.safetensors or w/*.bin"
        )
    lines = _lines(repository)
    new = [p for p in patterns if f"{p} {ATTRIBUTES}" not in lines]
    if new:
        text = "".join(f"{line}\n" for line in [*lines, *(f"{p} {ATTRIBUTES}" for p in new)])
        replace_file(repository.top / ".gitattributes", text.encode("utf-8", "surrogateescape"))
    return new


def tracked(repository: Repository) -> list[str]:
    """The paths in the index that the filter is for."""
    listed = run_git("-C", str(repository.top), "ls-files", "-z")
    told = run_git("-C", str(repository.top), "check-attr", "-z", "--stdin", "filter", given=listed).split(b"\0")
    return [os.fsdecode(path) for path, value in zip(told[0::3], told[2::3], strict=False) if value == b"cofuse"]


def unfilled(repository: Repository) -> dict[str, Manifest]:
    """Tracked files that stand in the working folder as their manifests, as after a clone without the filter."""
    found: dict[str, Manifest] = {}
    for path in tracked(repository):
        place = repository.top / path
        if place.is_file() and not place.is_symlink() and place.stat().st_size <= MAX_MANIFEST:
            manifest = Manifest.parse(place.read_bytes(), place)
            if manifest is not None:
                found[path] = manifest
    return found


def fill(repository: Repository, paths: list[str]) -> None:
    """Have git write these files again, through the filter.

    Raises:
        StoreError: the filter failed; it has said why.
    """
    if paths:
        for path in paths:
            os.utime(repository.top / path, (1, 1))  # git leaves alone what looks as it left it, to the second
        names = b"".join(os.fsencode(path) + b"\0" for path in paths)
        top = ("-C", str(repository.top))
        run_git(*top, "checkout-index", "--index", "--force", "-z", "--stdin", given=names)


def _lines(repository: Repository) -> list[str]:
    path = repository.top / ".gitattributes"
    return path.read_bytes().decode("utf-8", "surrogateescape").splitlines() if path.exists() else []


def _hook(repository: Repository) -> Path:
    found = run_git("-C", str(repository.top), "rev-parse", "--git-path", "hooks/pre-push").decode().removesuffix("\n")
    return repository.top / found
