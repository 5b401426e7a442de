"""What a forward pass needs: data, heads, losses, finetuning, probing.

The modules that need torch are imported by name (`cofuse.tasks.finetune`), so that reading a task costs nothing.
"""

from .examples import Examples, draw, draw_rows
from .kinds import KINDS, Kind
from .metrics import METRICS
from .task import Suite, Task, open_suite, open_task

__all__ = ["KINDS", "METRICS", "Examples", "Kind", "Suite", "Task", "draw", "draw_rows", "open_suite", "open_task"]
