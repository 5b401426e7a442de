"""The gate: may a new model take the place of an old one? Statistics and decisions; nothing here runs a model.

`cofuse.measure.gate.source` and `.running` need torch and are imported by name.
"""

from .comparison import Comparison, TaskComparison, compare
from .estimate import Estimate
from .matched import Matched, Rate
from .policy import Policy, TaskPolicy, read_policy
from .sequential import Batch, Item, Trial
from .size import bounded, needed, tellable
from .verdict import Finding, Verdict, judge

__all__ = [
    "Batch",
    "Comparison",
    "Estimate",
    "Finding",
    "Item",
    "Matched",
    "Policy",
    "Rate",
    "TaskComparison",
    "TaskPolicy",
    "Trial",
    "Verdict",
    "bounded",
    "compare",
    "judge",
    "needed",
    "read_policy",
    "tellable",
]
