"""Version control for checkpoints: objects, trees, commits and refs in a folder."""

from .checkpoint import StoreCheckpoint
from .commits import Commit
from .fsck import Damage, Health
from .store import Store

__all__ = ["Commit", "Damage", "Health", "Store", "StoreCheckpoint"]
