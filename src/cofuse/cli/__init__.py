"""Arguments and printing; the only room that reads the environment."""

import gc
import os
import sys

# Verbs that have threads of their own. BLAS would start some too, which wait at work, on a core that they could use, for a
# tenth of a second; and scipy, which numba imports to look for a BLAS in it, takes longer to import than numba.
_OWN_THREADS = {"fuse", "replay", "merge", "cherry-pick", "revert", "commit", "gc", "git"}


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] and sys.argv[1] in _OWN_THREADS:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
        sys.modules["scipy"] = None  # type: ignore[assignment]  # as if it were not installed
    if sys.argv[1:2] == ["git"]:
        from .plumbing import PASSED, VERBS, run

        # What git calls has no help to show, and is called for every `git add`: it does not wait for what draws helps.
        if (verb := "".join(sys.argv[2:3])) in (*VERBS, *PASSED):
            run(verb, sys.argv[3:])
            return
    gc.set_threshold(100_000)  # modules are not garbage: looking for some among them takes a tenth of the start
    from .app import main as whole

    whole()


__all__ = ["main"]
