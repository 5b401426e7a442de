"""An exponential moving average over models in their order."""

from __future__ import annotations

from collections.abc import Iterable

from .method import Array


def ema(models: Iterable[Array], base: Array | None, *, decay: float = 0.9) -> Array:
    """What a moving average holds after the last model.

        e <- decay e + (1 - decay) t_i,   i = 1, 2, ...

    from e = base, or from the first model where there is no base.

    Args:
        models: one block of each model, the oldest first; taken one at a time.
        base: the same block of the base, or None.
        decay: the share that stays, in [0, 1]; no unit. Averages over training steps use 0.999 and more; between
            checkpoints that are few and far apart, as here, less.

    Returns:
        An array of that shape and dtype. There is no correction for the start (as in Adam): with a base, or a first
        model, the average starts from a model and not from zero.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; of checkpoints: arXiv
    2411.18704.

    >>> import numpy as np
    >>> ema([np.array([1.0]), np.array([3.0])], None, decay=0.75)
    array([1.5])
    """
    rest = iter(models)
    average = next(rest) if base is None else base
    while (model := next(rest, None)) is not None:
        model -= average
        model *= 1 - decay
        average += model
    return average
