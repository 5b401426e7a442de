"""Checkpoints in git repositories: what people call. What git calls is in `plumbing`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..store.collecting import GRACE_DAYS
from ..store.git import installing, roots, sharing
from ..store.git.repository import Repository, run_git
from .plumbing import pass_on, reach
from .progress import shown

app = typer.Typer(
    name="git",
    help="Let a git repository hold checkpoints: git keeps a small manifest, a store in .git the tensors.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_PASSED = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def register(whole: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (install, uninstall, track, status, push, pull, gc):
        app.command(verb.__name__)(verb)
    for passed in (diff, log, show):
        app.command(passed.__name__, context_settings=_PASSED, add_help_option=False)(passed)
    whole.add_typer(app)


def install(
    remote: Annotated[
        str | None, typer.Option("--remote", help="A folder or bucket that the tensors are shared through.")
    ] = None,
) -> None:
    """Set up the git repository here; again does no harm."""
    repository = Repository.here(reach)
    if remote is not None:
        from ..store.remotes.opening import absolute

        run_git("config", "--local", "cofuse.remote", absolute(remote))
    for line in installing.install(repository, _command()):
        print(line)
    waiting = installing.unfilled(repository)
    if waiting:
        print(f"{len(waiting)} files are manifests still; get their tensors with: cofuse git pull")


def uninstall() -> None:
    """Take the filter, the drivers and the hook out of the git repository here; nothing that is kept is removed."""
    installing.uninstall(Repository.here(reach))


def track(
    patterns: Annotated[list[str] | None, typer.Argument(metavar="PATTERN...", help="As in .gitattributes.")] = None,
) -> None:
    """Let files be kept as checkpoints are; without a pattern, list those that are."""
    repository = Repository.here(reach)
    if not patterns:
        for path in installing.tracked(repository):
            print(path)
    for pattern in installing.track(repository, patterns or []):
        print(f"tracking {pattern}; files that git has already: git add --renormalize .")


def status() -> None:
    """Show what is tracked, where its tensors are and what is missing."""
    repository = Repository.here(reach)
    store, paths = repository.store, installing.tracked(repository)
    print(f"store   {store.path}: {len(roots.roots(store.objects.places))} versions")
    print(f"remote  {repository.config('cofuse.remote') or 'none'}")
    for path in paths:
        manifest = repository.manifest(f":{path}")
        if manifest is None:
            print(f"        {path}: in git itself, from before the filter")
        else:
            lacks = "  (not here: cofuse git pull)" if sharing.missing(repository, [manifest]) else ""
            print(f"{manifest.tree[:12]}  {manifest.size:>15,} {path}{lacks}")


def pull() -> None:
    """Get the tensors of the files here that are manifests still."""
    repository = Repository.here(reach)
    waiting = installing.unfilled(repository)
    with shown() as progress:
        sharing.ensure(repository, waiting.values(), progress)
    installing.fill(repository, list(waiting))
    print(f"{len(waiting)} files filled")


def push(
    everything: Annotated[
        bool, typer.Option("--all", help="All that git reaches from any ref; else from HEAD.")
    ] = False,
) -> None:
    """Share the tensors of committed files through the remote; `git push` does it for what it pushes."""
    repository = Repository.here(reach)
    manifests = sharing.named("--all" if everything else "HEAD")
    with shown() as progress:
        sharing.share(repository, manifests, progress)
    print(f"{len(manifests)} versions in {repository.config('cofuse.remote')}")


def gc(
    days: Annotated[
        float, typer.Option("--days", min=0, help="How long what git does not name any more is kept.")
    ] = GRACE_DAYS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove tensors that nothing git has names any more; run `git gc` first."""
    store = Repository.here(reach).store
    named = {manifest.tree for manifest in sharing.named_by_any()}
    gone = roots.forget(store.objects.places, named, days * 86_400, dry_run=dry_run)
    with shown() as progress:
        # Without packing: what a branch of git's has at its tip is not known to the store.
        _, done = store.gc(packing=False, grace_days=days, dry_run=dry_run, progress=progress)
    print(f"{len(gone)} versions that git does not name, {done.removed} objects, {done.freed:,} bytes")


def diff(context: typer.Context) -> None:
    """`git diff`, faster: git is not made to write out the weights for it."""
    pass_on("diff", context.args)


def log(context: typer.Context) -> None:
    """`git log`; with -p, what changed in which tensor."""
    pass_on("log", context.args)


def show(context: typer.Context) -> None:
    """`git show` of commits, with what changed in which tensor."""
    pass_on("show", context.args)


def _command() -> list[str]:
    """How git is to call this program. Not with the working folder on Python's path: that is the repository's to fill."""
    return [sys.executable, "-P", "-m", "cofuse", "git"]
