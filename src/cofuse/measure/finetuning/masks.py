"""Which values a masked training trains: from the word that says it to the mask, measuring what that needs."""

from __future__ import annotations

from collections.abc import Callable

from ...checkpoint import Checkpoint, TensorSpec
from ...checkpoint.floats import FLOATS
from ...errors import PatchError
from ...patch.choice import Choice
from ...patch.masks import BIASES, Mask, Named, Scores, at_random, by_fisher, by_size, top
from ...progress import SILENT, Progress
from ...tasks.masked import homes
from ...tasks.model import load_body


def trainable(base: Checkpoint) -> dict[str, TensorSpec]:
    """The tensors of a checkpoint that a training of its body reaches, by the checkpoint's names: a share is of these.

    Of a tied weight that is stored several times, only the first.
    """
    kept = set(homes(load_body(base), base).values())
    return {name: base.spec(name) for name in base.names() if name in kept and base.spec(name).dtype in FLOATS}


def mask_of(
    choice: Choice,
    base: Checkpoint,
    *,
    fisher: Callable[[], Checkpoint] | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Mask:
    """The mask that a choice makes of a base, before it is trained.

    Args:
        choice: which values; see `patch.choice`.
        base: what will be trained.
        fisher: gives the statistics of `fish`; called only for it. Empirical in the paper (arXiv 2111.09839, sec. 2.2).
        seed: of a random mask whose choice says none.
        threads: how many; the mask does not depend on it.
        progress: told of every chunk.

    Raises:
        PatchError: `fish` without statistics, or with statistics that do not fit; a choice without its share.

    >>> from cofuse.patch.choice import choice
    >>> mask_of(choice("fish"), None)
    Traceback (most recent call last):
    cofuse.errors.PatchError: say how many values
    ...
    """
    whole = choice.whole(None, per_tensor=choice.per_tensor, where="mask")
    specs = trainable(base)
    if not whole.counts:
        return Named(specs, whole.globs or BIASES)
    scores: dict[str, Callable[[], Scores]] = {
        "magnitude": lambda: by_size(base),
        "random": lambda: at_random(base, seed if whole.seed is None else whole.seed),
        "fisher": lambda: _fisher_scores(fisher, base),
    }
    share = whole.share or 0.0
    return top(scores[whole.by](), specs, share, per_tensor=whole.per_tensor, threads=threads, progress=progress)


def _fisher_scores(fisher: Callable[[], Checkpoint] | None, base: Checkpoint) -> Scores:
    if fisher is None:
        raise PatchError("a mask by Fisher needs one", hint="measure it: cofuse fisher MODEL --task T --empirical -o F")
    return by_fisher(fisher(), base)
