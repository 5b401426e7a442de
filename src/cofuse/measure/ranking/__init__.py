"""Which base model to start from: gains over the pretrained model of the same architecture, and how far to trust them."""

from .agreement import Agreement, agreements
from .ranking import Entry, Ranked, Ranking, TaskGain, entries, rank, same_architecture

__all__ = [
    "Agreement",
    "Entry",
    "Ranked",
    "Ranking",
    "TaskGain",
    "agreements",
    "entries",
    "rank",
    "same_architecture",
]
