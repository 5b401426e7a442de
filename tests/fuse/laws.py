"""What each row of METHODS promises: the settings under which each law holds, or why it does not.

A method that is added comes with its line here; `test_methods.py` puts every line to the test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Laws:
    """The laws of one method.

    Attributes:
        ordinary: settings that a user would choose; blocks, dtypes, schedules, inputs are tested with these.
        identical: settings under which identical models give that model; a str says why there are none.
        one_hot: settings under which a weight of one on one model and zero on the others gives that model.
        order: whether the order of the models does not matter, beyond rounding.
        models: how many an ordinary fuse takes.
        random: draws masks: float64 inputs draw the same ones.
        sharp: has thresholds, at which float32 and float64 may decide differently for some entries.
        cut: whether another cut into blocks gives the same bytes (True) or the same but for rounding of sums (False).
    """

    ordinary: Settings = field(default_factory=dict)
    identical: Settings | str = field(default_factory=dict)
    one_hot: Settings | str = field(default_factory=dict)
    order: bool = True
    models: int = 3
    sharp: bool = False
    cut: bool = True


LAWS: dict[str, Laws] = {
    "linear": Laws({"weights": [0.5, 1.0, 0.3]}),
    "task_arithmetic": Laws({"weights": [0.5, 1.0, 0.3], "scale": 0.7}, {"normalize": True}),
}
